"""How often an experiment promotes wrongly, and how soon it decides, over simulated experiments.

    python benchmarks/gateway_statistics.py [--repetitions 2000]

Each experiment is looked at after every 100 requests, up to 20,000. At the margin exactly a
promotion is wrong. Beside it stands a z-test of the same hypothesis, repeated at the same looks
from 500 requests on: what one gets who reads a dashboard and stops when it looks significant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from machine_line import save

from stillhouse.core.anytime_margin import Floats, Margin, margin_of
from stillhouse.core.anytime_replay import Decided, Flags, Levels, replay_arms, replay_pairs
from stillhouse.core.statistics import wilson

MOST: Final = 20_000
LOOK: Final = 100
FIRST: Final = 4  # looks that the z-test leaves out
CHUNK: Final = 250
LEVELS: Final = Levels(0.05, 0.0125)
SLICE: Final = 0.02  # always the teacher's
TEACHER: Final = 0.9


class World(NamedTuple):
    """One kind of experiment. `draw` gives (student, teacher) scores of R experiments. [N, R]"""

    name: str
    margin: Margin
    share: float | None  # of the student; None: both answer every request
    equal: Callable[[np.random.Generator, int], tuple[Floats, Floats]]
    at_margin: Callable[[np.random.Generator, int], tuple[Floats, Floats]]


def coins(student: float, teacher: float) -> Callable[..., tuple[Floats, Floats]]:
    """Right or wrong, independently."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        found = rng.random((2, MOST, count), dtype=np.float32)
        return (found[0] < student).astype(float), (found[1] < teacher).astype(float)

    return draw


