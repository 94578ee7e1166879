"""What speculative decoding can be expected to give: equations, no measurement.

A draft model proposes g tokens one after another; the target reads them in one pass, keeps those up
to the first that it refuses, and adds one of its own. With a the chance that a drafted token is
accepted given that all before it were, alike for all positions, and c the time of one draft step
over one of the target, Leviathan et al. 2023 (arXiv:2211.17192) give

    tokens a round   E(a, g) = (1 - a^(g+1)) / (1 - a)         (their equation 1)
    speed-up         S = E(a, g) / (g c + 1)                   (their theorem 3.8)

Their model takes a target pass over g + 1 tokens to cost what one over a single token does. That
holds where weights are read from slow memory; on a CPU it does not, so `fit_cost` finds what a
round really costs. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BISECTIONS = 60


class RoundCost(NamedTuple):
    """The time of a round in target steps: `fixed` + `per_token` * g.

    `per_token` is the fitted c: a draft step and what one more token costs the target's pass.
    `fixed` is above 1 where a round has costs that plain decoding has not.
    """

    fixed: float
    per_token: float


def expected_tokens(acceptance: float, length: int) -> float:
    """E(a, g): tokens that one pass of the target yields, its own included."""
    _check(acceptance, length)
    if acceptance == 1.0:
        return float(length + 1)
    return (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)


def expected_speedup(acceptance: float, length: int, cost: float) -> float:
    """S(a, g, c) of Leviathan et al. 2023, theorem 3.8; 1 without a draft (g = 0)."""
    if cost < 0:
        raise ValueError(f"a cost must not be below 0, got {cost}")
    return expected_tokens(acceptance, length) / (length * cost + 1.0)


def expected_speedup_at(acceptance: float, length: int, cost: RoundCost) -> float:
    """The same with the fitted cost of a round."""
    return expected_tokens(acceptance, length) / (cost.fixed + cost.per_token * length)


def tokens_by_position(rates: Sequence[float]) -> float:
    """Tokens a round where each position has its own rate: 1 + sum_i prod_{j <= i} a_j."""
    return 1.0 + float(np.cumprod(np.asarray(rates, dtype=np.float64)).sum())


def break_even_acceptance(length: int, cost: float) -> float | None:
    """The least a at which drafts of this length do not slow down; `None` where none does.

    At g = 1 it is c itself: (1 + a) / (1 + c) = 1.
    """
    if length < 1:
        raise ValueError(f"a draft has at least one token, got {length}")
    if expected_speedup(1.0, length, cost) < 1.0:
        return None
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if expected_speedup(middle, length, cost) >= 1.0:
            high = middle
        else:
            low = middle
    return high


def break_even_cost(acceptance: float, length: int) -> float:
    """The most c at which drafts of this length do not slow down: (E(a, g) - 1) / g."""
    if length < 1:
        raise ValueError(f"a draft has at least one token, got {length}")
    return (expected_tokens(acceptance, length) - 1.0) / length


def best_length(acceptance: float, cost: float, longest: int) -> int:
    """The length of most expected speed-up up to `longest`, 0 where no draft pays; the shortest of
    equals."""
    speedups = [expected_speedup(acceptance, g, cost) for g in range(longest + 1)]
    return int(np.argmax(speedups))


def fit_cost(lengths: Sequence[int], round_costs: Sequence[float]) -> RoundCost:
    """Least squares of the measured cost of a round, in target steps, over the draft length.

    `round_costs[i]` is (tokens a round) / (measured speed-up) at `lengths[i]`.

    Raises:
        ValueError: fewer than two lengths.
    """
    if len(set(lengths)) < 2 or len(lengths) != len(round_costs):
        raise ValueError("the cost of a round is fitted on two draft lengths or more")
    slope, intercept = np.polyfit(np.asarray(lengths, float), np.asarray(round_costs, float), 1)
    return RoundCost(float(intercept), float(slope))


def _check(acceptance: float, length: int) -> None:
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"an acceptance rate lies within [0, 1], got {acceptance}")
    if length < 0:
        raise ValueError(f"a draft cannot have {length} tokens")
