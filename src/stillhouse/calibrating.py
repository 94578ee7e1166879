"""`stillhouse calibrate`: how sure a run's student must be to answer for itself.

Asks the student about held-out samples as the gateway asks it, judges its answers by the task's
scorer, adds what live traffic has shown, and writes gate.json with the frontier of cost against
quality. Knows runs and files; what is fitted is `serve.calibrator`'s.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stillhouse.calibrating_answers import Looks, Scored, novelty_of, opened_brain, scored
from stillhouse.core.artefact import GATE, NOVELTY
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import void, write_atomic, write_json
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.scorers import scorers_for
from stillhouse.core.tasks import ClassificationTask, ExtractionTask
from stillhouse.evaluate.candidates import EvaluationSet, load_sets
from stillhouse.evaluate.compressed import BEST
from stillhouse.evaluate.fallback_frontier import (
    FallbackFrontier,
    costs_of,
    fallback_frontier,
    frontier_picture,
)
from stillhouse.evaluate.results import SetName
from stillhouse.pipeline import read_run_recipe
from stillhouse.serve.calibrator import Choice, Halves, gate_from, halves
from stillhouse.serve.gate_file import Consistency, GateFile, NoveltyFile, save_gate, sha256_of

FOLDER: Final = "calibrate"
DAY_S: Final = 86_400


class Live(NamedTuple):
    """Labels of live traffic: the log's database, the task's name there, what counts, and what the
    log calls the student (`None`: it is known by its files)."""

    url: str
    task: str
    days: float
    kinds: tuple[str, ...]
    student: str | None = None


class Wanted(NamedTuple):
    """What is asked for. `None` where the run says it, or it is left out."""

    error: float = 0.05
    delta: float = 0.05
    method: Choice = "auto"
    samples: SetName = "held_out"
    acceptable: float | None = None
    window: int | None = 16
    novelty: bool = False
    consistency: Consistency | None = None
    student: Path | None = None
    live: Live | None = None
    prices: tuple[float | None, float | None] = (None, None)
    out: Path | None = None


class Calibrated(NamedTuple):
    """What was found and where it lies."""

    gate: GateFile
    frontier: FallbackFrontier | None
    folder: Path
    notes: tuple[str, ...]


def calibrate(root: Path, wanted: Wanted, progress: Progress) -> Calibrated:
    """Fit and write a gate for a run's student.

    Args:
        root: the run folder.

    Raises:
        UserError: the run or the options do not fit, or the samples are too few.
        StillhouseError: the student cannot be opened, or a file not be read or written.
    """
    recipe = read_run_recipe(root)
    folder = wanted.student or _student_of(root)
    level = _acceptable(recipe, wanted.acceptable)
    held_out = _set(recipe, root, wanted.samples)
    progress.say(f"calibrate: asks {folder} about {len(held_out.queries):,} {wanted.samples}")
    brain = opened_brain(recipe, folder, "--student")
    out = wanted.out or root / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    novelty = novelty_of(recipe, root, out / NOVELTY) if wanted.novelty else None
    looks = Looks(level, wanted.window, wanted.consistency, novelty)
    answered = scored(recipe, brain, held_out, looks, progress)
    if not answered:
        count = len(held_out.queries)
        raise UserError("--student", "answered none of the samples", value=count)
    notes = []
    if len(answered) < len(held_out.queries):
        notes.append(f"{len(held_out.queries) - len(answered)} requests the student refused")
    held = halves([one.judged for one in answered])
    split = held
    source = f"{wanted.samples} samples of the run"
    if wanted.live is not None:
        split, source, more, _ = with_live(held, wanted.live, brain.voice.fingerprint)
        notes += more
    gate = _gate(split, wanted, held, recipe).model_copy(
        update={
            "consistency": wanted.consistency,
            "task": recipe.task,
            "student": brain.voice.fingerprint,
            "source": source,
            "acceptable": level if source.startswith(wanted.samples) else None,
            "novelty": None
            if novelty is None
            else NoveltyFile(file=NOVELTY, sha256=sha256_of(out / NOVELTY)),
        }
    )
    save_gate(out / GATE, gate)
    tests = {one.id for one in held.tests}
    drawn = _frontier(recipe, root, gate, [s for s in answered if s.judged.id in tests], wanted)
    write_json(out / "frontier.json", drawn.model_dump(mode="json"))
    picture = str(frontier_picture(drawn))
    write_atomic(out / "frontier.svg", lambda file: void(file.write(picture)))
    return Calibrated(gate, drawn, out, tuple(notes))


def calibrate_live(wanted: Wanted) -> Calibrated:
    """Fit and write a gate from live labels alone, for a student that no run of yours made.

    Raises:
        UserError: as `calibrate`; or no folder is given to write to.
    """
    if wanted.live is None or wanted.out is None:
        raise UserError("calibrate", "needs a run folder, or --log with --out")
    split, source, notes, student = with_live(Halves([], []), wanted.live, None)
    wanted.out.mkdir(parents=True, exist_ok=True)
    gate = _gate(split, wanted, Halves([], []), None).model_copy(
        update={"source": source, "student": student}
    )
    save_gate(wanted.out / GATE, gate)
    return Calibrated(gate, None, wanted.out, tuple(notes))


def _frontier(
    recipe: Recipe, root: Path, gate: GateFile, tests: Sequence[Scored], wanted: Wanted
) -> FallbackFrontier:
    costs, unit = costs_of(root, compressed=wanted.student is None, given=wanted.prices)
    return fallback_frontier(
        np.array([gate.calibrator.probability(one.judged.features) for one in tests]),
        np.array([one.student for one in tests]),
        np.array([one.teacher for one in tests]),
        [one.judged.group for one in tests],
        costs=costs,
        unit=unit,
        metric=scorers_for(recipe.task)[0].name,
        chosen=gate.threshold,
    )


class WithLive(NamedTuple):
    """Samples, where the tests came from, remarks, and the fingerprint that the answers bear."""

    halves: Halves
    source: str
    notes: list[str]
    student: str | None


def with_live(held_out: Halves, live: Live, fingerprint: str | None) -> WithLive:
    """Held-out samples and live ones of the same student.

    Args:
        fingerprint: of the student at hand; `None`: the log's only one, or the one that is named.

    Raises:
        UserError: the database cannot be used, has no labels of this task and student, or has those
            of several where none is named.
        MissingExtraError: the serve extra is not installed.
    """
    tables: Any = require("stillhouse.serve.tables", "serve", "the traffic log")
    labels: Any = require("stillhouse.serve.live_labels", "serve", "the traffic log")
    engine = tables.open_database(live.url)
    whose = labels.Whose(fingerprint, live.student)
    since = time.time() - live.days * DAY_S
    try:
        found = labels.live_labels(engine, live.task, since, live.kinds, whose=whose)
    finally:
        engine.dispose()
    if not found.authors:
        raise _no_labels(live, fingerprint, found.others)
    if fingerprint is None and len(found.authors) > 1:
        raise UserError(
            "--log",
            f"holds judged answers of several students: {_named(found.authors)}",
            action="name one with --log-student, by its fingerprint where names are alike",
        )
    both = labels.mixed(held_out, found)
    notes = [f"live labels: {len(found.seen):,} shadow answers, {len(found.shown):,} shown ones"]
    if found.others:
        left = found.others.total()
        notes.append(f"{left:,} of other students are left out: {_named(found.others)}")
    if both.left_out:
        notes.append(f"{both.left_out:,} samples lack a feature and are left out")
    prints = {one.fingerprint for one in found.authors}
    student = prints.pop() if len(prints) == 1 else None
    return WithLive(both.halves, both.source, notes, student)


def _no_labels(live: Live, fingerprint: str | None, others: Mapping[object, int]) -> UserError:
    where = f"of the task {live.task}, in {live.days:g} days"
    if not others:
        return UserError(
            "--log",
            f"holds no judged answer of the student with features, {where}",
            action="serve with fallback.threshold (0 shows everything), and collect outcomes",
        )
    who = " ".join(one for one in (live.student, fingerprint) if one is not None)
    return UserError(
        "--log",
        f"holds no judged answer of the student {who} {where}, only of others: {_named(others)}",
        action="name it as the log does with --log-student, or calibrate the run of one of these",
    )


def _named(authors: Mapping[object, int]) -> str:
    """Who, and how many of each; the most first."""
    most = sorted(authors.items(), key=lambda one: (-one[1], str(one[0])))
    return ", ".join(f"{author} {count:,}" for author, count in most)


def _gate(split: Halves, wanted: Wanted, heads: Halves, recipe: Recipe | None) -> GateFile:
    """Streams have a gate of their own where their heads are known: of a run's texts."""
    texts = recipe is not None and not isinstance(recipe.task, ClassificationTask)
    window = wanted.window if texts and wanted.consistency is None else None
    try:
        return gate_from(
            split, wanted.error, wanted.delta, wanted.method, window=window, heads=heads
        )
    except ValueError as error:
        raise UserError(
            "calibrate", str(error), action="give more samples, or another --on or --acceptable"
        ) from None


def _student_of(root: Path) -> Path:
    for place in (root / "compress" / BEST, root / "prune" / "student", root / "train" / "student"):
        if place.is_dir():
            return place
    raise UserError(
        str(root), "holds no student", action="finish the run, or name one with --student"
    )


def _acceptable(recipe: Recipe, given: float | None) -> float:
    if given is not None:
        return given
    if isinstance(recipe.task, ClassificationTask | ExtractionTask):
        return 1.0
    name = scorers_for(recipe.task)[0].name
    raise UserError(
        "--acceptable", f"is missing: which {name} makes a text acceptable", action="write 0.5, say"
    )


def _set(recipe: Recipe, root: Path, name: SetName) -> EvaluationSet:
    for one in load_sets(recipe, RunFolder(root)):
        if one.name == name:
            return one
    raise UserError("--on", f"the run has no {name} set", action="take the other one")
