"""The steps `ask` and `train`: the teacher's answers, then a student, then its folder as an entry.

The teacher is fixed: a few held-out requests are asked first, and where another model answers than
taught the students before, nothing more is paid. Everything is asked and trained by the workshop,
which goes on from what is finished.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import disk_errors, read_json, read_records, write_records
from stillhouse.core.records import Query
from stillhouse.retrain.cycle_choose import KNOWN, LEAST_HELD_OUT, Nothing
from stillhouse.retrain.cycle_files import (
    ASK,
    CALIBRATION,
    ENTRY,
    HELD_OUT,
    NEW,
    REPLAY,
    RUN,
    TO_CALIBRATE,
    TO_HOLD,
)
from stillhouse.retrain.cycle_records import Cycle, CycleLine, HeldOut
from stillhouse.retrain.loop import BEST, FORMS, Loop
from stillhouse.retrain.promise import too_few
from stillhouse.retrain.registry_objects import folder_digest
from stillhouse.retrain.replay import decontaminated
from stillhouse.teacher.revisions import model_part

FEW: Final = 2  # asked first, to see who answers


class Refused(Exception):
    """No error: this cycle gives no better student, and why."""


def ask_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """The teacher's answers to what is held out, chosen and replayed.

    Raises:
        Nothing: too little was chosen.
        Refused: another teacher answers than before, or too few requests got an answer.
        TeacherError: the teacher cannot be reached: what is paid is kept.
    """
    if cycle.choice.get("new", 0) in (0, 1):
        raise Nothing("no two requests are both new and within the budget")
    folder = loop.files.cycle(cycle.number)
    forgotten = loop.forgotten()
    judges, chooses = (
        [q for q in read_records(path, Query) if q.user not in forgotten] if path.exists() else []
        for path in (folder / TO_HOLD, folder / TO_CALIBRATE)
    )
    known = _known(folder)
    limit = None if cycle.budget_usd is None else cycle.spent_before_usd + cycle.budget_usd
    open_ones = [query for query in (*judges, *chooses) if query.id not in known]
    revisions: Counter[str] = Counter()
    for few in (open_ones[:FEW], open_ones):
        if len(few) >= FEW:
            found = loop.workshop.ask(folder / ASK, few, limit)
            _same_teacher(loop, found.revisions, lines)
            known |= found.answers
            revisions = Counter(found.revisions)
    held = _answered(loop, judges, known)
    if len(held) < LEAST_HELD_OUT:
        raise Refused(
            f"the teacher gave a usable answer to {len(held)} of {len(judges)} held-out "
            f"requests; at least {LEAST_HELD_OUT} are needed to judge a student"
        )
    calibration = _answered(loop, chooses, known)
    if chooses and cycle.promise is not None:
        why = too_few(cycle.promise, len(calibration))
        if why is not None:
            raise Refused(
                f"the teacher gave a usable answer to {len(calibration)} of {len(chooses)} "
                f"requests that were to choose a threshold: {why}"
            )
    write_records(folder / CALIBRATION, calibration)
    write_records(folder / HELD_OUT, held)
    learn, said = to_learn(loop, cycle, lines), _known(folder)
    found = loop.workshop.prepare(folder / RUN, learn, said, limit)
    _same_teacher(loop, found.revisions, lines)
    revisions.update(found.revisions)
    usd = loop.workshop.spent_usd() - cycle.spent_before_usd
    given = sum(q.id in said for q in learn) if loop.workshop.reuses_log() else 0
    asked = max(0, loop.workshop.answers() - cycle.answers_before - given)
    loop.say(
        f"window {cycle.name}: {asked:,} new answers of the teacher (${usd:.4f}), "
        f"{given + sum(q.id in said for q in (*judges, *chooses)):,} from the log"
    )
    return cycle.model_copy(
        update={
            "asked": asked,
            "usd": usd,
            "teacher": loop.workshop.teacher,
            "revisions": dict(revisions),
        }
    )


def to_learn(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> list[Query]:
    """The chosen and the replayed queries, none near to what is held out anywhere."""
    folder = loop.files.cycle(cycle.number)
    forgotten = loop.forgotten()
    new = list(read_records(folder / NEW, Query))
    again = list(read_records(folder / REPLAY, Query))
    now = (*loop.files.held_out(cycle.number), *loop.files.calibration(cycle.number))
    held = [*loop.earlier_held_out(lines), *now]
    ids: dict[str, Query] = {query.id: query for query in [*again, *new]}
    found = decontaminated(
        loop.workshop.task,
        [query for query in ids.values() if query.user not in forgotten],
        [one.query for one in held],
        loop.near_duplicate,
    )
    return found.queries


def train_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """A student of these answers, and its folder as it may enter the registry.

    Raises:
        Refused: no dataset can be made of them.
    """
    folder = loop.files.cycle(cycle.number)
    limit = None if cycle.budget_usd is None else cycle.spent_before_usd + cycle.budget_usd
    warm = loop.section.start == "warm" and cycle.incumbent is not None
    start = Path(cycle.incumbent.folder) if warm and cycle.incumbent is not None else None
    try:
        made = loop.workshop.train(folder / RUN, to_learn(loop, cycle, lines), limit, start)
    except DataError as error:
        raise Refused(f"no student can be trained on this window: {error}") from None
    entry = folder / ENTRY
    _lay_out(made.student, made.form, entry)
    facts = {"examples": made.examples, "warm": start is not None, **made.facts}
    return cycle.model_copy(update={"trained": facts, "digest": folder_digest(entry)})


def artefacts_of(entry: Path) -> dict[str, str]:
    """The artefacts of a student's folder, as the registry knows them."""
    return {BEST: f"{FORMS}/{BEST}"} if (entry / FORMS / BEST).is_dir() else {}


def _lay_out(student: Path, form: Path | None, entry: Path) -> None:
    """Copy student and form into one folder, whole or not at all."""
    partial = entry.with_name(entry.name + ".partial")
    with disk_errors(entry):
        for old in (partial, entry):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(student, partial)
        if form is not None:
            shutil.copytree(form, partial / FORMS / BEST)
        os.replace(partial, entry)


def _answered(loop: Loop, queries: Sequence[Query], known: Mapping[str, str]) -> list[HeldOut]:
    """Those of the queries to which there is an answer that the task can read."""
    parse = loop.workshop.task.parse
    return [
        HeldOut(query=query, answer=known[query.id])
        for query in queries
        if query.id in known and parse(known[query.id]).value is not None
    ]


def _known(folder: Path) -> dict[str, str]:
    return {name: str(text) for name, text in read_json(folder / KNOWN).items()}


def _same_teacher(loop: Loop, found: Mapping[str, int], lines: Sequence[CycleLine]) -> None:
    """Refuse another teacher than taught the students before.

    Raises:
        Refused: names both.
    """
    before = {model_part(r) for line in lines for r in line.revisions}
    before |= {model_part(revision) for revision in loop.workshop.first_revisions()}
    now = {model_part(revision) for revision in found}
    new = sorted(now - before)
    if before and new:
        raise Refused(
            f"{loop.workshop.teacher} now answers as {', '.join(new)}; the students here were "
            f"taught by {', '.join(sorted(before))}: what they would learn are two teachers. Name "
            "the earlier model with its date in teacher.model, or take the new one for good: "
            "distil a first student from it with stillhouse run, and give loop.yaml that run and "
            "another folder"
        )
