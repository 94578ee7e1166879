"""A cycle of distilling again: from a window of traffic to a promotion, or a refusal in words.

A cycle is a row of steps, each of which leaves its files and then the state that names the next.
Killed anywhere, the next start repeats the step it was in, which goes on from what is finished; a
teacher's answer is never paid twice. A candidate that climbs the gateway's stages is waited for,
over as many starts as it takes. Knows the order of the steps and how a cycle ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from stillhouse.core.errors import UserError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.records import Example, Query
from stillhouse.retrain.cycle_calibrate import calibrate_step
from stillhouse.retrain.cycle_choose import Nothing, choose_step, new_span, window_step
from stillhouse.retrain.cycle_files import HELD_OUT
from stillhouse.retrain.cycle_judge import (
    evaluate_step,
    gate_step,
    require_passed,
    transfer_after,
)
from stillhouse.retrain.cycle_promote import (
    decide_step,
    incumbent_of,
    offer_step,
    put_right,
    register_step,
    retire,
    say_apart,
)
from stillhouse.retrain.cycle_records import STEPS, Cycle, CycleLine, HeldOut, Outcome, Step
from stillhouse.retrain.cycle_train import Refused, ask_step, train_step
from stillhouse.retrain.loop import FIRST, Loop
from stillhouse.retrain.promise import promise_of

MONTH_S: Final = 30 * 86_400.0
MOST_OF_FIRST: Final = 1000  # of the first run's held-out set
_Do = Callable[[Loop, Cycle, Sequence[CycleLine]], Cycle | None]
_STEPS: Final[dict[Step, _Do]] = {
    "window": window_step,
    "choose": choose_step,
    "ask": ask_step,
    "train": train_step,
    "calibrate": calibrate_step,
    "evaluate": evaluate_step,
    "gate": gate_step,
    "register": register_step,
    "offer": offer_step,
    "decide": decide_step,
}


def run_cycle(loop: Loop, reason: str) -> Cycle:
    """Go on with the unfinished cycle, or begin one; returns its state, which is `done`, or at
    `decide` while the candidate climbs the gateway's stages.

    Raises:
        UserError: the clock, the budget of the month or the registry allow no cycle.
        TeacherError: the teacher cannot be reached; the next start goes on.
        RunFolderError: another cycle of this task is at work.
    """
    with loop.files.locked():
        swept = loop.files.sweep(loop.forgotten())
        if swept:
            loop.say(f"{swept:,} records of forgotten users removed")
        cycle = loop.files.unfinished()
        lines = loop.files.journal()
        for line in lines:
            loop.files.drop_window(line.number)
        if cycle is None:
            cycle = _begin(loop, lines, reason)
        else:
            loop.say(f"cycle {cycle.name} goes on with: {cycle.step}")
        while cycle.step in _STEPS:
            try:
                if cycle.step == "register":
                    require_passed(cycle)
                found = _STEPS[cycle.step](loop, cycle, lines)
            except Nothing as why:
                cycle = cycle.model_copy(update={"keeps_window": why.keeps})
                cycle = _ended(loop, cycle, "nothing", str(why))
                continue
            except Refused as why:
                cycle = _ended(loop, cycle, "refused", str(why))
                continue
            if found is None:
                return cycle
            cycle = found.model_copy(update={"step": STEPS[STEPS.index(cycle.step) + 1]})
            loop.files.save(cycle)
        return _finish(loop, cycle, lines)


def budget_of(loop: Loop, lines: Sequence[CycleLine]) -> float | None:
    """What a cycle that begins now may pay, USD; `None`: no limit.

    Raises:
        UserError: the month's budget is spent.
    """
    section = loop.section
    if section.monthly_usd is None:
        return section.budget_usd
    since = loop.clock() - MONTH_S
    spent = sum(line.usd for line in lines if line.started_at > since)
    left = section.monthly_usd - spent
    if left <= 0:
        raise UserError(
            "retrain.monthly_usd",
            f"is spent: ${spent:.2f} in the last 30 days",
            value=section.monthly_usd,
            action="wait, or raise it",
        )
    return left if section.budget_usd is None else min(left, section.budget_usd)


def begun(loop: Loop, lines: Sequence[CycleLine], reason: str) -> Cycle:
    """The state of a cycle that begins now; nothing is written.

    Raises:
        UserError: see `run_cycle`.
    """
    budget = budget_of(loop, lines)
    span = new_span(loop, lines)
    incumbent = incumbent_of(loop)
    return Cycle(
        number=loop.files.next_number(),
        task=loop.name,
        step="window",
        reason=reason,
        started_at=loop.clock(),
        since=span.since,
        until=span.until,
        incumbent=incumbent,
        promise=promise_of(loop, incumbent),
        spent_before_usd=loop.workshop.spent_usd(),
        answers_before=loop.workshop.answers(),
        budget_usd=budget,
    )


def _begin(loop: Loop, lines: Sequence[CycleLine], reason: str) -> Cycle:
    cycle = begun(loop, lines, reason)
    keep_first_window(loop)
    say_apart(loop)
    loop.say(f"cycle {cycle.name} begins ({reason})")
    loop.files.save(cycle)
    return cycle


def keep_first_window(loop: Loop) -> None:
    """Keep the first run's held-out set as window 0, once: its students are judged on it too."""
    path = loop.files.cycle(FIRST) / HELD_OUT
    if loop.first_run is None or path.exists():
        return
    source = loop.first_run / "dataset" / "held_out.jsonl"
    if not source.exists():
        return
    traffic = loop.first_run / "traffic" / "queries.jsonl"
    users = {q.id: q.user for q in read_records(traffic, Query)} if traffic.exists() else {}
    examples = sorted(read_records(source, Example), key=lambda one: unit_hash(one.id, loop.seed))
    forgotten = loop.forgotten()
    write_records(
        path,
        (
            HeldOut(
                query=one.to_query().model_copy(update={"user": users.get(one.id)}),
                answer=one.completion if one.label is None else one.label,
            )
            for one in examples[:MOST_OF_FIRST]
            if users.get(one.id) not in forgotten
        ),
    )


