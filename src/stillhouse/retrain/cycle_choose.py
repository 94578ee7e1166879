"""The steps `window` and `choose`: what of the newest traffic judges, what is asked and learnt.

First a held-out part is drawn by chance, since it has to stand for the traffic as it is, and where
the student needs a gate another that will choose its threshold and do nothing else; then, of what
is not near to either, what is worth asking. Near duplicates stay on one side, and texts that an
earlier cycle trained on or held out are on neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import JsonValue

from stillhouse.core.duplicates import groups_of, matches
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import write_json, write_records
from stillhouse.core.loop_retrain import duration_s
from stillhouse.core.records import Query
from stillhouse.core.scorers import scorers_for
from stillhouse.models.embedders import embed_all, open_embedder
from stillhouse.retrain.choose import ROUND_USD, Candidate, Chosen, choose
from stillhouse.retrain.cycle_files import NEW, REPLAY, TO_CALIBRATE, TO_HOLD
from stillhouse.retrain.cycle_records import Cycle, CycleLine, WindowRow
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.promise import too_few
from stillhouse.retrain.replay import Earlier, replayed
from stillhouse.retrain.window import Span, Window, read_window, span_of

KNOWN: Final = "known.json"  # what the teacher said live, by query id
HELD_SHARE: Final = 1 / 3  # of a small window that may be held out, at most
HELD_BUDGET: Final = 0.5  # of the budget, likewise
LEAST_HELD_OUT: Final = 30


class Nothing(Exception):
    """No error: there is nothing to do in this cycle, and why.

    Args:
        keeps: whether the window is left for the next cycle, which begins where this one began.
    """

    def __init__(self, why: str, *, keeps: bool = False) -> None:
        super().__init__(why)
        self.keeps = keeps


class Parts(NamedTuple):
    """A window's rows: those that judge, those that choose a threshold, and those that may be
    learnt from."""

    held_out: list[WindowRow]
    calibrate: list[WindowRow]
    open: list[WindowRow]


def new_span(loop: Loop, lines: Sequence[CycleLine]) -> Span:
    """The window of a cycle that begins now.

    Raises:
        UserError: the clock stands before the end of the last window.
    """
    now, longest_s = loop.clock(), duration_s(loop.section.window)
    found = span_of(now, longest_s, lines[-1].until if lines else None)
    kept = [line.since for line in lines[_consumed(lines) :]]
    if not kept:
        return found
    return found._replace(since=max(min(kept), now - longest_s))


def _read_before(lines: Sequence[CycleLine]) -> float | None:
    """When the last window was read whose requests are not for the next cycle."""
    count = _consumed(lines)
    return lines[count - 1].until if count else None


def _consumed(lines: Sequence[CycleLine]) -> int:
    """How many cycles there were up to the last that kept its window to itself."""
    count = len(lines)
    while count and lines[count - 1].keeps_window:
        count -= 1
    return count


def window_of(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Window:
    """What a cycle's window holds of the newest traffic; nothing is written."""
    return read_window(
        loop.live,
        loop.name,
        loop.workshop.task,
        Span(cycle.since, cycle.until, _read_before(lines)),
        pool=loop.section.choose.pool,
        seed=loop.seed + cycle.number,
        forgotten=loop.forgotten(),
    )


def window_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Read the window and keep it in the cycle's folder."""
    found = window_of(loop, cycle, lines)
    loop.files.write_window(cycle.number, found.rows)
    told = ", ".join(f"{name} {count:,}" for name, count in found.counts.items())
    loop.say(f"window {cycle.name}: {told}")
    return cycle.model_copy(update={"window": found.counts})


def choose_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Draw what is held out, choose what is asked and what is replayed, and write all three.

    Raises:
        Nothing: the window holds too little.
    """
    usable = cycle.window.get("usable", 0)
    if usable < loop.section.min_requests:
        raise Nothing(
            f"the window holds {usable:,} usable requests, fewer than min_requests "
            f"({loop.section.min_requests:,}); the next cycle has them too",
            keeps=True,
        )
    plan = planned(loop, cycle, lines, loop.files.read_window(cycle.number))
    folder, parts = loop.files.cycle(cycle.number), plan.parts
    new = [_with_reason(plan, index) for index in plan.chosen.indices]
    held = [*parts.held_out, *parts.calibrate]
    taken = [*held, *(parts.open[index] for index in plan.chosen.indices)]
    write_records(folder / TO_HOLD, [row.query for row in parts.held_out])
    write_records(folder / TO_CALIBRATE, [row.query for row in parts.calibrate])
    write_json(folder / KNOWN, {r.query.id: r.teacher for r in taken if r.teacher is not None})
    write_records(folder / REPLAY, plan.again)
    write_records(folder / NEW, new)
    loop.say(f"window {cycle.name}: {said_of(plan)}")
    return cycle.model_copy(update={"choice": facts_of(plan)})


class Plan(NamedTuple):
    """What a cycle will ask and train on, before anything is written."""

    parts: Parts
    chosen: Chosen
    again: list[Query]
    earlier: int
    rows: int

    @property
    def usd(self) -> float:
        """What its answers will cost, as far as the log's prices tell."""
        return self.chosen.usd + held_usd([*self.parts.held_out, *self.parts.calibrate])


