"""Statistics of sampled text: do answers drawn with a draft follow the target's own distribution?

Three tests, each of the hypothesis that every token x was drawn from the target's p(. | prefix):

- `leak_test` is sharp against what goes wrong in practice, a sampler that lets through too much of
  the draft's q. With A = {x: q(x) > p(x)} the indicator of x in A has mean p(A), exactly, whatever
  came before, so the sum of differences is a martingale of known variance. If a share w of the
  tokens came from q, its mean rises by w (q(A) - p(A)) = w TV(p, q), the most that any event can:
  no test of one event is sharper. The least w that is found with 90% is stated.
- `uniform_test` takes any other deviation that shows in the order of the tokens: with F the
  distribution function of p in that order and v uniform, u = F(x-) + v p(x) is uniform and
  independent of all before (Rosenblatt 1952); Kolmogorov-Smirnov.
- `same_distribution` compares short answers to one prompt under many seeds with those of the target
  alone, as whole strings: chi-square of homogeneity, its p-value from permutations, exact however
  rare the answers are.

Knows arrays; knows no model.

Shapes: N tokens, S answers, M permutations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import kstest

Floats = npt.NDArray[np.float64]
POWER: Final = 0.9
PERMUTATIONS: Final = 1999


class Drawn(NamedTuple):
    """What is known of each token that was drawn."""

    favoured: Floats  # [N] 1 where the draft believes in it more than the target does
    chance: Floats  # [N] p(A), the target's mass on all such tokens
    distance: Floats  # [N] TV(p, q), which is 1 - the chance that a drafted token is accepted
    uniform: Floats  # [N] u


class LeakTest(NamedTuple):
    """`leak` estimates the share of tokens that came from the draft instead of the target (0 where
    all is well, below 0 where its favourites are avoided); `detectable` is the least share that
    this test at this size finds with probability 90%."""

    p_value: float
    z: float
    leak: float
    detectable: float
    tokens: int


def leak_test(drawn: Drawn, significance: float) -> LeakTest | None:
    """Two-sided; `None` where draft and target agree everywhere, so that nothing can leak."""
    variance = float((drawn.chance * (1.0 - drawn.chance)).sum())
    distance = float(drawn.distance.sum())
    if variance <= 0.0 or distance <= 0.0:
        return None
    surplus = float((drawn.favoured - drawn.chance).sum())
    z = surplus / math.sqrt(variance)
    reach = float(ndtri(1.0 - significance / 2.0) + ndtri(POWER)) * math.sqrt(variance)
    return LeakTest(
        p_value=float(min(1.0, 2.0 * ndtr(-abs(z)))),
        z=z,
        leak=surplus / distance,
        detectable=min(1.0, reach / distance),
        tokens=len(drawn.chance),
    )


def uniform_test(drawn: Drawn) -> float:
    """p-value that the transformed tokens are uniform on [0, 1]."""
    return float(kstest(drawn.uniform, "uniform").pvalue)


def token_facts(
    p: Floats,  # [N, V] the target's
    q: Floats,  # [N, V] the draft's
    tokens: npt.NDArray[np.int64],  # [N]
    seed: int,
) -> Drawn:
    """What the tests need of each drawn token."""
    rows = np.arange(len(tokens))
    above = q > p
    mass = p.cumsum(-1)
    own = p[rows, tokens]
    v = np.random.default_rng(seed).random(len(tokens))
    u = np.clip(mass[rows, tokens] - own + v * own, 0.0, 1.0)
    return Drawn(
        above[rows, tokens].astype(np.float64),
        np.clip(np.where(above, p, 0.0).sum(-1), 0.0, 1.0),
        0.5 * np.abs(p - q).sum(-1),
        u,
    )


def joined(parts: Sequence[Drawn]) -> Drawn:
    """The facts of several answers as one."""
    return Drawn(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def same_distribution(a: Sequence[Hashable], b: Sequence[Hashable], seed: int = 0) -> float:
    """Permutation p-value that two samples of answers are of one distribution.

    (1 + #{permuted >= seen}) / (1 + M) holds its level for any sample (Phipson and Smyth 2010).

    Raises:
        ValueError: an empty sample.
    """
    if not a or not b:
        raise ValueError("both samples need an answer")
    values = sorted({*a, *b}, key=repr)
    first, second = Counter(a), Counter(b)
    seen = np.array([first[x] for x in values], dtype=np.int64)
    total = seen + np.array([second[x] for x in values], dtype=np.int64)
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(total, len(a), size=PERMUTATIONS, method="marginals")
    expected = total * (len(a) / (len(a) + len(b)))
    scale = expected * len(b) / (len(a) + len(b))
    statistic = ((drawn - expected) ** 2 / scale).sum(-1)
    here = float(((seen - expected) ** 2 / scale).sum())
    return float((1 + (statistic >= here - 1e-9).sum()) / (1 + PERMUTATIONS))


def detectable_distance(answers: int, kinds: int, significance: float) -> float:
    """The total variation that `same_distribution` finds with 90%, about, for S answers on each
    side spread evenly over some kinds of answer: half the root of (lambda kinds / S) * 2 / kinds,
    by the chi-square's noncentrality lambda with kinds - 1 degrees of freedom, for a shift that
    half of the kinds lose and half gain. An approximation, for reports."""
    if kinds < 2:
        return 1.0
    degrees = kinds - 1
    needed = (ndtri(1 - significance) + ndtri(POWER)) * math.sqrt(2.0 * degrees)
    # Two samples of S: the statistic's noncentrality is (S / 2) * sum (p - r)^2 / p, which for a
    # shift of d / kinds in every kind is (S / 2) d^2, and TV is d / 2.
    return float(min(1.0, 0.5 * math.sqrt(2.0 * max(needed, 1.0) / answers)))
