"""A text of a corpus, and the three parts a corpus is divided into. Knows no model and no file's
form."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from stillhouse.core.records import Record

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
PARTS: Final = (TRAIN, VALIDATION, TEST)


class Passage(Record):
    """A text, and what it must not be parted from in a split."""

    id: str = Field(min_length=1)
    text: str = Field(min_length=1)
    group: str
    language: str | None = None
