"""An Ollama Modelfile for a GGUF student: the chat format as a Go template, greedy answers, ends.

Ollama does not run the Jinja template in a GGUF file. A template that writes each message as a
fixed text before and after its content (ChatML, Llama 3, Phi-3, most of them) is found out by what
it renders, and said again in Go's language; the two are compared on chats before it is written.
Knows templates by what they render; does not parse them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from jinja2.exceptions import TemplateError

from stillhouse.core.errors import UserError
from stillhouse.core.records import Message
from stillhouse.models.chat import has_template, prompt_text

_ROLES: Final = ("system", "user", "assistant")
# Contents that occur in no template.
_MARKS: Final = {role: f"\u25c6{role}\u25c7" for role in _ROLES}
_TRIALS: Final = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


class TurnFormat(NamedTuple):
    """A chat format of fixed texts: `around[role]` is what comes before and after a content.

    `start` opens every chat; `unsystem` comes after it where no system message follows.
    """

    start: str
    unsystem: str
    around: Mapping[str, tuple[str, str]]
    answer: str

    def render(self, roles: Sequence[str], contents: Sequence[str]) -> str:
        """The chat, up to where its answer begins."""
        text = self.start + ("" if roles[0] == "system" else self.unsystem)
        for role, content in zip(roles, contents, strict=True):
            before, after = self.around[role]
            text += before + content + after
        return text + self.answer


def turn_format(tokenizer: Any) -> TurnFormat | None:
    """The tokenizer's chat template as fixed texts, or `None` where it is none."""
    if not has_template(tokenizer):
        return None
    try:
        found = _find(tokenizer)
        for roles in _TRIALS:
            contents = [f"{role} says {i}: x {{y}}\nz" for i, role in enumerate(roles)]
            messages = [Message(role=r, content=c) for r, c in zip(roles, contents, strict=True)]
            if found is None or prompt_text(tokenizer, messages) != found.render(roles, contents):
                return None
    except (UserError, TemplateError):
        return None
    return found


def modelfile(file: str, tokenizer: Any, ends: Sequence[str], context: int, answer: int) -> str:
    """The text of a Modelfile that runs `file` as the student is asked here.

    Args:
        file: the GGUF file's name, in the same folder.
        tokenizer: the student's.
        ends: the texts of the tokens that end an answer.
        context: positions.
        answer: the most tokens of an answer.
    """
    lines = [f"FROM ./{file}"]
    template = _go_template(tokenizer)
    if template is None:
        lines.append("# The chat template cannot be said in Go's language: Ollama picks its own.")
        lines.append("# Ask through /api/generate with raw: true and a rendered prompt.")
    else:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context}",
        f"PARAMETER num_predict {answer}",
    ]
    lines += [f"PARAMETER stop {_quoted(end)}" for end in ends if end.strip()]
    return "\n".join(lines) + "\n"


def _find(tokenizer: Any) -> TurnFormat | None:
    system, user, assistant = (_MARKS[role] for role in _ROLES)
    alone = _rendered(tokenizer, "user")
    with_system = _rendered(tokenizer, "system", "user")
    long = _rendered(tokenizer, "user", "assistant", "user")
    closed = _rendered(tokenizer, "user", answer=False)
    answered = _rendered(tokenizer, "user", "assistant", answer=False)
    if any(text.count(user) != 1 for text in (alone, with_system, closed, answered)):
        return None
    if long.count(user) != 2 or any(text.count(assistant) != 1 for text in (long, answered)):
        return None
    if with_system.count(system) != 1:
        return None
    head, tail = alone.split(user)
    after_user = closed.split(user)[1]
    after_assistant = answered.split(assistant)[1]
    after_first, before_second = long.split(user)[1].split(assistant)
    before_user = before_second.removeprefix(after_assistant)
    before_system, between = with_system.removesuffix(user + tail).split(system)
    opening = head.removesuffix(before_user)
    # What opens every chat, as far as it is not the system turn's own: all of it, or the BOS token.
    start = opening
    if not before_system.startswith(opening):
        bos = str(tokenizer.bos_token or "")
        shared = opening.startswith(bos) and before_system.startswith(bos)
        start = bos if shared and not before_user.startswith(bos) else ""
    return TurnFormat(
        start=start,
        unsystem=opening.removeprefix(start),
        around={
            "system": (before_system.removeprefix(start), between.removesuffix(before_user)),
            "user": (before_user, after_user),
            "assistant": (after_first.removeprefix(after_user), after_assistant),
        },
        answer=tail.removeprefix(after_user),
    )


def _rendered(tokenizer: Any, *roles: str, answer: bool = True) -> str:
    turns = [{"role": role, "content": _MARKS[role]} for role in roles]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
    return text


def _go_template(tokenizer: Any) -> str | None:
    if not has_template(tokenizer):
        return (
            '{{ range $i, $m := .Messages }}{{ if $i }}{{ "\\n\\n" }}{{ end }}'
            "{{ $m.Content }}{{ end }}"
        )
    found = turn_format(tokenizer)
    if found is None:
        return None
    text = _literal(found.start)
    if found.unsystem:
        text += '{{ if ne (index .Messages 0).Role "system" }}' + _literal(found.unsystem)
        text += "{{ end }}"
    text += "{{ range .Messages }}"
    for number, role in enumerate(_ROLES):
        before, after = found.around[role]
        text += "{{ else if" if number else "{{ if"
        text += f' eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
    return text + "{{ end }}{{ end }}" + _literal(found.answer)


def _literal(text: str) -> str:
    """A fixed text as a Go action, which neither trims nor reads what is in it."""
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    """A Go (and Modelfile) string: JSON's escapes, with those it leaves out."""
    return json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028")
