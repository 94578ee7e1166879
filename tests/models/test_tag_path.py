"""The likeliest valid tags, beside all of them tried one by one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stillhouse.models.tag_path import best_path


def valid(path: tuple[int, ...], goes_on: list[bool]) -> bool:
    """Each I follows its B or I, and a word that goes on keeps its field: from the definition."""
    before = 0
    for tag, inside in zip(path, goes_on, strict=True):
        field = (tag + 1) // 2
        if tag and tag % 2 == 0 and (before + 1) // 2 != field:
            return False
        if inside and (tag % 2 == 1 or (before + 1) // 2 != field):
            return False
        before = tag
    return True


def naive(log_p: np.ndarray, goes_on: list[bool]) -> float:
    """The highest sum over all valid paths."""
    tokens, classes = log_p.shape
    return max(
        sum(float(log_p[at, tag]) for at, tag in enumerate(path))
        for path in itertools.product(range(classes), repeat=tokens)
        if valid(path, goes_on)
    )


@given(
    st.tuples(st.integers(1, 5), st.sampled_from([3, 5])).flatmap(
        lambda shape: arrays.arrays(
            np.float32, shape, elements=st.floats(-8, 0, width=32, allow_subnormal=False)
        )
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_the_path_is_valid_and_none_is_likelier(log_p: np.ndarray, more: list[bool]) -> None:
    goes_on = [False, *more][: len(log_p)]
    path = best_path(log_p, goes_on)
    assert valid(tuple(path.tolist()), goes_on)
    total = sum(float(log_p[at, tag]) for at, tag in enumerate(path))
    assert np.isclose(total, naive(log_p, goes_on), atol=1e-4)


def test_a_text_without_tokens_has_no_tags() -> None:
    assert best_path(np.zeros((0, 5), dtype=np.float32), []).tolist() == []