def alike(kept: float) -> Callable[..., tuple[Floats, Floats]]:
    """The student fails where its teacher does, and in 1 - kept of the rest; where kept is 1, half
    of its failures are others than its teacher's."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        found = rng.random((2, MOST, count), dtype=np.float32)
        teacher = (found[0] < TEACHER).astype(float)
        if kept < 1:
            return teacher * (found[1] < kept), teacher
        # P(student right) = 0.9: 0.95 of what the teacher has right, 0.45 of what it has wrong
        return (found[1] < np.where(teacher > 0, 0.95, 0.45)).astype(float), teacher

    return draw


def graded(factor: float) -> Callable[..., tuple[Floats, Floats]]:
    """Scores between 0 and 1, Beta(9, 1)."""

    def draw(rng: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        student, teacher = rng.beta(9, 1, (2, MOST, count))
        return factor * student, teacher

    return draw


RELATIVE: Final = margin_of("relative", 0.05)
ABSOLUTE: Final = margin_of("absolute", 0.05)
WORLDS: Final = (
    World("A/B, 5% share, relative", RELATIVE, 0.05, coins(0.9, 0.9), coins(0.855, 0.9)),
    World("A/B, 5% share, absolute", ABSOLUTE, 0.05, coins(0.9, 0.9), coins(0.85, 0.9)),
    World("A/B, 25% share, relative", RELATIVE, 0.25, coins(0.9, 0.9), coins(0.855, 0.9)),
    World("A/B, 5% share, graded", RELATIVE, 0.05, graded(1.0), graded(0.95)),
    World("pairs, independent", RELATIVE, None, coins(0.9, 0.9), coins(0.855, 0.9)),
    World("pairs, alike", RELATIVE, None, alike(1.0), alike(0.95)),
    World("pairs, graded", RELATIVE, None, graded(1.0), graded(0.95)),
)


def treated_of(rng: np.random.Generator, share: float, count: int) -> Flags:
    """Who is answered by the student. [N, R]"""
    return rng.random((MOST, count), dtype=np.float32) < (1 - SLICE) * share


def decided(world: World, rng: np.random.Generator, draw: Any, count: int) -> tuple[Decided, Flags]:
    """When the tests decide, and whether the repeated z-test ever says yes."""
    student, teacher = draw(rng, count)
    if world.share is None:
        slack = world.margin.slack(student, teacher)
        n = np.arange(LOOK, MOST + 1, LOOK)[:, None]
        sums = slack.cumsum(axis=0)[LOOK - 1 :: LOOK]
        squares = (slack**2).cumsum(axis=0)[LOOK - 1 :: LOOK]
        variance = (squares / n - (sums / n) ** 2) / n
        said = sums / n > 1.6449 * np.sqrt(np.maximum(variance, 1e-12))
        return replay_pairs(student, teacher, world.margin, LEVELS), said[FIRST:].any(axis=0)
    treated = treated_of(rng, world.share, count)
    score = np.where(treated, student, teacher)
    share = (1 - SLICE) * world.share
    found = replay_arms(treated, score, world.margin, LEVELS, share)
    return found, repeated_z(treated, score, world.margin)


def repeated_z(treated: Flags, score: Floats, margin: Margin) -> Flags:
    """A z-test of two means, repeated at every look, by its book. [R]"""
    arms = np.stack([treated, ~treated])  # [2, N, R]
    n = np.maximum(arms.cumsum(axis=1)[:, LOOK - 1 :: LOOK], 1)
    mean = (arms * score).cumsum(axis=1)[:, LOOK - 1 :: LOOK] / n
    square = (arms * score**2).cumsum(axis=1)[:, LOOK - 1 :: LOOK] / n
    variance = (square - mean**2) / n
    slack = mean[0] - margin.keep * mean[1] + margin.shift
    spread = np.sqrt(np.maximum(variance[0] + margin.keep**2 * variance[1], 1e-12))
    found: Flags = (slack > 1.6449 * spread)[FIRST:].any(axis=0)
    return found


def measured(world: World, repetitions: int, seed: int) -> dict[str, Any]:
    """Both error rates at the margin, and the times of an equal student."""
    rng = np.random.default_rng(seed)
    wrong = z_wrong = 0
    at: list[float] = []
    back = 0
    for _ in range(repetitions // CHUNK):
        found, said = decided(world, rng, world.at_margin, CHUNK)
        wrong += int((found.better <= MOST).sum())
        z_wrong += int(said.sum())
        found, _ = decided(world, rng, world.equal, CHUNK)
        looks = np.ceil(found.better / LOOK) * LOOK
        at += np.where(looks <= MOST, looks, np.inf).tolist()
        back += int((found.worse < found.better).sum())
    n = repetitions // CHUNK * CHUNK
    low, middle, high = (float(one) for one in np.quantile(at, [0.1, 0.5, 0.9], method="lower"))
    return {
        "world": world.name,
        "repetitions": n,
        "false_promotion": wilson(wrong, n).to_json(),
        "repeated_z_false_promotion": wilson(z_wrong, n).to_json(),
        "equal": {
            "promoted_within_20000": float(np.mean(np.isfinite(at))),
            "rolled_back": back / n,
            "requests_p10": low,
            "requests_median": middle,
            "requests_p90": high if np.isfinite(high) else None,
        },
    }


def users(repetitions: int, seed: int) -> dict[str, Any]:
    """Users who ask 20 times each, all right or all wrong: by user, and request by request."""
    rng, number, heavy = np.random.default_rng(seed), 600, 20
    teacher = (rng.random((number, repetitions)) < TEACHER).astype(float)
    student = teacher * (rng.random((number, repetitions)) < 0.95)
    by_user = replay_pairs(student, teacher, RELATIVE, LEVELS).better <= number
    short = number // heavy
    again = [np.repeat(one[:short], heavy, axis=0) for one in (student, teacher)]
    by_request = replay_pairs(again[0], again[1], RELATIVE, LEVELS).better <= number
    return {
        "repetitions": repetitions,
        "false_promotion_by_user": float(by_user.mean()),
        "false_promotion_by_request": float(by_request.mean()),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    options = parser.parse_args()
    rows = [measured(world, options.repetitions, seed) for seed, world in enumerate(WORLDS)]
    save(
        "gateway_statistics",
        f"python benchmarks/gateway_statistics.py --repetitions {options.repetitions}",
        {
            "z_from": (FIRST + 1) * LOOK,
            "looks": f"after every {LOOK} of {MOST} requests",
            "alpha": LEVELS.alpha,
            "experiments": rows,
            "users_who_ask_20_times": users(options.repetitions, 99),
        },
    )


if __name__ == "__main__":
    main()
