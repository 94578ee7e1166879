"""What is learned from: the newest lessons and a reservoir of all earlier ones, with caps.

Half of it follows the traffic, the other half stands for everything seen (Vitter 1985, algorithm
R). No tenant and no user holds more than a share. Rows are drawn by disagreement (Schaul et al.
2016, arXiv:1511.05952) and weighed by the inverse of their chance, so that the mean loss stays that
of the buffer under its caps. Every random choice is a hash of seed and row: the same rows give
the same buffer. Knows lessons and arrays; no model and no file.

Shapes: N rows, K draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stillhouse.core.hashing import unit_hash
from stillhouse.core.loop_online import CapsSection
from stillhouse.core.records import Record
from stillhouse.retrain.online_rows import Lesson

Floats = npt.NDArray[np.float64]
FEWEST_OF_USER: Final = 4  # rows that any user may hold, however small the buffer


class Kept(Record):
    """A lesson in the buffer."""

    lesson: Lesson
    seq: int = Field(
        ge=0, description="The how-many-th lesson it was; once released or corrected, is."
    )
    waits: bool = Field(default=False, description="A step was accepted without it.")
    part: Literal["recent", "reservoir"] = "recent"
    quarantined: bool = False


class Draw(NamedTuple):
    """Rows to learn from, and what each counts."""

    rows: npt.NDArray[np.int64]  # [K]
    weights: Floats  # [K] mean 1 over draws


class Buffer:
    """See the module.

    Args:
        capacity: rows at most.
        recent: share of them that is the newest.
        items, seen, passed: as an earlier buffer left them: its rows, how many lessons came, how
            many of these have passed on to the reservoir.
    """

    def __init__(
        self,
        capacity: int,
        recent: float,
        caps: CapsSection,
        seed: int,
        *,
        items: Sequence[Kept] = (),
        seen: int = 0,
        passed: int = 0,
    ) -> None:
        self._newest = max(1, round(capacity * recent))
        self._capacity, self._caps, self._seed = capacity, caps, seed
        ordered = sorted(items, key=lambda one: one.seq)
        self._parts: dict[str, dict[str, Kept]] = {
            part: {one.lesson.id: one for one in ordered if one.part == part}
            for part in ("recent", "reservoir")
        }
        self._tenants = Counter(one.lesson.tenant for one in items)
        self._users = Counter(_user(one.lesson) for one in items)
        self.seen, self.passed = seen, passed

    @property
    def items(self) -> list[Kept]:
        """All rows, the earliest first."""
        both = (one for part in self._parts.values() for one in part.values())
        return sorted(both, key=lambda one: one.seq)

    def __len__(self) -> int:
        return sum(map(len, self._parts.values()))

    def __contains__(self, lesson_id: object) -> bool:
        return any(lesson_id in part for part in self._parts.values())

    def holds(self, lesson: Lesson) -> bool:
        """Whether it has a row of the lesson's user."""
        return self._users[_user(lesson)] > 0

    def add(self, lesson: Lesson) -> None:
        """Take a lesson; one with the same id is replaced in its place, and numbered as if it came
        now where it says something else."""
        for part in self._parts.values():
            old = part.get(lesson.id)
            if old is not None:
                part[lesson.id] = old.model_copy(update={"lesson": lesson})
                if lesson.target != old.lesson.target:
                    self._renumber(part, lesson.id)
                return
        self._parts["recent"][lesson.id] = Kept(lesson=lesson, seq=self.seen)
        self._count(lesson, 1)
        self.seen += 1
        while len(self._parts["recent"]) > self._newest:
            self._pass_on(next(iter(self._parts["recent"])))
        tenants = sum(count > 0 for count in self._tenants.values())
        most = max(1, int(max(self._caps.tenant_share, 1 / tenants) * self._capacity))
        if self._tenants[lesson.tenant] > most:
            self._shrink(lambda one: one.tenant == lesson.tenant, most, lesson.id)
        most = max(FEWEST_OF_USER, int(self._caps.user_share * self._capacity))
        if self._users[_user(lesson)] > most:
            self._shrink(lambda one: _user(one) == _user(lesson), most, lesson.id)

    def drop(self, gone: Callable[[Lesson], bool]) -> list[str]:
        """Take rows out; their ids."""
        ids = [one.lesson.id for one in self.items if gone(one.lesson)]
        for one in ids:
            self._remove(one)
        return ids

    def quarantine(self, ids: Iterable[str]) -> int:
        """Rows are not learned from any more; how many."""
        count = 0
        for name in ids:
            for part in self._parts.values():
                one = part.get(name)
                if one is not None and not one.quarantined:
                    part[name] = one.model_copy(update={"quarantined": True})
                    count += 1
        return count

    def hold(self, ids: Iterable[str]) -> None:
        """Rows that an accepted step did not learn from."""
        for name in ids:
            for part in self._parts.values():
                if name in part:
                    part[name] = part[name].model_copy(update={"waits": True})

    def release(self, ids: Iterable[str]) -> None:
        """Rows that waited and may be learned from now are numbered as if they came now."""
        for name in ids:
            for part in self._parts.values():
                one = part.get(name)
                if one is not None and one.waits:
                    self._renumber(part, name)

    def _renumber(self, part: dict[str, Kept], name: str) -> None:
        one = part.pop(name)  # the order is that of numbers
        part[name] = one.model_copy(update={"waits": False, "seq": self.seen})
        self.seen += 1

    def _shrink(self, own: Callable[[Lesson], bool], most: int, newest: str) -> None:
        """Too many of one hand: of its earlier rows some go, whichever."""
        names = [one.lesson.id for one in self.items if own(one.lesson)]
        while len(names) > most:
            place = int(unit_hash(f"cap:{newest}:{len(names)}", self._seed) * (len(names) - 1))
            self._remove(names.pop(place))

    def _pass_on(self, name: str) -> None:
        """A row is no longer new: it enters the reservoir, or goes."""
        self.passed += 1
        room = self._capacity - self._newest
        held = self._parts["reservoir"]
        if len(held) >= room:
            place = int(unit_hash(f"reservoir:{name}", self._seed) * self.passed)
            if place >= room:
                self._remove(name)
                return
            self._remove(list(held)[min(place, len(held) - 1)])
        one = self._parts["recent"].pop(name)
        held[name] = one.model_copy(update={"part": "reservoir"})

    def _remove(self, name: str) -> None:
        for part in self._parts.values():
            one = part.pop(name, None)
            if one is not None:
                self._count(one.lesson, -1)

    def _count(self, lesson: Lesson, by: int) -> None:
        self._tenants[lesson.tenant] += by
        self._users[_user(lesson)] += by


