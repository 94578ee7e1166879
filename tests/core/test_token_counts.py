"""What may be a number of tokens, and what may not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.token_counts import MOST, token_count


@pytest.mark.parametrize("value", [0, 1, MOST, 12.0])
def test_a_count_is_itself(value: Any) -> None:
    assert token_count(value) == value
    assert type(token_count(value)) is int


@pytest.mark.parametrize(
    "value",
    [None, True, False, -1, -0.5, 1.5, MOST + 1, 10**400, 1e300, math.inf, math.nan, "7", [7], {}],
)
def test_what_is_no_count_is_absent(value: Any) -> None:
    assert token_count(value) is None


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text())
def test_a_count_can_always_be_reckoned_with(value: Any) -> None:
    found = token_count(value)
    assert found is None or 0 <= found <= MOST
    assert math.isfinite((found or 0) * 1e9)
