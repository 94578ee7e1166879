"""What a judge's verdicts are worth: exact error rates, simulated coverage, naive references."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, fisher_exact, norm

from stillhouse.core.judging import (
    GoldCounts,
    PairOutcome,
    corrected_rate,
    gold_counts,
    joined,
    judge_quality,
    no_better_than_chance,
    noise_floor,
    pair_quality,
    position_bias,
)
from stillhouse.core.statistics import wilson

PERFECT = GoldCounts(30, 30, 30, 30)
ALWAYS_GOOD = GoldCounts(30, 30, 30, 0)
ALWAYS_BAD = GoldCounts(30, 0, 30, 30)


def test_counts() -> None:
    truth = [True, True, True, False, False]
    assert gold_counts(truth, [True, True, False, False, True]) == GoldCounts(3, 2, 2, 1)
    with pytest.raises(ValueError):
        gold_counts([True], [])


def test_a_perfect_judge_and_judges_that_say_one_thing() -> None:
    assert judge_quality(PERFECT).youden.estimate == 1
    assert not no_better_than_chance(judge_quality(PERFECT))
    for constant in (ALWAYS_GOOD, ALWAYS_BAD):
        quality = judge_quality(constant)
        assert quality.youden.estimate == 0
        assert quality.p_value == 1
        assert no_better_than_chance(quality)


def test_a_judge_that_is_wrong_on_purpose_is_refused() -> None:
    assert no_better_than_chance(judge_quality(GoldCounts(30, 0, 30, 0)))


@pytest.mark.parametrize(("size", "refused"), [(3, True), (4, False)])
def test_a_perfect_judge_needs_four_of_each(size: int, refused: bool) -> None:
    # Fisher: 1 / C(6, 3) = 0.05 and 1 / C(8, 4) = 0.014 against 0.025.
    found = judge_quality(GoldCounts(size, size, size, size))
    assert no_better_than_chance(found) is refused


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_quality_against_references(good: int, bad: int, data: st.DataObject) -> None:
    counts = GoldCounts(good, data.draw(st.integers(0, good)), bad, data.draw(st.integers(0, bad)))
    quality = judge_quality(counts)
    table = [
        [counts.true_good, good - counts.true_good],
        [bad - counts.true_bad, counts.true_bad],
    ]
    assert quality.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert quality.sensitivity == wilson(counts.true_good, good)
    assert quality.specificity == wilson(counts.true_bad, bad)
    assert quality.youden.estimate == pytest.approx(
        quality.sensitivity.estimate + quality.specificity.estimate - 1
    )
    assert -1 <= quality.youden.low <= quality.youden.high <= 1


@pytest.mark.parametrize(("good", "bad"), [(5, 5), (9, 13), (30, 30), (60, 15)])
def test_a_judge_that_guesses_passes_in_at_most_2_5_percent(good: int, bad: int) -> None:
    """Summed over all outcomes, whatever share it calls good. The bound is Fisher's."""
    passing = {
        (a, b)
        for a in range(good + 1)
        for b in range(bad + 1)
        if not no_better_than_chance(judge_quality(GoldCounts(good, a, bad, bad - b)))
    }
    assert passing
    for share in np.linspace(0.02, 0.98, 25):
        p_good = binom.pmf(np.arange(good + 1), good, share)
        p_bad = binom.pmf(np.arange(bad + 1), bad, share)
        assert sum(p_good[a] * p_bad[b] for a, b in passing) <= 0.025


def test_a_useful_judge_is_rarely_refused() -> None:
    """Sensitivity and specificity 0.8 on 30 + 30 gold answers pass in over 99% (exactly summed)."""
    p = binom.pmf(np.arange(31), 30, 0.8)
    power = sum(
        p[a] * p[b]
        for a in range(31)
        for b in range(31)
        if not no_better_than_chance(judge_quality(GoldCounts(30, a, 30, b)))
    )
    assert power > 0.99


