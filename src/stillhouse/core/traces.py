"""What a user has left in JSON: which records are theirs, and where others speak of them.

A record is a user's if it says so (`user`), or if it is about one of their queries (by id, by the
hash of the chat, or by the chat itself). What is left may still name such a query in passing: a
rejection's detail, a list of ids. What a model wrote with a user's words before it (new queries, a
judge's reasons) is theirs where it repeats them. Knows values, not files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from stillhouse.core.records import EXPANDING, JUDGING, SYNTHETIC, key_of_turns

GONE: Final = "(forgotten)"
# A quotation is known by a window of this many characters. Every STRIDE-th of a text is kept, so
# one of WINDOW + STRIDE - 1 characters is always found. Shorter texts are looked for whole.
WINDOW: Final = 24
STRIDE: Final = 12
SHORTEST_PHRASE: Final = 8
ID_KEYS: Final = ("id", "query_id", "custom_id")
MADE: Final = (SYNTHETIC, EXPANDING, JUDGING)
CHAT_KEYS: Final = ("chat", "prompt_hash")
# Words of other people's own records: these are not looked through for a forgotten user's.
CONTENT_KEYS: Final = frozenset(
    {"content", "text", "reference", "label", "labels", "completion", "token", "messages"}
)
# Sentences about a record: an id or a short text may stand anywhere in them.
SENTENCE_KEYS: Final = frozenset({"detail", "first_problem", "problem", "message", "note", "notes"})
_EDGES: Final = "()[]{}<>.,;:!?'\"`"


@dataclass(frozen=True, slots=True)
class Traces:
    """All that tells a user's records.

    `names` holds the user's name and its pseudonyms, `ids` and `chats` their queries, `texts` what
    these queries say, without the task's own words.
    """

    names: frozenset[str]
    ids: frozenset[str]
    chats: frozenset[str]
    texts: tuple[str, ...] = ()
    _words: frozenset[str] = field(init=False, default=frozenset())
    _phrases: tuple[str, ...] = field(init=False, default=())
    _short: tuple[str, ...] = field(init=False, default=())
    _windows: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        called = self.names | self.ids
        whole = {name for name in called if _bare_words(name) == [name]}
        object.__setattr__(self, "_words", frozenset(whole))
        short = {t for t in self.texts if SHORTEST_PHRASE <= len(t) < WINDOW + STRIDE}
        object.__setattr__(self, "_short", tuple(sorted(short)))
        object.__setattr__(self, "_phrases", tuple(sorted((called - whole - {""}) | short)))
        windows = {
            _window(text[start : start + WINDOW])
            for text in self.texts
            for start in range(0, max(0, len(text) - WINDOW + 1), STRIDE)
        }
        object.__setattr__(self, "_windows", frozenset(windows))

    def owns(self, value: object) -> bool:
        """Whether a JSON value is a record of this user, or holds one as a field."""
        if not isinstance(value, Mapping):
            return False
        if _among(value.get("user"), self.names):
            return True
        if any(_among(value.get(key), self.ids) for key in ID_KEYS):
            return True
        if any(_among(value.get(key), self.chats) for key in CHAT_KEYS):
            return True
        if self._owns_chat(value.get("messages")) or self._made_of_theirs(value):
            return True
        answers = value.get("completions")  # of a store's line
        if isinstance(answers, list) and any(self._made_of_theirs(answer) for answer in answers):
            return True
        return any(self.owns(inner) for inner in value.values())

    def _made_of_theirs(self, value: object) -> bool:
        """Whether a model wrote this, or was asked to, with words of this user before it."""
        if not isinstance(value, Mapping):
            return False
        named = [value.get(key) for key in ("id", "query_id")]
        made = any(isinstance(name, str) and name.startswith(MADE) for name in named)
        return made and any(
            self._quotes(text) or any(short in text for short in self._short)
            for text in _texts(value)
        )

    def _owns_chat(self, messages: object) -> bool:
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            return False
        if not all(isinstance(turn, Mapping) for turn in messages):
            return False
        turns = [(turn.get("role"), turn.get("content")) for turn in messages]
        return key_of_turns(turns) in self.chats or (
            len(turns) > 1 and key_of_turns(turns[:-1]) in self.chats
        )

    def scrubbed(self, value: object, key: str = "") -> object:
        """The value without this user's records, and without others' mention of them."""
        if isinstance(value, Mapping):
            return {
                name: self.scrubbed(inner, str(name))
                for name, inner in value.items()
                if name not in self.ids and name not in self.names
                if not self.owns(inner)
            }
        if isinstance(value, list):
            return [
                self.scrubbed(inner, key)
                for inner in value
                if not self.owns(inner) and not (key not in CONTENT_KEYS and self._is_called(inner))
            ]
        if not isinstance(value, str) or key in CONTENT_KEYS:
            return value
        if key in SENTENCE_KEYS:
            return self.without(value)
        return GONE if self._is_called(value) or self._quotes(value) else value

    def _is_called(self, value: object) -> bool:
        return isinstance(value, str) and (value in self.ids or value in self.names)

    def _quotes(self, text: str) -> bool:
        """Whether a longer piece of what this user wrote stands in a text."""
        return bool(self._windows) and any(
            _window(text[start : start + WINDOW]) in self._windows
            for start in range(len(text) - WINDOW + 1)
        )

    def without(self, text: str) -> str:
        """The text with names and ids of this user replaced; all of it where it quotes them."""
        if self._quotes(text):
            return GONE
        for phrase in self._phrases:
            text = text.replace(phrase, GONE)
        if not self._words.intersection(_bare_words(text)):
            return text
        parts = []
        for word in text.split(" "):
            bare = word.strip(_EDGES)
            parts.append(word.replace(bare, GONE) if bare in self._words else word)
        return " ".join(parts)


def _texts(value: object) -> Iterator[str]:
    """All texts in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _bare_words(text: str) -> list[str]:
    return [word.strip(_EDGES) for word in text.split(" ")]


def _among(value: object, known: frozenset[str]) -> bool:
    return isinstance(value, str) and value in known


def _window(text: str) -> str:
    """A hash: windows of many long texts are held at once."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def line_of(value: object) -> str:
    """One JSONL line, as records write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
