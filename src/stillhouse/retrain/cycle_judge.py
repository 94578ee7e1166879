"""The steps `evaluate` and `gate`: what candidate and live student score on every window, and which
of the two stays. A score is that of the task's deciding scorer, against the teacher's answer.

Scores are kept by the digests of student and set: a student is asked once about a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillhouse.core.scorers import scorers_for
from stillhouse.retrain.cycle_calibrate import check_of
from stillhouse.retrain.cycle_choose import LEAST_HELD_OUT
from stillhouse.retrain.cycle_files import ENTRY
from stillhouse.retrain.cycle_records import Cycle, CycleLine, name_of
from stillhouse.retrain.cycle_train import Refused
from stillhouse.retrain.forgetting import Row, Transfer, best_before, transfer
from stillhouse.retrain.loop import FIRST, Loop, served
from stillhouse.retrain.verdict import Compared, Margins, gate, in_words


def evaluate_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Score the candidate and the live student on all windows.

    Raises:
        Refused: so many users were forgotten that too little is left to judge by.
    """
    cycle = _evaluated(loop, cycle, lines)
    for name, score in cycle.scores.items():
        live = cycle.live_scores.get(name)
        beside = "" if live is None else f", the live student {100 * live:.1f}%"
        loop.say(f"window {name}: candidate {100 * score:.1f}%{beside}")
    return cycle


def gate_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Ask the gate; what it says is in the state, whether or not it lets the candidate pass.

    Raises:
        Refused: as `evaluate_step`.
    """
    cycle = _evaluated(loop, cycle, lines)  # kept scores; anew where a set has changed since
    assert cycle.digest is not None
    own = _kept(loop, cycle.digest, cycle.number)
    incumbent = None
    if cycle.incumbent is not None:
        other = _kept(loop, cycle.incumbent.digest, cycle.number)
        incumbent = Compared(cycle.name, own, other)
    earlier = [
        Compared(name_of(number), _kept(loop, cycle.digest, number), best)
        for number in loop.windows(lines)
        if (best := _best(loop, cycle, lines, number)) is not None
    ]
    section = loop.section
    margins = Margins(
        loop.margin if section.margin is None else section.margin,
        section.incumbent_margin,
        section.max_forgetting,
    )
    teacher = Compared(cycle.name, own, [1.0] * len(own))
    checks = gate(teacher, incumbent, earlier, margins, loop.how)
    sure = check_of(cycle)
    checks = checks if sure is None else (*checks, sure)
    return cycle.model_copy(update={"checks": checks, "verdict": in_words(checks)})


def _evaluated(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    held_out = len(loop.files.held_out(cycle.number))
    if held_out < LEAST_HELD_OUT:
        raise Refused(
            f"{held_out} held-out requests are left to judge by, since users were forgotten; at "
            f"least {LEAST_HELD_OUT} are needed"
        )
    windows = [*loop.windows(lines), cycle.number]
    assert cycle.digest is not None
    entry = loop.files.cycle(cycle.number) / ENTRY
    scores = _row(_scored(loop, cycle.digest, entry, windows))
    live: dict[str, float] = {}
    if cycle.incumbent is not None:
        folder = Path(cycle.incumbent.folder)
        live = _row(_scored(loop, cycle.incumbent.digest, folder, windows))
    return cycle.model_copy(update={"scores": scores, "live_scores": live})


def require_passed(cycle: Cycle) -> None:
    """Go on only with a candidate that passed every check.

    Raises:
        Refused: with what failed.
    """
    if not all(check.passed for check in cycle.checks):
        raise Refused("; ".join(check.said for check in cycle.checks if not check.passed))


def transfer_after(lines: Sequence[CycleLine], line: CycleLine) -> Transfer:
    """Forgetting and backward transfer once this line is the last."""
    every = _with_row(lines, line)
    names, rows = _matrix(every)
    return transfer(names, rows) if rows else Transfer(None, None, None)


def matrix_of(lines: Sequence[CycleLine]) -> tuple[list[str], list[Row]]:
    """The matrix of scores: windows, oldest first, and after each the live student's scores."""
    return _matrix([line for line in lines if line.scores])


def _matrix(every: Sequence[CycleLine]) -> tuple[list[str], list[Row]]:
    names = [name_of(line.number) for line in every]
    rows: list[Row] = [line.scores for line in every]
    first = name_of(FIRST)
    if every and first in every[0].incumbent_scores:
        names.insert(0, first)
        rows.insert(0, {first: every[0].incumbent_scores[first]})
    return names, rows


def _with_row(lines: Sequence[CycleLine], line: CycleLine) -> list[CycleLine]:
    return [one for one in (*lines, line) if one.scores]


def _best(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine], number: int) -> list[float] | None:
    """The scores on an earlier window of the student that was best on it of all that were live."""
    students: list[str] = []
    rows: list[Row] = []
    for line in lines:
        if line.incumbent is not None and line.incumbent_scores:
            students.append(line.incumbent)
            rows.append(line.incumbent_scores)
        if line.live is not None and line.scores:
            students.append(line.live)
            rows.append(line.scores)
    if cycle.incumbent is not None:
        students.append(cycle.incumbent.digest)
        rows.append(cycle.live_scores)
    while (best := best_before(name_of(number), rows)) is not None:
        found = loop.files.scores(students[best], number)
        if found is not None:
            return found
        # The set has changed since: a user was forgotten.
        rows[best] = {}
    return None


def _scored(
    loop: Loop, student: str, entry: Path, windows: Sequence[int]
) -> dict[int, list[float]]:
    score = scorers_for(loop.workshop.task)[0].score
    found: dict[int, list[float]] = {}
    missing: list[int] = []
    for number in windows:
        kept = loop.files.scores(student, number)
        if kept is None:
            missing.append(number)
        else:
            found[number] = kept
    if missing:
        sets = {number: loop.files.held_out(number) for number in missing}
        queries = [one.query for held in sets.values() for one in held]
        answers = iter(loop.workshop.predict(served(entry), queries))
        new = {
            number: [score(next(answers), one.answer) for one in held]
            for number, held in sets.items()
        }
        loop.files.keep_scores(student, new)
        found |= new
    return {number: found[number] for number in windows}


def _kept(loop: Loop, student: str, number: int) -> list[float]:
    """Scores that are there: `_evaluated` has just seen to it."""
    found = loop.files.scores(student, number)
    assert found is not None
    return found


def _row(scores: dict[int, list[float]]) -> dict[str, float]:
    return {name_of(number): _mean(values) for number, values in scores.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