def _user(lesson: Lesson) -> tuple[str, str]:
    return (lesson.tenant, lesson.whose)


def capped(weights: Floats, groups: Sequence[object], share: float) -> Floats:
    """Weights of sum 1 in which no group has more than a share (or than an equal one, where the
    groups are few): what a group has too much goes to the others in proportion.

    Raises:
        ValueError: no weight above 0.
    """
    total = float(weights.sum())
    if not total > 0:
        raise ValueError("there is no weight above 0")
    names, which = np.unique(np.array([repr(one) for one in groups]), return_inverse=True)
    found = weights / total
    sums = np.bincount(which, weights=found, minlength=len(names))
    alive = sums > 0
    most = max(share, 1 / int(alive.sum()))
    wanted, held = sums.copy(), np.zeros(len(names), dtype=bool)
    while True:
        over = alive & ~held & (wanted > most * (1 + 1e-12))
        if not over.any():
            break
        held |= over
        wanted[held] = most
        free = alive & ~held
        left = 1 - most * int(held.sum())
        if not free.any():
            break
        wanted[free] = sums[free] / sums[free].sum() * max(0.0, left)
    scale = np.divide(wanted, sums, out=np.zeros_like(sums), where=alive)
    found = found * scale[which]
    return np.asarray(found / found.sum())


def shares_of(items: Sequence[Kept], usable: Sequence[bool], caps: CapsSection) -> Floats:
    """What each row counts: alike, but for the caps of tenants and users; 0 where not usable. [N]

    Raises:
        ValueError: none is usable.
    """
    weights = np.asarray(usable, dtype=np.float64)
    users = [(one.lesson.tenant, one.lesson.whose) for one in items]
    weights = capped(weights, users, caps.user_share)
    return capped(weights, [one.lesson.tenant for one in items], caps.tenant_share)


def draw(
    shares: Floats,
    disagreement: Floats,
    count: int,
    rng: np.random.Generator,
    *,
    power: float,
    uniform: float,
) -> Draw:
    """Rows by disagreement, with replacement.

    p_i = s_i (u + (1 - u) d_i^a / sum_j s_j d_j^a), weight_i = s_i / p_i, so that
    E[weight f] = sum_i s_i f_i for any f.

    Args:
        shares: s, sum 1. [N]
        disagreement: d, in [0, 1]. [N]
        power: a.
        uniform: u, above 0: no weight exceeds 1 / u.
    """
    raised = np.power(np.clip(disagreement, 1e-6, 1.0), power)
    chance = shares * (uniform + (1 - uniform) * raised / float((shares * raised).sum()))
    rows = rng.choice(len(shares), size=count, p=chance / chance.sum())
    weights = np.divide(shares, chance, out=np.zeros_like(shares), where=chance > 0)
    return Draw(rows.astype(np.int64), weights[rows])
