"""Answers that do not stand in their texts are refused before they are learned."""

from __future__ import annotations

import pytest

from stillhouse.core.errors import UserError
from stillhouse.core.tasks import ExtractionTask
from stillhouse.train.extractive import FEWEST, Answered, check_extractive

TASK = ExtractionTask(
    kind="extraction",
    json_schema={
        "type": "object",
        "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
    },
)


def answered(city: str, day: str) -> Answered:
    return Answered("Troy on Monday", f'{{"city": "{city}", "day": "{day}"}}')


GOOD, NO_DAY = answered("Troy", "Monday"), answered("Troy", "2026-11-30")
NO_CITY = answered("Albany", "Monday")


def test_copied_answers_pass() -> None:
    check_extractive(TASK, [GOOD] * FEWEST, "the data")
    check_extractive(TASK, [GOOD] * 30 + [NO_DAY] * 10, "the data")


def test_a_field_that_is_rewritten_is_named() -> None:
    with pytest.raises(UserError, match=r"properties\.day: 11 of its 20 values in the data") as got:
        check_extractive(TASK, [GOOD] * 9 + [NO_DAY] * 11, "the data")
    assert "student.head: text" in str(got.value)
    assert "\n" not in str(got.value)


def test_too_much_of_all_is_refused_without_a_field_to_blame() -> None:
    some = [GOOD] * 8 + [NO_DAY] * 6 + [NO_CITY] * 6
    with pytest.raises(UserError, match=r"student\.head: 12 of 40 values in the data"):
        check_extractive(TASK, some, "the data")


def test_few_values_and_unreadable_answers_say_nothing() -> None:
    check_extractive(TASK, [NO_DAY] * (FEWEST - 1) + [GOOD] * FEWEST, "the data")
    check_extractive(TASK, [Answered("Troy", "no JSON")] * 50, "the data")
