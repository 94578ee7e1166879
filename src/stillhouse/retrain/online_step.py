"""One step of learning: from the live head and the buffer to a new head, or to none.

Draws, learns, asks the guard. Where the guard refuses, the new rows whose gradient points away from
the guard's are named, to be quarantined. Pure: the learner is passed in. Knows arrays and lessons;
no file and no gateway.

Shapes: N rows, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.statistics import mcnemar_exact
from stillhouse.models.head_weights import Floats, HeadWeights
from stillhouse.retrain.online_buffer import Kept, draw, shares_of
from stillhouse.retrain.online_guard import GuardVerdict, check
from stillhouse.retrain.online_rows import Lesson

# Of a step: what is too far for the guard may be right half-way.
PARTS: Final = (1.0, 0.5, 0.25)
Harm = Literal["harms", "harmless", "unclear"]
Drawn = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
Learn = Callable[[HeadWeights, Floats, Floats, Callable[[], Drawn]], HeadWeights]


class Table(NamedTuple):
    """Rows as a head reads them."""

    features: Floats  # [N, H]
    targets: Floats  # [N, C]

    def scores(self, head: HeadWeights) -> npt.NDArray[np.float64]:
        """Whether it gives the right label. [N]"""
        said = head.logits(self.features).argmax(-1)
        return np.asarray(said == self.targets.argmax(-1), dtype=np.float64)


class Step(NamedTuple):
    """What a step came to. `suspects`: ids of rows, where the guard refused."""

    head: HeadWeights
    verdict: GuardVerdict
    suspects: tuple[str, ...]
    learned: int  # rows that it could learn from


def table(
    lessons: Sequence[Lesson], features: Mapping[str, Floats], labels: Sequence[str]
) -> Table:
    """Rows of these lessons, in their order."""
    number = {label: at for at, label in enumerate(labels)}
    targets = np.zeros((len(lessons), len(labels)), dtype=np.float32)
    for row, one in enumerate(lessons):
        if one.belief:
            for label, share in one.belief.items():
                targets[row, number[label]] = share
        else:
            targets[row, number[one.target]] = 1.0
    if not lessons:
        return Table(np.zeros((0, 0), dtype=np.float32), targets)
    return Table(np.stack([features[one.id] for one in lessons]), targets)


def log_p(head: HeadWeights, features: Floats) -> npt.NDArray[np.float64]:
    """[N, C] nats."""
    logits = head.logits(features).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def disagreement(head: HeadWeights, rows: Table) -> npt.NDArray[np.float64]:
    """Total variation between target and belief, in [0, 1]. [N]"""
    return np.asarray(np.abs(np.exp(log_p(head, rows.features)) - rows.targets).sum(-1) / 2)


def step(
    live: HeadWeights,
    items: Sequence[Kept],
    usable: Sequence[bool],
    features: Mapping[str, Floats],
    labels: Sequence[str],
    *,
    guard: Table,
    held_out: tuple[HeadWeights, Table] | None,
    replay: Table,
    new_from: int,
    section: OnlineSection,
    learn: Learn,
    seed: int,
) -> Step:
    """See the module.

    Args:
        usable: which rows may be learned from; one must be.
        held_out: the student as it was distilled, and its held-out set.
        replay: the run's own examples, which have a share of the loss whatever the traffic brings.
        new_from: number of the first row that no accepted version has learned from.

    Raises:
        UserError: the guard set is empty.
    """
    rows = table([one.lesson for one in items], features, labels)
    shares = shares_of(items, usable, section.caps)
    all_rows = rows
    if len(replay.targets) and section.replay:
        count = len(replay.targets)
        own = np.full(count, section.replay / count)
        shares = np.concatenate([shares * (1 - section.replay), own])
        all_rows = Table(*(np.concatenate(both) for both in zip(rows, replay, strict=True)))
    wrong, rng = disagreement(live, all_rows), np.random.default_rng(seed)

    def batch() -> Drawn:
        drawn = draw(
            shares,
            wrong,
            section.batch,
            rng,
            power=section.priority,
            uniform=section.uniform,
        )
        return drawn.rows, drawn.weights

    new = learn(live, all_rows.features, all_rows.targets, batch)
    first: GuardVerdict | None = None
    for part in PARTS:
        taken = between(live, new, part)
        kept = None
        if held_out is not None:
            kept = (held_out[1].scores(held_out[0]), held_out[1].scores(taken))
        verdict = check(guard.scores(live), guard.scores(taken), section.guard, kept)
        if verdict.answer == "accept":
            return Step(taken, verdict, (), sum(usable))
        first = first or verdict
    assert first is not None
    suspects: tuple[str, ...] = ()
    if first.by_traffic == "refuse":
        fresh = [i for i, one in enumerate(items) if one.seq >= new_from and usable[i]]
        suspects = against_guard(live, [items[i] for i in fresh], rows, fresh, guard)
    return Step(new, first, suspects, sum(usable))


def between(live: HeadWeights, new: HeadWeights, part: float) -> HeadWeights:
    """A part of the way from one head to another."""
    return HeadWeights(
        live.weight + np.float32(part) * (new.weight - live.weight),
        live.bias + np.float32(part) * (new.bias - live.bias),
    )


def against_guard(
    live: HeadWeights, items: Sequence[Kept], rows: Table, at: Sequence[int], guard: Table
) -> tuple[str, ...]:
    """Ids of the rows that a step against the guard's loss comes from.

    The gradient of a row's cross-entropy by the head is (p - y) (x, 1)^T; a row whose product with
    the guard's mean gradient is negative raises the guard's loss. Of tenants whose rows do so on
    the whole, these rows; where there are none, of all.
    """
    if not items:
        return ()
    pull = _gradient(live, guard)  # [C, H + 1]
    chosen = Table(rows.features[list(at)], rows.targets[list(at)])
    error = np.exp(log_p(live, chosen.features)) - chosen.targets
    aligned = np.einsum("nc,ch,nh->n", error, pull, _with_one(chosen.features))
    sums: dict[str, float] = {}
    for one, value in zip(items, aligned, strict=True):
        sums[one.lesson.tenant] = sums.get(one.lesson.tenant, 0.0) + float(value)
    bad = {tenant for tenant, value in sums.items() if value < 0}
    return tuple(
        one.lesson.id
        for one, value in zip(items, aligned, strict=True)
        if value < 0 and (not bad or one.lesson.tenant in bad)
    )


def harm_of(
    live: HeadWeights, rows: Table, guard: Table, section: OnlineSection, learn: Learn
) -> Harm:
    """What rows, learned alone, do to the guard set: `harms` where it is significantly worse (exact
    McNemar), `harmless` where it is shown to be as good but for the tolerance."""
    rng = np.random.default_rng(section.seed)
    count = len(rows.features)

    def batch() -> Drawn:
        return rng.integers(0, count, section.batch), np.ones(section.batch)

    taught = learn(live, rows.features, rows.targets, batch)
    before, after = guard.scores(live), guard.scores(taught)
    worse = after.mean() < before.mean()
    if worse and mcnemar_exact(before, after).p_value / 2 < section.trust.alpha:
        return "harms"
    return "harmless" if check(before, after, section.guard).answer == "accept" else "unclear"


def _gradient(head: HeadWeights, rows: Table) -> npt.NDArray[np.float64]:
    error = np.exp(log_p(head, rows.features)) - rows.targets
    return np.asarray(error.T @ _with_one(rows.features) / len(rows.features))


def _with_one(features: Floats) -> npt.NDArray[np.float64]:
    return np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
