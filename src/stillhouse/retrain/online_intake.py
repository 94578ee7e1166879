"""What new rows do: some guard, some teach, some only teach their owner's adapter.

Caps a window, the guard's own users, tallies of who disagrees. Changes a `Desk`, which is the state
in memory while a pass runs. Knows no model but a function that says what the live student answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from stillhouse.core.live import LiveRow
from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.tasks import Task
from stillhouse.models.adapter_files import owner_key
from stillhouse.retrain.online_buffer import Buffer, Kept
from stillhouse.retrain.online_rows import Beliefs, Lesson, is_guard, lessons_of, with_beliefs
from stillhouse.retrain.online_state import OnlineState, Store
from stillhouse.retrain.online_trust import Tally, judge

HOUR_S: Final = 3600.0
EARLY: Final = 2  # times as many users guard until there are guard.least rows
Said = Callable[[Sequence[Lesson]], Sequence[str]]


@dataclass
class Desk:
    """The state in memory."""

    state: OnlineState
    buffer: Buffer
    guard: list[Lesson]
    personal: list[Lesson]
    tallies: dict[str, Tally]
    known: dict[str, str]
    times: dict[str, float]
    taken: Counter[str]
    counts: Counter[str]
    window: int
    new: int


def desk_of(state: OnlineState, store: Store, section: OnlineSection) -> Desk:
    """Read what the state names."""
    buffer = Buffer(
        section.buffer,
        section.recent,
        section.caps,
        section.seed,
        items=store.rows(state.buffer),
        seen=state.seen,
        passed=state.passed,
    )
    return Desk(
        state,
        buffer,
        [one.lesson for one in store.rows(state.guard)],
        [one.lesson for one in store.rows(state.personal)],
        dict(state.tallies),
        dict(state.known),
        dict(state.times),
        Counter(state.taken),
        Counter(state.counts),
        state.window,
        state.new,
    )


def packed(desk: Desk, store: Store) -> OnlineState:
    """The state with everything on the desk written beside it; not yet committed."""
    return desk.state.model_copy(
        update={
            "buffer": store.write_rows("buffer", desk.buffer.items),
            "guard": store.write_rows("guard", _plain(desk.guard)),
            "personal": store.write_rows("personal", _plain(desk.personal)),
            "seen": desk.buffer.seen,
            "passed": desk.buffer.passed,
            "tallies": dict(desk.tallies),
            "known": dict(desk.known),
            "times": dict(desk.times),
            "taken": dict(desk.taken),
            "counts": dict(desk.counts),
            "window": desk.window,
            "new": desk.new,
        }
    )


def fresh_lessons(
    desk: Desk,
    rows: Iterable[LiveRow],
    task: Task,
    section: OnlineSection,
    beliefs: Beliefs | None = None,
) -> list[Lesson]:
    """Lessons that were not known, or are corrected since; moves the place up to which all is read.

    Rows come by the time of the request, corrections later: the last `late_hours` are read again.
    """
    found = lessons_of(rows, task)
    desk.counts.update({f"skipped: {why}": count for why, count in found.skipped.items()})
    new = [one for one in found.kept if desk.known.get(one.id) != one.target]
    for one in found.kept:
        desk.known[one.id] = one.target
        desk.times[one.id] = one.at
    if found.kept:
        until = max(desk.state.at, found.kept[-1].at - section.late_hours * HOUR_S)
        for name in [name for name, at in desk.times.items() if at < until]:
            del desk.times[name], desk.known[name]
        desk.state = desk.state.model_copy(update={"at": until})
    return with_beliefs(new, beliefs)


def take(desk: Desk, lessons: Sequence[Lesson], section: OnlineSection, said: Said) -> list[Lesson]:
    """Put lessons where they belong; those that are in the buffer now."""
    taught: list[Lesson] = []
    answers = said(lessons) if lessons else ()
    for one, answer in zip(lessons, answers, strict=True):
        if one.source == "corrected":
            _keep_personal(desk, one, section)
        if one.tenant in desk.state.quarantined:
            desk.counts["left out: quarantined tenant"] += 1
            continue
        if is_guard(one, section.guard.share, section.seed) or _guards_early(desk, one, section):
            _keep_guard(desk, one, section)
            continue
        if one.source == "corrected" and section.corrections == "personal":
            if one.teacher is None:
                continue
            one = one.model_copy(update={"source": "teacher", "target": one.teacher})
        if not _within_caps(desk, one, section):
            desk.counts["left out: cap"] += 1
            continue
        other = answer if one.teacher is None or one.source == "teacher" else one.teacher
        tally = desk.tallies.get(one.tenant, Tally())
        desk.tallies[one.tenant] = tally.plus(against=other != one.target)
        desk.buffer.add(one)
        desk.new += 1
        taught.append(one)
    return taught


def usable_rows(
    desk: Desk, section: OnlineSection, waiting: Container[str]
) -> tuple[list[Kept], list[bool]]:
    """The buffer, and which of its rows may be learned from: no corrections of new or waiting
    tenants. Rows that waited and may be learned from now are new ones."""
    trust = judge(desk.tallies, section.trust)

    def usable(one: Kept) -> bool:
        tenant = one.lesson.tenant
        if one.quarantined or tenant in desk.state.quarantined:
            return False
        waits = trust[tenant].state == "new" or tenant in waiting
        return not (one.lesson.source == "corrected" and waits)

    desk.buffer.release([one.lesson.id for one in desk.buffer.items if usable(one)])
    items = desk.buffer.items
    return items, [usable(one) for one in items]


def users_gone(desk: Desk, held: Iterable[str], since: float) -> set[str]:
    """Users of whom something is kept here whose row the log does not have any more.

    Args:
        held: ids of the log's rows, since then.
        since: Unix seconds; what is older is not asked for.
    """
    kept = [one.lesson for one in desk.buffer.items] + desk.guard + desk.personal
    wanted = {one.id: one.whose for one in kept if one.at >= since}
    for version in desk.state.versions:
        wanted |= {one.id: one.whose for one in version.contributors if one.at >= since}
    if not wanted:
        return set()
    there = set(held)
    return {name for row, name in wanted.items() if row not in there}


def forget_counts(desk: Desk, gone: Container[str]) -> None:
    """Take users' pseudonyms out of the counts of this window."""
    for key in [key for key in desk.taken if key.partition("\n")[2] in gone]:
        del desk.taken[key]


