"""Splits: by group, by hash alone, never a part empty without need."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from stillhouse.core.records import LabelledQuery, Message
from stillhouse.core.split import split_by_group, tune_check_split, unit_hash

GROUPS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60)
SHARES = st.floats(0.01, 0.89)


@settings(deadline=None)
@given(GROUPS, SHARES, st.integers(0, 2**32 - 1))
def test_a_split_parts_the_items_and_keeps_groups_whole(
    groups: list[str], share: float, seed: int
) -> None:
    items = list(range(len(groups)))
    split = split_by_group(items, groups, share, seed)
    assert sorted(split.first + split.second) == items
    assert split.first == sorted(split.first)
    assert split.second == sorted(split.second)
    assert not {groups[i] for i in split.first} & {groups[i] for i in split.second}
    assert split.first
    assert bool(split.second) == (len(set(groups)) > 1)


@settings(deadline=None)
@given(GROUPS, SHARES, st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(
    groups: list[str], share: float, seed: int, shuffler: random.Random
) -> None:
    items = list(enumerate(groups))
    shuffled = items[:]
    shuffler.shuffle(shuffled)
    one = split_by_group(items, [g for _, g in items], share, seed)
    other = split_by_group(shuffled, [g for _, g in shuffled], share, seed)
    assert set(one.second) == set(other.second)


@settings(deadline=None)
@given(GROUPS, SHARES, st.integers(0, 99))
def test_the_second_part_overshoots_by_less_than_one_fitting_group(
    groups: list[str], share: float, seed: int
) -> None:
    split = split_by_group(groups, groups, share, seed)
    wanted = share * len(groups)
    smallest = min(Counter(groups).values())
    assert len(split.second) < wanted + max(1.0, wanted, smallest) + 1e-9


def test_a_large_cluster_does_not_swallow_the_held_out_part() -> None:
    groups = ["cluster"] * 800 + [str(i) for i in range(200)]
    for seed in range(50):
        split = split_by_group(groups, groups, 0.1, seed)
        assert len(split.second) == 100
        assert "cluster" not in split.second


def test_single_items_split_to_the_share_exactly() -> None:
    groups = [str(i) for i in range(1000)]
    assert len(split_by_group(groups, groups, 0.1, 3).second) == 100


def test_the_seed_changes_the_split() -> None:
    groups = [str(i) for i in range(100)]
    assert split_by_group(groups, groups, 0.5, 0) != split_by_group(groups, groups, 0.5, 1)


def test_nothing_to_split_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        split_by_group([], [], 0.5, 0)
    with pytest.raises(ValueError, match="one length"):
        split_by_group([1], [], 0.5, 0)


def test_unit_hash_is_uniform() -> None:
    values = [unit_hash(str(i), 7) for i in range(5000)]
    assert all(0.0 <= value < 1.0 for value in values)
    # Fixed inputs: this either always passes or never. A uniform hash fails with chance 1e-3.
    assert kstest(values, "uniform").pvalue > 1e-3


@settings(deadline=None)
@given(st.text(), st.integers(0, 2**32 - 1))
def test_unit_hash_takes_any_text(key: str, seed: int) -> None:
    assert 0.0 <= unit_hash(key, seed) < 1.0


def test_equal_texts_stay_on_one_side_of_tune_and_check() -> None:
    queries = [
        LabelledQuery(
            id=str(i),
            messages=(Message(role="user", content=f"text {i % 40}"),),
            reference="good",
        )
        for i in range(120)
    ]
    tune, check = tune_check_split(queries, 0.25, 0)
    assert len(check) == 30
    assert not {q.last_user_text for q in tune} & {q.last_user_text for q in check}


def of_text(name: str, text: str) -> LabelledQuery:
    return LabelledQuery(id=name, messages=(Message(role="user", content=text),), reference="good")


def test_near_copies_stay_on_one_side_of_tune_and_check() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices([f"w{i}" for i in range(300)], k=14)) for _ in range(40)]
    queries = [of_text(f"a{i}", text) for i, text in enumerate(texts)]
    queries += [of_text(f"b{i}", text.upper() + "!  indeed") for i, text in enumerate(texts)]
    for seed in range(5):
        tune, check = tune_check_split(queries, 0.25, seed)
        assert len(check) == 20
        assert not {q.id[1:] for q in tune} & {q.id[1:] for q in check}


def test_texts_that_are_all_nearly_the_same_are_split_all_the_same() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    queries = [of_text(str(i), text + " x" * i) for i in range(3)]
    tune, check = tune_check_split(queries, 0.3, 0)
    assert tune
    assert check
