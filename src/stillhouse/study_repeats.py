"""Several trainings of one variant, which differ in their seed alone: their variants and means.

A training's luck (first weights, order, dropout) moves a student as another draw of samples does.
The mean over trainings is steadier; its interval here is over samples, of each sample's mean over
the trainings, and how much they differ among themselves is said beside it. Knows scores and
variants; trains and judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stillhouse.core.recipe import Recipe
from stillhouse.core.statistics import Interval, proportion
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.studies import Training
from stillhouse.variants import Ran, Variant, varied


def seeds_of(recipe: Recipe, repeats: int) -> list[int]:
    """The recipe's training seed, and those after it."""
    return [(recipe.training_seed + repeat) % 2**32 for repeat in range(repeats)]


def repeated(variant: Variant, repeats: int) -> list[Variant]:
    """The variant as it is, then with the seeds after its own.

    Compressed forms and drafts are made of the first alone.
    """
    plain = variant.recipe.model_copy(update={"compress": None})
    return [variant] + [
        Variant(f"{variant.name}-seed{seed}", varied(plain, {"train": {"seed": seed}}))
        for seed in seeds_of(variant.recipe, repeats)[1:]
    ]


def training(ran: Ran) -> Training:
    """What a study says of one training among several."""
    report = ran.report
    return Training(
        seed=ran.variant.recipe.training_seed,
        folder=ran.variant.name,
        score=report.student.score,
        verdict=report.gate.verdict,
        train_seconds=report.seconds["train"],
    )


def each_mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean over trainings of each sample's score: one list a training, all of one length."""
    return [float(value) for value in np.mean(np.asarray(rows, dtype=np.float64), axis=0)]


def deviation(rows: Sequence[Sequence[float]]) -> float:
    """Standard deviation (n - 1) of the trainings' mean scores; at least two."""
    return float(np.std([np.mean(row) for row in rows], ddof=1))


def mean_of(scores: Sequence[float], how: Resampling) -> Interval:
    """The mean of samples' scores, with its interval over samples."""
    return proportion(
        scores, how.confidence, resamples=how.resamples, seed=how.seed, groups=how.groups
    )


def over_words(n: int, repeats: int) -> str:
    """What the intervals of scores are over, in a sentence."""
    if repeats == 1:
        return (
            f"intervals are over the {n:,} samples, of one training each: how much another seed "
            "would move a student is in none of them"
        )
    return (
        f"scores are means of {repeats} trainings that differ in their seed; their intervals are "
        f"over the {n:,} samples, of each sample's mean over these trainings: what further seeds "
        "would add is in none of them, the deviation between trainings says how much they differ"
    )