def _guards_early(desk: Desk, one: Lesson, section: OnlineSection) -> bool:
    """Whether a lesson guards because the guard set is still too small for any swap, or because
    its user's earlier ones did.

    Until then nothing that is learned can be used, and whoever brings no teacher's answers makes
    the wait longer for all. Nobody who was learned from guards.
    """
    who = (one.tenant, one.whose)
    if any((other.tenant, other.whose) == who for other in desk.guard):
        return True
    if one.teacher is None or len(desk.guard) >= section.guard.least:
        return False
    return is_guard(one, EARLY * section.guard.share, section.seed) and not desk.buffer.holds(one)


def _keep_guard(desk: Desk, one: Lesson, section: OnlineSection) -> None:
    """Only what the teacher said guards; the newest stay, within a tenant's share."""
    if one.teacher is None:
        return
    kept = one.model_copy(update={"target": one.teacher, "source": "teacher"})
    desk.guard = [other for other in desk.guard if other.id != one.id] + [kept]
    tenants = len({other.tenant for other in desk.guard})
    most = max(1, int(max(section.caps.tenant_share, 1 / tenants) * section.guard.rows))
    own = [other.id for other in desk.guard if other.tenant == one.tenant]
    gone = set(own[: max(0, len(own) - most)])
    desk.guard = [other for other in desk.guard if other.id not in gone][-section.guard.rows :]


def _keep_personal(desk: Desk, one: Lesson, section: OnlineSection) -> None:
    if section.personal is None:
        return
    by = section.personal.by
    name = owner_key(one.tenant, one.whose, by)
    rest = [other for other in desk.personal if other.id != one.id]
    own = [other.id for other in rest if owner_key(other.tenant, other.whose, by) == name]
    gone = set(own[: max(0, len(own) + 1 - section.personal.rows)])
    desk.personal = [other for other in rest if other.id not in gone] + [one]


def _within_caps(desk: Desk, one: Lesson, section: OnlineSection) -> bool:
    window = int(one.at // (section.caps.window_hours * HOUR_S))
    if window > desk.window:  # a late row counts in the window that is open
        desk.window = window
        desk.taken.clear()
    tenant, user = f"t:{one.tenant}", f"u:{one.tenant}\n{one.whose}"
    if desk.taken[tenant] >= section.caps.tenant_rows:
        return False
    if desk.taken[user] >= section.caps.user_rows:
        return False
    desk.taken[tenant] += 1
    desk.taken[user] += 1
    return True


def _plain(lessons: Sequence[Lesson]) -> list[Kept]:
    return [Kept(lesson=one, seq=number) for number, one in enumerate(lessons)]
