"""A frozen store as the teacher: a recipe goes on when the model behind it is retired.

Answers under the name, the revision and the keys of the teacher that was asked, so that what is
replayed is what was paid for. Needs no key and no network. A query that was never asked, or asked
in another way, has no answer here. Knows stores; asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.keys import AnswerKey, answer_key
from stillhouse.teacher.lines import AnswerHead, parse_line
from stillhouse.teacher.store import AnswerStore

STORE_FILE: Final = "answers.jsonl"


@runtime_checkable
class Recorded(Protocol):
    """A completer whose answers are there already, by their keys."""

    def recorded(self, key: AnswerKey) -> Sequence[Completion]:
        """All samples of a key."""

    def why_none(self, key: AnswerKey) -> str:
        """Why a key has no (further) sample."""


def store_path(path: Path) -> Path:
    """The store that a path means: the file itself, or a run folder's."""
    return path / "store" / STORE_FILE if path.is_dir() else path


class ReplayCompleter:
    """Answers from a frozen store; see `Completer`.

    Args:
        path: the frozen or exported file, or a run folder whose store is frozen.

    Raises:
        UserError: it is not frozen, or holds the answers of no teacher or of several.
        DataError: there is no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._store = AnswerStore(store_path(path), read_only=True)
        self._asked: set[str] | None = None
        if self._store.frozen is None:
            raise UserError(
                f"teacher.model replay:{path}",
                "is not frozen: its answers may still change",
                action=f"run: stillhouse store freeze {path}",
            )
        teachers = sorted(self._store.teachers)
        if len(teachers) != 1:
            held = ", ".join(teachers) or "none"
            raise UserError(
                f"teacher.model replay:{path}",
                f"must hold the answers of one teacher (holds: {held})",
                action="export one: stillhouse store export RUN FILE --teacher NAME",
            )
        self._info = replace(self._store.teachers[teachers[0]] or _guessed(teachers[0]), local=True)

    @property
    def info(self) -> ModelInfo:
        """The teacher that was asked; nothing is billed any more."""
        return self._info

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """The answers that were kept; see `Completer`."""
        key = answer_key(self._info, query, sampling)
        found = self.recorded(key)
        if len(found) < sampling.n:
            raise UnanswerableQueryError(self.why_none(key))
        return [c.model_copy(update={"query_id": query.id}) for c in found[: sampling.n]]

    def recorded(self, key: AnswerKey) -> Sequence[Completion]:
        """All samples of a key."""
        return self._store.get(key)

    def why_none(self, key: AnswerKey) -> str:
        """Why a key has no (further) sample: for the record of the failure."""
        count = self._store.count(key)
        if count:
            return f"the frozen store holds {count} samples of this query, and no more can be asked"
        if self._asked is None:
            self._asked = set()
            for raw in self._store.raw_lines():
                line = parse_line(raw).line
                assert isinstance(line, AnswerHead)
                self._asked.add(line.key.chat)
        if key.chat in self._asked:
            return (
                "the frozen store holds this query asked in another way: max_tokens, "
                "sampling_temperature, signals, labels, schema and seed must be those of then"
            )
        return "the frozen store holds no answer to this query: it was not asked before"

    async def aclose(self) -> None:
        """Close the file."""
        self._store.close()


def _guessed(teacher: str) -> ModelInfo:
    """What a teacher can do whose lines do not say it, by its provider."""
    name, _, revision = teacher.partition("@")
    kind = name.partition(":")[0]
    return ModelInfo(
        name,
        revision,
        gives_label_logprobs=kind in ("hf", "gguf", "embedded"),
        gives_logprobs=kind != "anthropic",
        takes_seed=kind != "anthropic",
    )
