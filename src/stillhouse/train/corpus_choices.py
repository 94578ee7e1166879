"""Questions with choices, for zero-shot scores: which continuation does a model find likeliest?

Knows files; knows no model.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records
from stillhouse.core.records import Record


class Choices(Record):
    """A prompt, what may follow it, and the number (from 0) or the text of the right one."""

    prompt: str = Field(min_length=1)
    choices: tuple[str, ...] = Field(min_length=2)
    answer: int | str
    group: str | None = None

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> Choices:
        if len(set(self.choices)) < len(self.choices) or "" in self.choices:
            raise ValueError("choices must be distinct texts")
        if isinstance(self.answer, str) and self.answer not in self.choices:
            raise ValueError("answer is none of the choices")
        if isinstance(self.answer, int) and not 0 <= self.answer < len(self.choices):
            raise ValueError("answer is no number of a choice, from 0")
        return self

    @property
    def right(self) -> int:
        """Number of the right choice."""
        return self.answer if isinstance(self.answer, int) else self.choices.index(self.answer)


def read_choices(path: Path, limit: int | None) -> list[Choices]:
    """The questions of a file, the first `limit` of them.

    Raises:
        DataError: no such file, a line that is no question, or none at all.
    """
    found = list(read_records(path, Choices))
    if not found:
        raise DataError(str(path), "holds no questions", action="see docs/pretrain.md")
    return found[:limit]