def planned(
    loop: Loop, cycle: Cycle, lines: Sequence[CycleLine], window: Sequence[WindowRow]
) -> Plan:
    """Split a window and choose.

    Raises:
        Nothing: the window holds too little.
    """
    forgotten = loop.forgotten()
    rows = [row for row in window if row.query.user not in forgotten]
    earlier = loop.earlier_examples(lines)
    known = [
        *(one.query for one in earlier),
        *(one.query for one in loop.earlier_held_out(lines)),
    ]
    parts = part(loop, cycle, rows, known)
    chosen = _choose(loop, cycle, parts, earlier)
    again = replayed(earlier, loop.section.replay, loop.section.replay_most, loop.seed)
    return Plan(parts, chosen, again, len(earlier), len(rows))


def facts_of(plan: Plan) -> dict[str, JsonValue]:
    """A plan in numbers."""
    parts, chosen = plan.parts, plan.chosen
    return {
        "new": len(chosen.indices),
        "by_chance": len(chosen.by_chance),
        "held_out": len(parts.held_out),
        "calibrate": len(parts.calibrate),
        "replayed": len(plan.again),
        "earlier": plan.earlier,
        "twins": chosen.twins,
        "too_dear": chosen.too_dear,
        "open": len(parts.open),
        "expected_usd": round(plan.usd, 6),
    }


def said_of(plan: Plan) -> str:
    """A plan in words."""
    parts = plan.parts
    more = f", {len(parts.calibrate):,} more to calibrate by" if parts.calibrate else ""
    return (
        f"{len(plan.chosen.indices):,} new queries of {len(parts.open):,}, "
        f"{len(parts.held_out):,} held out{more}, {len(plan.again):,} of {plan.earlier:,} earlier "
        f"examples again, about ${plan.usd:.4f}"
    )


def _with_reason(plan: Plan, index: int) -> Query:
    metadata: dict[str, JsonValue] = {
        "by": "chance" if index in plan.chosen.by_chance else "worth",
        "worth": round(plan.chosen.worth[index], 6),
    }
    return plan.parts.open[index].query.model_copy(update={"metadata": metadata})


def part(loop: Loop, cycle: Cycle, rows: Sequence[WindowRow], known: Sequence[Query]) -> Parts:
    """Split a window; see the module.

    Raises:
        Nothing: too little is left to hold out.
    """
    task = loop.workshop.task
    texts = [task.varying_text(row.query) for row in rows]
    old = matches(texts, [task.varying_text(query) for query in known], loop.near_duplicate)
    fresh = [row for index, row in enumerate(rows) if index not in old]
    if not fresh:
        raise Nothing(f"all {len(rows):,} requests were trained on or held out before")
    groups = groups_of([task.varying_text(row.query) for row in fresh], loop.near_duplicate)
    promise = cycle.promise
    most = int(HELD_SHARE * len(fresh))
    judging = min(loop.section.held_out, most)
    choosing = min(promise.held_out, most) if promise is not None and promise.on == "window" else 0
    left = float("inf") if cycle.budget_usd is None else HELD_BUDGET * cycle.budget_usd
    held: list[int] = []
    taken: set[str] = set()
    for index in sorted(range(len(fresh)), key=lambda i: _draw(fresh[i].query.id, loop.seed)):
        if len(held) == judging + choosing:
            break
        usd = held_usd([fresh[index]])
        if groups[index] in taken:
            continue
        if usd > left + ROUND_USD:
            if len(held) >= judging:
                break  # cheaper ones instead would be other traffic than is promised for
            continue
        left -= usd
        held.append(index)
        taken.add(groups[index])
    judges, chooses = sorted(held[:judging]), sorted(held[judging:])
    if len(judges) < LEAST_HELD_OUT:
        raise Nothing(
            f"{len(fresh):,} requests are new, and {len(judges)} of them can be held out within "
            f"the budget; at least {LEAST_HELD_OUT} are needed to judge a student",
            keeps=True,
        )
    if choosing and promise is not None:
        why = too_few(promise, len(chooses))
        if why is not None:
            raise Nothing(
                f"{len(fresh):,} requests are new, and beside the {len(judges)} that judge "
                f"{len(chooses)} can be held out within the budget: {why}",
                keeps=True,
            )
    return Parts(
        [fresh[index] for index in judges],
        [fresh[index] for index in chooses],
        [row for row, group in zip(fresh, groups, strict=True) if group not in taken],
    )


def held_usd(rows: Sequence[WindowRow]) -> float:
    """What the answers to held-out requests will cost: nothing where the teacher gave them live."""
    return sum(row.price_usd for row in rows if row.teacher is None)


def _choose(loop: Loop, cycle: Cycle, parts: Parts, earlier: Sequence[Earlier]) -> Chosen:
    task, section = loop.workshop.task, loop.section
    texts = [task.varying_text(row.query) for row in parts.open]
    before = [task.varying_text(one.query) for one in earlier]
    embedder = open_embedder(section.choose.embedder, [*texts, *before])
    free = loop.workshop.reuses_log()
    score = scorers_for(task)[0].score
    candidates = [
        Candidate(
            row.query.id,
            0.0 if free and row.teacher is not None else row.price_usd,
            None
            if row.teacher is None or row.student is None
            else 1.0 - score(row.student, row.teacher),
            None if row.confidence is None else 1.0 - row.confidence,
        )
        for row in parts.open
    ]
    held = [*parts.held_out, *parts.calibrate]
    left = None if cycle.budget_usd is None else cycle.budget_usd - held_usd(held)
    return choose(
        candidates,
        embed_all(embedder, texts, loop.progress),
        embed_all(embedder, before, loop.progress),
        section.choose,
        count=section.new,
        budget_usd=left,
        seed=loop.seed + cycle.number,
    )


def _draw(name: str, seed: int) -> tuple[float, str]:
    return unit_hash(f"held:{name}", seed), name
