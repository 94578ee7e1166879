"""Which requests of a window are worth a teacher's answer: signals mixed by rank, no twins.

Each signal becomes ranks from 0 (least worth it) to 1, ties sharing their mean rank; a request of
which a signal is not known stands in the middle. The weighted mean of the ranks is its worth. A
share is drawn by hash instead, in turn with the best, so that the usual stays in sight. Requests
near to one that is known or already chosen are passed over, as are those that the budget does not
allow. Pure: equal input gives equal choices. Knows numbers; no log, no model.

N requests, H dimensions, K known vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from stillhouse.core.hashing import unit_hash
from stillhouse.core.loop_retrain import ChooseSection
from stillhouse.core.selection import Vectors, best_similarity

Floats = npt.NDArray[np.float64]
ROUND_USD: Final = 1e-9  # sums of prices are not exact


class Candidate(NamedTuple):
    """One request: what its answer would cost in USD, and its signals in [0, 1], `None` where not
    known. `disagreement` is 1 where student and teacher answered wholly unlike."""

    id: str
    price_usd: float
    disagreement: float | None = None
    uncertainty: float | None = None


class Chosen(NamedTuple):
    """What was chosen, in that order, as indices; which of it by chance; what it will cost; how
    many were passed over as twins, and how many for their price."""

    indices: tuple[int, ...]
    by_chance: frozenset[int]
    usd: float
    twins: int
    too_dear: int
    worth: tuple[float, ...]  # [N]


def choose(
    candidates: Sequence[Candidate],
    vectors: Vectors,
    known: Vectors,
    section: ChooseSection,
    *,
    count: int,
    budget_usd: float | None = None,
    seed: int = 0,
) -> Chosen:
    """Choose at most `count` of the candidates; see the module.

    Args:
        candidates: N of them, with distinct ids.
        vectors: [N, H], rows of length 1.
        known: [K, H], of the queries whose answers are there; K may be 0.
        section: weights, the share of chance, and from which cosine two are one.
        count: the most to choose.
        budget_usd: what they may cost together; `None`: no limit.
        seed: of the draws by hash.

    Raises:
        ValueError: lengths differ.
    """
    if len(candidates) != len(vectors):
        raise ValueError(f"{len(candidates)} candidates have {len(vectors)} vectors")
    if not candidates:
        return Chosen((), frozenset(), 0.0, 0, 0, ())
    near = (
        best_similarity(vectors, known)
        if len(known)
        else np.full(len(vectors), -1.0, dtype=np.float32)
    )  # [N] to the nearest that is known or chosen
    worth = worth_of(candidates, 1.0 - near.astype(np.float64), section)
    best = iter(_by_worth(candidates, worth, seed))
    drawn = iter(sorted(range(len(candidates)), key=lambda i: _draw(candidates[i].id, seed)))
    left = float("inf") if budget_usd is None else budget_usd
    seen: set[int] = set()
    taken: list[int] = []
    by_chance: set[int] = set()
    twins = too_dear = 0
    while len(taken) < count and len(seen) < len(candidates):
        chance = len(by_chance) < section.chance * (len(taken) + 1)
        index = _next(drawn if chance else best, seen)
        if index is None:
            break
        seen.add(index)
        if near[index] >= section.duplicate:
            twins += 1
            continue
        if candidates[index].price_usd > left + ROUND_USD:
            too_dear += 1
            continue
        left -= candidates[index].price_usd
        taken.append(index)
        if chance:
            by_chance.add(index)
        np.maximum(near, vectors @ vectors[index], out=near)
    usd = sum(candidates[index].price_usd for index in taken)
    return Chosen(tuple(taken), frozenset(by_chance), usd, twins, too_dear, tuple(worth.tolist()))


def worth_of(candidates: Sequence[Candidate], novelty: Floats, section: ChooseSection) -> Floats:
    """The weighted mean of the signals' ranks [N]; a signal that nobody has counts for nothing."""
    signals = (
        (section.disagreement, _column([c.disagreement for c in candidates])),
        (section.novelty, novelty),
        (section.uncertainty, _column([c.uncertainty for c in candidates])),
    )
    total, weights = np.zeros(len(candidates)), 0.0
    for weight, values in signals:
        if weight > 0 and np.isfinite(values).any():
            total += weight * ranks(values)
            weights += weight
    return total / weights if weights else total


def ranks(values: Floats) -> Floats:
    """Ranks in (0, 1), ties sharing theirs; 0.5 where a value is not known (NaN)."""
    known = np.isfinite(values)
    found = np.full(len(values), 0.5)
    if known.any():
        found[known] = (rankdata(values[known]) - 0.5) / known.sum()
    return found


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _by_worth(candidates: Sequence[Candidate], worth: Floats, seed: int) -> list[int]:
    return sorted(range(len(candidates)), key=lambda i: (-worth[i], _draw(candidates[i].id, seed)))


def _draw(name: str, seed: int) -> tuple[float, str]:
    return unit_hash(f"choose:{name}", seed), name


def _next(order: Iterator[int], seen: set[int]) -> int | None:
    return next((index for index in order if index not in seen), None)
