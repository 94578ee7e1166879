"""Acceptance rates from what was drafted and what was said, with intervals by prompt.

A round is one pass of the target: `drafted` tokens were proposed, `accepted` of them kept,
`emitted` tokens came out (the target's own included), `judged` drafted tokens were compared, which
are those accepted and the one refused. What an answer's end or its limit cut off was not judged.

- share: accepted over drafted tokens, which is what runtimes report
- rate: accepted over judged tokens: the chance of acceptance given that all before were accepted,
  the a of `speculate_expect`, whatever the draft length

Rounds of one prompt hang together, so intervals draw prompts (or their groups), not rounds. Knows
tokens and numbers; knows no model and no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
from pydantic import Field

from stillhouse.core.bootstrap import bootstrap_ratio
from stillhouse.core.records import Record
from stillhouse.core.statistics import CONFIDENCE, RESAMPLES, Interval


class Round(NamedTuple):
    """One pass of the target."""

    drafted: int
    accepted: int
    emitted: int

    @property
    def judged(self) -> int:
        """Drafted tokens that the target compared with its own choice."""
        return self.accepted + (self.accepted < self.drafted and self.emitted > self.accepted)


class PromptRounds(NamedTuple):
    """All rounds of one answer. Near-duplicates share a `group`."""

    id: str
    group: Hashable
    task: str
    segment: str | None
    rounds: tuple[Round, ...]


class PositionRate(Record):
    """Acceptance at one place of the draft, from 1, given that all before were accepted."""

    position: int = Field(ge=1)
    rate: Interval
    drafted: int = Field(ge=0)


class Acceptance(Record):
    """How much of the drafts was accepted; `tokens_a_pass` counts the target's own token too."""

    prompts: int
    rate: Interval
    share: Interval
    tokens_a_pass: Interval
    positions: tuple[PositionRate, ...]


class Resamples(NamedTuple):
    """How intervals are drawn."""

    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0


DEFAULT: Final = Resamples()


def rounds_of(drafts: Sequence[Sequence[int]], answer: Sequence[int]) -> tuple[Round, ...]:
    """Rounds from the drafts of each pass, in order, and the whole answer that came of them.

    Exact for sampled answers too: a refused token is drawn again from max(0, p - q), in which it
    has no mass, so that equal tokens were accepted tokens.

    Raises:
        ValueError: the passes do not add up to the answer.
    """
    rounds: list[Round] = []
    at = 0
    for draft in drafts:
        left = answer[at:]
        accepted = 0
        while accepted < min(len(draft), len(left)) and draft[accepted] == left[accepted]:
            accepted += 1
        emitted = min(accepted + 1, len(left))
        rounds.append(Round(len(draft), accepted, emitted))
        at += emitted
    if at != len(answer):
        raise ValueError(f"{len(drafts)} passes account for {at} of {len(answer)} tokens")
    return tuple(rounds)


def acceptance(prompts: Sequence[PromptRounds], how: Resamples = DEFAULT) -> Acceptance | None:
    """Rates over all rounds of some prompts; `None` where nothing was ever drafted.

    Raises:
        ValueError: no prompts.
    """
    if not prompts:
        raise ValueError("there are no prompts")
    longest = max(max((r.drafted for r in p.rounds), default=0) for p in prompts)
    rate = _ratio(prompts, lambda r: r.accepted, lambda r: r.judged, how)
    share = _ratio(prompts, lambda r: r.accepted, lambda r: r.drafted, how)
    passes = _ratio(prompts, lambda r: r.emitted, lambda _: 1, how)
    if rate is None or share is None or passes is None:
        return None
    positions: list[PositionRate] = []
    for place in range(longest):
        found = _ratio(prompts, _above("accepted", place), _above("judged", place), how)
        if found is None:
            break
        drafted = sum(r.drafted > place for p in prompts for r in p.rounds)
        positions.append(PositionRate(position=place + 1, rate=found, drafted=drafted))
    return Acceptance(
        prompts=len(prompts),
        rate=rate,
        share=share,
        tokens_a_pass=passes,
        positions=tuple(positions),
    )


def acceptance_by(
    prompts: Sequence[PromptRounds],
    name: Callable[[PromptRounds], str | None],
    how: Resamples = DEFAULT,
) -> dict[str, Acceptance]:
    """`acceptance` of each task, or segment, that has a name and drafts."""
    parts: dict[str, list[PromptRounds]] = {}
    for prompt in prompts:
        key = name(prompt)
        if key is not None:
            parts.setdefault(key, []).append(prompt)
    found = {key: acceptance(part, how) for key, part in sorted(parts.items())}
    return {key: value for key, value in found.items() if value is not None}


def rate_difference(
    after: Sequence[PromptRounds], before: Sequence[PromptRounds], how: Resamples = DEFAULT
) -> Interval | None:
    """The rate after less the rate before, on the same prompts in the same order, drawn together.

    Raises:
        ValueError: the prompts differ.
    """
    if [p.id for p in after] != [p.id for p in before] or not after:
        raise ValueError("a difference is taken on the same prompts, in one order")
    sums = np.array(
        [
            [sum(r.accepted for r in side.rounds), sum(r.judged for r in side.rounds)]
            for pair in zip(after, before, strict=True)
            for side in pair
        ],
        dtype=np.float64,
    ).reshape(len(after), 4)
    groups = {p.group: i for i, p in enumerate(after)}
    ids = np.unique([groups[p.group] for p in after], return_inverse=True)[1]
    units = np.zeros((int(ids.max()) + 1, 4))
    np.add.at(units, ids, sums)
    total = units.sum(0)
    if total[1] == 0 or total[3] == 0:
        return None
    estimate = total[0] / total[1] - total[2] / total[3]
    rng = np.random.default_rng(how.seed)
    drawn = units[rng.integers(0, len(units), size=(how.resamples, len(units)))].sum(1)
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    differences = drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    tail = (1 - how.confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(
        estimate=float(estimate),
        low=min(float(low), float(estimate)),
        high=max(float(high), float(estimate)),
        n=len(after),
    )


def _above(what: str, place: int) -> Callable[[Round], int]:
    return lambda r: int(getattr(r, what) > place)


def _ratio(
    prompts: Sequence[PromptRounds],
    top: Callable[[Round], int],
    bottom: Callable[[Round], int],
    how: Resamples,
) -> Interval | None:
    """sum(top) / sum(bottom) over all rounds, its interval over prompts; `None` for 0 / 0."""
    rows = [
        (sum(map(top, p.rounds)), sum(map(bottom, p.rounds)), p.group)
        for p in prompts
        if sum(map(bottom, p.rounds))
    ]
    if not rows:
        return None
    over = np.array([r[0] for r in rows], dtype=np.float64)
    under = np.array([r[1] for r in rows], dtype=np.float64)
    several = len({r[2] for r in rows}) > 1
    bounds = bootstrap_ratio(
        over if several else over.sum(keepdims=True),
        under if several else under.sum(keepdims=True),
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=[r[2] for r in rows] if several else None,
    )
    low, high = min(bounds.low, bounds.estimate), max(bounds.high, bounds.estimate)
    return Interval(estimate=bounds.estimate, low=low, high=high, n=len(rows))
