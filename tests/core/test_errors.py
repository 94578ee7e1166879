"""Errors: one line, whatever the value holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import (
    SHOWN_VALUE_CHARS,
    DataError,
    MissingExtraError,
    RecipeError,
    StillhouseError,
    TeacherError,
    UserError,
    one_line,
)


@settings(deadline=None)
@given(st.text(), st.text(), st.text() | st.lists(st.text()), st.text())
def test_an_error_is_one_line(field: str, problem: str, value: object, action: str) -> None:
    line = one_line(field, problem, value, action)
    assert len(line.splitlines()) <= 1


def test_an_error_names_field_value_and_action() -> None:
    error = RecipeError("train.alpha", "must be at most 1", value=3, action="lower it")
    assert str(error) == "train.alpha: must be at most 1 (got 3); lower it"
    assert (error.field, error.value, error.action) == ("train.alpha", 3, "lower it")


def test_a_long_value_is_cut() -> None:
    line = one_line("f", "p", "x" * 10_000)
    assert len(line) < SHOWN_VALUE_CHARS + 20
    assert "..." in line


@pytest.mark.parametrize("kind", [RecipeError, DataError, MissingExtraError])
def test_user_errors_are_value_errors_and_others_are_not(kind: type[UserError]) -> None:
    assert issubclass(kind, UserError)
    assert issubclass(kind, ValueError)
    assert issubclass(TeacherError, StillhouseError)
    assert not issubclass(TeacherError, UserError)
