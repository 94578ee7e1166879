"""The choice of queries: ranks, budget, twins, chance, and that it is a function of its input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.loop_retrain import ChooseSection
from stillhouse.core.selection import Vectors
from stillhouse.retrain.choose import Candidate, choose, ranks, worth_of


def spread(count: int, seed: int = 0, size: int = 16) -> Vectors:
    """Vectors that lie apart."""
    rows = np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain(count: int, usd: float = 0.0) -> list[Candidate]:
    return [Candidate(f"q{n}", usd) for n in range(count)]


NONE = np.empty((0, 16), dtype=np.float32)
WORTH = ChooseSection(chance=0)


def test_ranks_share_ties_and_put_the_unknown_in_the_middle() -> None:
    found = ranks(np.array([0.1, np.nan, 0.9, 0.1, 0.5]))
    # Naively: of 4 known values the ranks are 1.5, 4, 1.5, 3.
    assert found.tolist() == [1 / 4, 0.5, 3.5 / 4, 1 / 4, 2.5 / 4]
    assert ranks(np.array([np.nan, np.nan])).tolist() == [0.5, 0.5]


def test_worth_is_the_weighted_mean_of_the_ranks() -> None:
    candidates = [Candidate("a", 0, 1.0, 0.2), Candidate("b", 0, 0.0, 0.9), Candidate("c", 0)]
    novelty = np.array([0.3, 0.1, 0.2])
    section = ChooseSection(disagreement=2, novelty=1, uncertainty=0)
    found = worth_of(candidates, novelty, section)
    disagreement, new = ranks(np.array([1, 0, np.nan])), ranks(novelty)
    assert found == pytest.approx((2 * disagreement + new) / 3)
    # A signal that nobody has says nothing.
    alone = worth_of(plain(3), novelty, section)
    assert alone == pytest.approx(new)


def test_disagreement_novelty_and_uncertainty_each_decide_alone() -> None:
    vectors = spread(40)
    known = vectors[:20]
    candidates = [
        Candidate(f"q{n}", 0.0, float(n in (3, 5)), 0.9 if n in (7, 9) else 0.1) for n in range(40)
    ]
    by = {
        "disagreement": {3, 5},
        "uncertainty": {7, 9},
    }
    for name, wanted in by.items():
        weights = {"disagreement": 0.0, "novelty": 0.0, "uncertainty": 0.0, name: 1.0}
        section = ChooseSection(chance=0, duplicate=1.0, **weights)
        found = choose(candidates, vectors, NONE, section, count=2)
        assert set(found.indices) == wanted
    section = ChooseSection(chance=0, disagreement=0, uncertainty=0, duplicate=0.9)
    found = choose(candidates, vectors, known, section, count=10)
    assert min(found.indices) >= 20


def test_the_budget_is_never_crossed_and_what_is_free_is_always_there() -> None:
    candidates = [Candidate(f"q{n}", 0.0 if n % 5 == 0 else 0.3) for n in range(50)]
    found = choose(candidates, spread(50), NONE, WORTH, count=50, budget_usd=1.0)
    assert found.usd == pytest.approx(0.9)
    assert {n for n in range(50) if n % 5 == 0} <= set(found.indices)
    assert found.too_dear == 50 - 10 - 3


def test_near_twins_are_taken_once_and_known_ones_never() -> None:
    vectors = spread(30)
    twins = np.concatenate([vectors, vectors])
    found = choose(plain(60), twins, vectors[:10], WORTH, count=60)
    assert len(found.indices) == 20
    assert {index % 30 for index in found.indices} == set(range(10, 30))
    assert found.twins == 40


def test_chance_takes_its_share_whatever_the_signals_say() -> None:
    candidates = [Candidate(f"q{n}", 0.0, float(n < 100)) for n in range(400)]
    section = ChooseSection(chance=0.25, novelty=0, uncertainty=0, duplicate=1.0)
    found = choose(candidates, spread(400), NONE, section, count=80)
    assert len(found.indices) == 80
    assert 19 <= len(found.by_chance) <= 21
    assert all(found.indices[n] < 100 for n in range(80) if found.indices[n] not in found.by_chance)


@given(st.integers(0, 60), st.integers(0, 40), st.floats(0, 2), st.integers(0, 5))
def test_it_is_a_function_of_its_input(count: int, wanted: int, budget: float, seed: int) -> None:
    candidates = [Candidate(f"q{n}", 0.1 * (n % 3), n / 60, None) for n in range(count)]
    vectors = spread(count, seed)
    section = ChooseSection()
    one, two = (
        choose(candidates, vectors, NONE, section, count=wanted, budget_usd=budget, seed=seed)
        for _ in range(2)
    )
    assert one == two
    assert len(set(one.indices)) == len(one.indices) <= wanted
    assert one.usd <= budget + 1e-6
    # The order of the input does not matter.
    turned = choose(
        candidates[::-1], vectors[::-1], NONE, section, count=wanted, budget_usd=budget, seed=seed
    )
    names = {candidates[index].id for index in one.indices}
    assert {candidates[::-1][index].id for index in turned.indices} == names


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="3 candidates have 2 vectors"):
        choose(plain(3), spread(2), NONE, WORTH, count=1)


def test_a_section_without_any_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a weight above 0"):
        ChooseSection(disagreement=0, novelty=0, uncertainty=0)
