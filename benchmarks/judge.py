"""A judge's corrected rate and the refusal of useless judges, over judges of known errors.

    python benchmarks/judge.py

Coverage: how often the 95% interval of the corrected rate, and that of the raw one, holds the true
share of good answers. Refusal: how often a judge that guesses passes the gold set, and how often a
useful one is refused; both summed over all outcomes, not simulated.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from machine_line import save
from scipy.stats import binom

from stillhouse.core.judging import GoldCounts, corrected_rate, judge_quality, no_better_than_chance
from stillhouse.core.statistics import wilson

RUNS: Final = 4000
ANSWERS: Final = 1000
JUDGES: Final = ((0.95, 0.9), (0.85, 0.7), (0.7, 0.7))
GOLD: Final = (30, 100)
RATES: Final = (0.3, 0.7, 0.95)


def coverage(errors: tuple[float, float], gold: int, rate: float, seed: int) -> dict[str, Any]:
    """Coverage of both intervals, over runs whose judge the gold set does not refuse."""
    rng = np.random.default_rng(seed)
    held = held_raw = kept = 0
    width = 0.0
    for _ in range(RUNS):
        counts = GoldCounts(
            gold, int(rng.binomial(gold, errors[0])), gold, int(rng.binomial(gold, errors[1]))
        )
        if no_better_than_chance(judge_quality(counts)):
            continue
        kept += 1
        good = rng.binomial(ANSWERS, rate)
        called = int(rng.binomial(good, errors[0]) + rng.binomial(ANSWERS - good, 1 - errors[1]))
        found, raw = corrected_rate(called, ANSWERS, counts), wilson(called, ANSWERS)
        held += found.low <= rate <= found.high
        held_raw += raw.low <= rate <= raw.high
        width += found.high - found.low
    return {
        "sensitivity": errors[0],
        "specificity": errors[1],
        "gold_of_each": gold,
        "rate": rate,
        "judges_kept": kept / RUNS,
        "corrected_covers": held / kept,
        "raw_covers": held_raw / kept,
        "corrected_width": width / kept,
    }


def passing(gold: int, sensitivity: float, specificity: float) -> float:
    """Chance that a judge passes a gold set of `gold` good and as many bad answers."""
    p_good = binom.pmf(np.arange(gold + 1), gold, sensitivity)
    p_bad = binom.pmf(np.arange(gold + 1), gold, specificity)
    return float(
        sum(
            p_good[a] * p_bad[b]
            for a in range(gold + 1)
            for b in range(gold + 1)
            if not no_better_than_chance(judge_quality(GoldCounts(gold, a, gold, b)))
        )
    )


def main() -> None:
    """Measure and save."""
    rows = [
        coverage(errors, gold, rate, number)
        for number, (errors, gold, rate) in enumerate(
            (errors, gold, rate) for errors in JUDGES for gold in GOLD for rate in RATES
        )
    ]
    save(
        "judge",
        "python benchmarks/judge.py",
        {
            "answers": ANSWERS,
            "runs": RUNS,
            "coverage": rows,
            "a_guessing_judge_passes": {
                str(gold): max(passing(gold, s, 1 - s) for s in np.linspace(0.05, 0.95, 19))
                for gold in (10, 30)
            },
            "a_useful_judge_passes": {
                f"{gold} of each, {se} and {sp}": passing(gold, se, sp)
                for gold in (10, 30)
                for se, sp in JUDGES
            },
        },
    )


if __name__ == "__main__":
    main()
