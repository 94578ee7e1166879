"""Tokens per second of several ways to answer the same prompts, in turns; the best draft length.

The ways take turns on each prompt, in an order that moves on from prompt to prompt, so that a
machine that slows down slows all alike. A draft length is chosen on other prompts than it is
reported on: the best of several noisy figures is flattered where it was chosen. Knows callables;
knows no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stillhouse.compress.speculate_counts import Resamples
from stillhouse.core.bootstrap import bootstrap_ratio
from stillhouse.core.statistics import Interval


class Timed(NamedTuple):
    """One answer, timed."""

    tokens: int
    seconds: float
    passes: int | None = None  # of the target, where the runtime tells


Answer = Callable[[int], Timed]  # takes the number of a prompt


class Turns(NamedTuple):
    """All measurements: `timed[way][prompt]` holds its repeats."""

    timed: Mapping[str, Sequence[Sequence[Timed]]]

    def tokens_per_second(self, way: str) -> float:
        """Tokens of all answers over the seconds of all."""
        flat = [t for row in self.timed[way] for t in row]
        return sum(t.tokens for t in flat) / max(sum(t.seconds for t in flat), 1e-12)

    def tokens_a_pass(self, way: str) -> float | None:
        """Tokens over passes of the target."""
        flat = [t for row in self.timed[way] for t in row]
        passes = sum(t.passes or 0 for t in flat)
        return sum(t.tokens for t in flat) / passes if passes else None

    def speedup(self, way: str, base: str, groups: Sequence[Hashable], how: Resamples) -> Interval:
        """Seconds a token of `base` over those of `way`, its interval over prompts (of each the
        median repeat)."""
        top = np.array([_seconds_a_token(row) for row in self.timed[base]])
        bottom = np.array([_seconds_a_token(row) for row in self.timed[way]])
        weight = np.array([np.median([t.tokens for t in row]) for row in self.timed[base]])
        several = len(set(groups)) > 1
        bounds = bootstrap_ratio(
            top * weight,
            bottom * weight,
            how.confidence,
            resamples=how.resamples,
            seed=how.seed,
            groups=groups if several else None,
        )
        low, high = min(bounds.low, bounds.estimate), max(bounds.high, bounds.estimate)
        return Interval(estimate=bounds.estimate, low=low, high=high, n=len(top))


def _seconds_a_token(row: Sequence[Timed]) -> float:
    return float(np.median([t.seconds / max(t.tokens, 1) for t in row]))


def take_turns(
    ways: Mapping[str, Answer],
    prompts: Sequence[int],
    repeats: int,
    advance: Callable[[], None] = lambda: None,
) -> Turns:
    """Time every way on every prompt, after one answer of each that is not counted.

    Raises:
        ValueError: nothing to time.
    """
    if not ways or not prompts or repeats < 1:
        raise ValueError("speed needs a way to answer, a prompt and a repeat")
    names = list(ways)
    for name in names:
        ways[name](prompts[0])
    timed: dict[str, list[list[Timed]]] = {name: [[] for _ in prompts] for name in names}
    turn = 0
    for _ in range(repeats):
        for place, prompt in enumerate(prompts):
            for shift in range(len(names)):
                name = names[(turn + shift) % len(names)]
                timed[name][place].append(ways[name](prompt))
            turn += 1
            advance()
    return Turns(timed)


def fastest(turns: Turns, ways: Sequence[str]) -> str:
    """The way with most tokens per second; the first of equals."""
    return max(ways, key=turns.tokens_per_second)
