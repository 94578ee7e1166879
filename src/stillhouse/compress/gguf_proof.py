"""Proof that llama.cpp reads as the student does: the same token ids, the same chat prompts.

A GGUF file names rules that are compiled into llama.cpp; whether they are the student's own can
only be seen from what it does with texts. A file with this tokenizer and an empty model is loaded,
and texts and chats go through both. Knows tokenizers and the engine; reads no weights.
"""

from __future__ import annotations

import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.compress.gguf_tokenizer import ACTION, FIELD, GgufVocabulary
from stillhouse.compress.gguf_write import write_stub
from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.records import Message
from stillhouse.models.chat import prompt_text
from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.gguf_student import merged_system

# What cutting rules are known to differ in: numbers, contractions, cases, white space, marks,
# lines, scripts without spaces, characters that no vocabulary holds.
PROBES: Final = (
    "",
    "Hello, world!",
    "  two  spaces and   three at the end   ",
    "line\nnext\n\nafter two\n\n\nafter three\r\nwindows\ttab\t\ttabs \n space before",
    "1 12 123 1234 12345 3.14159 1,000,000 2024-11-24 0x1F v2.0.1 10% $5 \u00b2\u00bd\u0664\u0665",
    "I'm you're he'll we've they'd it's don't I'M YOU'RE \u2019s o'clock 'quoted' rock'n'roll",
    "CamelCase snake_case kebab-case SCREAMING_CASE iPhone McDonald XMLHttpRequest",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n\tpass",
    '{"name": "Ann", "age": 31, "tags": ["a", "b"], "ok": true, "none": null}',
    "https://example.org/a/b?c=d&e=f#g mail@example.org C:\\path\\file.txt /usr/bin/env",
    "... !!! ??? --- *** ((nested)) [[brackets]] <tag/> &amp; ~!@#$%^&*()_+|`",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0141\u00f3d\u017a \u00e5ngstr\u00f6m \u01c5",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440 \u0393\u03b5\u03b9\u03ac",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0b95\u0bcd",
    "\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \u20ac",
    "zero\u200bwidth nbsp\u00a0here em\u2003space ideographic\u3000space \ufeffbom",
    "\u2581 looks like a space; \u0120 too; <0x0A> is text",
)
CHATS: Final[tuple[tuple[tuple[str, str], ...], ...]] = (
    (("user", "Is it good?"),),
    (("system", "Answer in one word."), ("user", "Is it good?")),
    (("user", "Hi"), ("assistant", "Hello."), ("user", "Is it good?\nSay so.")),
    (
        ("system", "Answer in one word."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "Is it good?"),
    ),
)


class Proof(NamedTuple):
    """How much was compared, all of it equal, and whether system messages have to be merged."""

    texts: int
    tokens: int
    chats: int
    merges_system: bool


def prove(tokenizer: Any, vocabulary: GgufVocabulary, texts: Sequence[str] = ()) -> Proof:
    """Compare llama.cpp's reading with the student's, on the probes, the chats and `texts`.

    Raises:
        UserError: they differ; shows the text and both.
        MissingExtraError: xllamacpp is not installed.
    """
    # llama.cpp loads no file whose template always fails; this says so of the student.
    prompt_text(tokenizer, [Message(role="user", content="a")])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.gguf"
        write_stub(path, vocabulary)
        engine = GgufEngine(path, 1)
        try:
            return _compare(engine, tokenizer, vocabulary, texts)
        finally:
            engine.close()


def _compare(
    engine: GgufEngine, tokenizer: Any, vocabulary: GgufVocabulary, texts: Sequence[str]
) -> Proof:
    merges, prompts = _chats(engine, tokenizer, vocabulary)
    special = [
        f"a{piece} b {piece}\n{piece}{piece}c"
        for piece, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in (3, 4)
    ]
    tokens = count = 0
    # Spelt with its own special tokens, a text shows whether white space around them is kept.
    for text in [*PROBES, *special[:64], *prompts, *texts]:
        if vocabulary.composes:
            text = unicodedata.normalize("NFC", text)
        for around in (False, True) if vocabulary.plain else (False,):
            expected = list(tokenizer(text, add_special_tokens=around)["input_ids"])
            found = engine.tokens(text, around)
            if expected != found:
                raise _differs(text, tokenizer, expected, found)
            tokens += len(found)
        count += 1
    return Proof(count, tokens, len(prompts), merges)


def _chats(
    engine: GgufEngine, tokenizer: Any, vocabulary: GgufVocabulary
) -> tuple[bool, list[str]]:
    """Whether system messages have to be merged before llama.cpp renders them, and the prompts."""
    merges = _refuses_system(tokenizer)
    prompts = []
    for chat in CHATS:
        messages = [Message(role=role, content=text) for role, text in chat]
        try:
            expected = prompt_text(tokenizer, messages)
        except UserError:
            if len(chat) == 1:
                raise
            continue  # this student is not asked that way
        turns = [{"role": role, "content": text} for role, text in chat]
        try:
            found = engine.prompt("chat", merged_system(turns) if merges else turns)
        except TeacherError as error:
            found = str(error)
        if found != expected:
            raise UserError(
                "student chat template",
                f"llama.cpp renders it in another way: {found!r}",
                value=expected,
                action="simplify the template, or keep the student as a transformers folder",
            )
        prompts.append(expected)
    return merges, prompts


def _refuses_system(tokenizer: Any) -> bool:
    """Whether the template only takes a system message at the head of the user's (`chat`)."""
    split = [Message(role="system", content="S"), Message(role="user", content="U")]
    whole = [Message(role="user", content="S\n\nU")]
    try:
        return bool(tokenizer.chat_template) and prompt_text(tokenizer, split) == prompt_text(
            tokenizer, whole
        )
    except UserError:
        return False


def _differs(text: str, tokenizer: Any, expected: Sequence[int], found: Sequence[int]) -> UserError:
    first = next(
        (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
        min(len(expected), len(found)),
    )
    return UserError(
        FIELD,
        "llama.cpp cuts a text in another way: "
        f"{tokenizer.convert_ids_to_tokens(list(expected[first : first + 4]))} is "
        f"{tokenizer.convert_ids_to_tokens(list(found[first : first + 4]))} there",
        value=text[:60],
        action=ACTION,
    )