def naive_lang_reiczigel(k: int, n: int, gold: GoldCounts, level: float) -> tuple[float, float]:
    """Written from the paper's formulas, step by step."""
    z = float(norm.ppf((1 + level) / 2))
    n2, k2 = n + z**2, k + z**2 / 2
    se = (gold.true_good + 1) / (gold.good + 2)
    sp = (gold.true_bad + 1) / (gold.bad + 2)
    p = k2 / n2
    pi = (p + sp - 1) / (se + sp - 1)
    v_se, v_sp = se * (1 - se) / (gold.good + 2), sp * (1 - sp) / (gold.bad + 2)
    error = math.sqrt(p * (1 - p) / n2 + v_se * pi**2 + v_sp * (1 - pi) ** 2) / abs(se + sp - 1)
    middle = pi + 2 * z**2 * (pi * v_se - (1 - pi) * v_sp)
    return max(0.0, middle - z * error), min(1.0, middle + z * error)


def test_the_corrected_rate_against_the_formula() -> None:
    for k, n, gold in [
        (27, 650, GoldCounts(100, 50, 200, 199)),
        (140, 200, GoldCounts(60, 54, 40, 32)),
        (200, 200, GoldCounts(60, 54, 40, 32)),
    ]:
        found = corrected_rate(k, n, gold)
        low, high = naive_lang_reiczigel(k, n, gold, 0.95)
        se, sp = gold.true_good / gold.good, gold.true_bad / gold.bad
        raw = min(1.0, max(0.0, (k / n + sp - 1) / (se + sp - 1)))
        assert found.estimate == pytest.approx(raw)
        assert found.low == pytest.approx(min(low, raw))
        assert found.high == pytest.approx(max(high, raw))


def test_a_perfect_judge_corrects_nothing() -> None:
    gold = GoldCounts(10**7, 10**7, 10**7, 10**7)
    found, raw = corrected_rate(60, 200, gold), wilson(60, 200)
    assert found.estimate == pytest.approx(0.3)
    assert found.low == pytest.approx(raw.low, abs=0.003)
    assert found.high == pytest.approx(raw.high, abs=0.003)


@pytest.mark.parametrize(
    ("called", "n", "gold"),
    [
        (1, 0, PERFECT),
        (3, 2, PERFECT),
        (1, 2, GoldCounts(0, 0, 3, 3)),
        (1, 2, ALWAYS_GOOD),
        # Shrinking the small class outweighs the other: 0.8 + 0.3 - 1 > 0, then 0.65 + 0.3 - 1 < 0.
        (1, 2, GoldCounts(2, 2, 1000, 100)),
    ],
)
def test_what_cannot_be_corrected(called: int, n: int, gold: GoldCounts) -> None:
    with pytest.raises(ValueError):
        corrected_rate(called, n, gold)


@pytest.mark.parametrize("rate", [0.05, 0.6, 0.9])
def test_the_corrected_interval_holds_the_truth(rate: float) -> None:
    """Simulated coverage, with the uncertainty of the gold set in it.

    If the coverage is 94% or more, 2,000 runs show less than 91.9% with a chance below 1e-4
    (normal bound at 3.9 standard errors of 0.53 points). The raw rate's own interval fails.
    """
    rng = np.random.default_rng(7)
    se, sp, n, runs = 0.85, 0.9, 500, 2000
    held = held_raw = 0
    for _ in range(runs):
        good = rng.binomial(n, rate)
        called = rng.binomial(good, se) + rng.binomial(n - good, 1 - sp)
        gold = GoldCounts(60, int(rng.binomial(60, se)), 60, int(rng.binomial(60, sp)))
        found = corrected_rate(int(called), n, gold)
        raw = wilson(int(called), n)
        held += found.low <= rate <= found.high
        held_raw += raw.low <= rate <= raw.high
    assert held / runs >= 0.919
    assert held_raw / runs < 0.75


