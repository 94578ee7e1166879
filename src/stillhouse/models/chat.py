"""Chats as token ids: the one place where a prompt and its answer are put into a model's format.

Asking, label likelihoods and fine-tuning all go through here, so that a model is asked in exactly
the form it was trained in. Knows tokenizers; does not know models.

With a chat template the prompt ends with the template's generation prompt and the answer follows
as it is. Without one (a base model) the messages' contents are joined by blank lines, and the
answer follows after one space: `... Sentiment:` + ` positive`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from stillhouse.core.errors import UserError
from stillhouse.core.records import Message


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(tokenizer.chat_template)


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The chat as the model reads it, up to where its answer begins.

    A template that refuses system messages gets them at the head of the first user message.

    Raises:
        UserError: the template cannot render this chat.
    """
    if not has_template(tokenizer):
        return "\n\n".join(message.content for message in messages).rstrip()
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return _rendered(tokenizer, turns)
    except TemplateError as error:
        if turns[0]["role"] in ("system", "developer") and len(turns) > 1:
            head, first, *rest = turns
            merged = {"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}
            try:
                return _rendered(tokenizer, [merged, *rest])
            except TemplateError:
                pass
        raise UserError(
            "chat template", f"cannot render the messages: {error}", action="check their roles"
        ) from None


def answer_text(tokenizer: Any, answer: str) -> str:
    """The answer as it follows `prompt_text`."""
    return answer if has_template(tokenizer) else f" {answer}"


def each_prompt_ids(
    tokenizer: Any, chats: Sequence[Sequence[Message]]
) -> list[list[int] | UserError]:
    """`prompt_ids`, with its error in the place of a chat that the template cannot render."""
    found: list[list[int] | UserError] = []
    for messages in chats:
        try:
            found += prompt_ids(tokenizer, [messages])
        except UserError as error:
            found.append(error)
    return found


def prompt_ids(tokenizer: Any, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Token ids of each prompt, not padded, never cut."""
    texts = [prompt_text(tokenizer, messages) for messages in chats]
    encoded = tokenizer(
        texts,
        add_special_tokens=not has_template(tokenizer),  # a template writes its own
        padding=False,
        truncation=False,
        return_attention_mask=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def answer_ids(tokenizer: Any, answer: str, prompt: str = "") -> list[int]:
    """Token ids of an answer as they follow a prompt, without an end token.

    Tokenised together with the prompt, because some tokenizers merge over or mark the boundary;
    on its own where that would change the prompt's last token.
    """
    text = answer_text(tokenizer, answer)
    if prompt:
        before = _plain_ids(tokenizer, prompt)
        whole = _plain_ids(tokenizer, prompt + text)
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    return _plain_ids(tokenizer, text)


def end_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    settings = getattr(model, "generation_config", None)
    more = getattr(settings, "eos_token_id", None)
    for token in more if isinstance(more, list) else [more]:
        if token is not None and int(token) not in found:
            found.append(int(token))
    return found


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