def _ended(loop: Loop, cycle: Cycle, outcome: Outcome, why: str) -> Cycle:
    usd = loop.workshop.spent_usd() - cycle.spent_before_usd
    end = {"step": "end", "outcome": outcome, "verdict": f"{outcome}: {why}", "usd": usd}
    cycle = cycle.model_copy(update=end)
    loop.files.save(cycle)
    return cycle


def _finish(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Write the cycle into the journal."""
    if cycle.outcome == "promoted":
        passed = cycle.verdict.removeprefix("passed: ")
        cycle = cycle.model_copy(update={"verdict": f"promoted {cycle.candidate}: {passed}"})
    else:
        said = put_right(loop, cycle)
        if said is not None:
            cycle = cycle.model_copy(update={"verdict": f"{cycle.verdict}; {said}"})
        retire(loop, cycle)
    loop.files.add_line(_line(loop, cycle, lines))
    loop.files.drop_window(cycle.number)
    cycle = cycle.model_copy(update={"step": "done"})
    loop.files.save(cycle)
    loop.say(f"cycle {cycle.name}: {cycle.verdict}")
    return cycle


def _line(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> CycleLine:
    promoted = cycle.outcome == "promoted"
    before = None if cycle.incumbent is None else cycle.incumbent.digest
    examples, replayed = cycle.trained.get("examples", 0), cycle.choice.get("replayed", 0)
    assert cycle.outcome is not None
    line = CycleLine(
        number=cycle.number,
        task=cycle.task,
        reason=cycle.reason,
        started_at=cycle.started_at,
        ended_at=loop.clock(),
        since=cycle.since,
        until=cycle.until,
        outcome=cycle.outcome,
        keeps_window=cycle.keeps_window,
        verdict=cycle.verdict,
        window=cycle.window,
        asked=cycle.asked,
        usd=cycle.usd,
        examples=examples if isinstance(examples, int) else 0,
        replayed=replayed if isinstance(replayed, int) else 0,
        candidate=cycle.candidate,
        parent=None if cycle.incumbent is None else cycle.incumbent.id,
        incumbent=before,
        live=cycle.digest if promoted else before,
        scores=cycle.scores if promoted else cycle.live_scores,
        candidate_scores=cycle.scores,
        incumbent_scores=cycle.live_scores,
        checks=cycle.checks,
        promise=cycle.promise,
        fallback=cycle.fallback,
        revisions=cycle.revisions,
    )
    found = transfer_after(lines, line)
    return line.model_copy(
        update={
            "average_forgetting": found.average_forgetting,
            "backward_transfer": found.backward_transfer,
        }
    )