def test_two_orders_make_one_outcome() -> None:
    assert joined("first", "second") == "first"
    assert joined("second", "first") == "second"
    assert joined("first", "first") == "followed_first"
    assert joined("second", "second") == "followed_second"
    assert joined("tie", "tie") == joined("tie", "first") == joined("second", "tie") == "tie"
    assert joined(None, "first") == joined("tie", None) == "unreadable"


def test_pairs() -> None:
    outcomes: list[PairOutcome] = ["first"] * 14 + ["tie"] * 4 + ["second"] * 2
    found = pair_quality(outcomes)
    assert (found.right.estimate, found.wrong.estimate) == (0.7, 0.1)
    assert found.net.estimate == pytest.approx(0.6)
    assert found.p_value == pytest.approx(sum(math.comb(16, k) for k in range(3)) / 2**16)
    assert not no_better_than_chance(found)


@pytest.mark.parametrize("kind", ["followed_first", "followed_second", "tie", "unreadable"])
def test_a_judge_that_always_says_a_is_refused(kind: PairOutcome) -> None:
    found = pair_quality([kind] * 200)
    assert found.net.estimate == 0
    assert found.p_value == 1
    assert no_better_than_chance(found)


@pytest.mark.parametrize("pairs", [6, 20, 31])
def test_a_pairwise_judge_that_guesses_passes_in_at_most_2_5_percent(pairs: int) -> None:
    """Summed over all outcomes, for any share of ties: right and wrong are equally likely."""
    for ties in (0.0, 0.3, 0.7):
        chance = 0.0
        for decided in range(pairs + 1):
            for right in range(decided + 1):
                outcomes: list[PairOutcome] = (
                    ["first"] * right + ["second"] * (decided - right) + ["tie"] * (pairs - decided)
                )
                if not no_better_than_chance(pair_quality(outcomes)):
                    chance += binom.pmf(decided, pairs, 1 - ties) * binom.pmf(right, decided, 0.5)
        assert chance <= 0.025


def test_position_bias() -> None:
    assert position_bias([]) is None
    assert position_bias(["unreadable"]) is None
    fair = position_bias(["first", "second", "tie", "followed_first", "followed_second"])
    assert fair is not None
    assert (fair.followed.estimate, fair.p_value) == (0.4, 1.0)
    none = position_bias(["first", "tie"])
    assert none is not None
    assert none.first is None
    leaning = position_bias(["followed_first"] * 9 + ["followed_second"] + ["first"] * 10)
    assert leaning is not None
    assert leaning.first is not None
    assert leaning.first.estimate == 0.9
    assert leaning.p_value == pytest.approx(2 * (1 + 10) / 2**10)


def test_a_judge_without_position_bias_is_called_biased_in_at_most_5_percent() -> None:
    """The sign test is exact: summed over the Binomial(n, 1/2) of who is followed."""
    for n in (5, 12, 40):
        chance = 0.0
        for first in range(n + 1):
            outcomes: list[PairOutcome] = ["followed_first"] * first
            outcomes += ["followed_second"] * (n - first)
            found = position_bias(outcomes)
            assert found is not None
            chance += binom.pmf(first, n, 0.5) * (found.p_value < 0.05)
        assert chance <= 0.05


def test_noise_floor() -> None:
    assert noise_floor([]) is None
    found = noise_floor(["first", "second", "tie", "followed_first", "unreadable"])
    assert found is not None
    assert (found.estimate, found.n) == (0.5, 4)


@given(st.lists(st.sampled_from(["first", "second", "tie", "followed_first", "unreadable"])))
def test_swapping_all_pairs_swaps_right_and_wrong(outcomes: list[PairOutcome]) -> None:
    if not outcomes:
        return
    swap: dict[PairOutcome, PairOutcome] = {"first": "second", "second": "first"}
    other = pair_quality([swap.get(outcome, outcome) for outcome in outcomes])
    found = pair_quality(outcomes)
    assert (found.right, found.wrong) == (other.wrong, other.right)
    assert found.net.estimate == pytest.approx(-other.net.estimate)
    assert Counter(outcomes).total() == found.net.n
