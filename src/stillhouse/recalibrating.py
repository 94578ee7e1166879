"""A retrained student's gate: fitted to some answers, its threshold chosen on others.

What fits may have judged the student, since a threshold's promise holds of any score; what chooses
has done nothing else, so that it says of the student as it is. Knows students and samples; a cycle
says which are which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stillhouse.calibrating_answers import Looks, novelty_of, opened_brain, scored
from stillhouse.core.artefact import GATE, NOVELTY
from stillhouse.core.errors import UserError
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.risk_control import foreseen_samples
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import Answers, EvaluationSet, load_sets
from stillhouse.retrain.cycle_records import HeldOut, Promise
from stillhouse.retrain.seams import Gated, Samples
from stillhouse.serve.calibrator import Halves, Judged, gate_from, halves, sureness
from stillhouse.serve.gate_file import GateFile, NoveltyFile, save_gate, sha256_of

WHOLE: Final = 1.0  # score from which labels and extractions are acceptable
OF_WINDOW: Final = "requests of the window, held out to calibrate"
OF_GOLDEN: Final = "golden samples"  # as `calibrating` begins to say it


def recalibrate(
    recipe: Recipe,
    student: Path,
    run: Path,
    *,
    out: Path,
    samples: Samples,
    promise: Promise,
    progress: Progress,
) -> Gated:
    """See `retrain.seams.Workshop.calibrate`.

    Raises:
        UserError: a golden set is asked for, and the run has none.
        StillhouseError: the student cannot be opened, or a file not be read or written.
    """
    sets = [_golden(recipe, run)] if promise.on == "golden" else [_set_of(s) for s in samples]
    asked = sum(len(one.queries) for one in sets)
    progress.say(f"      asks the new student about {asked:,} held-out requests, for its gate")
    out.mkdir(parents=True, exist_ok=True)
    brain = opened_brain(recipe, student, "student")
    looks = Looks(
        WHOLE if promise.acceptable is None else promise.acceptable,
        promise.window,
        promise.consistency,
        novelty_of(recipe, run, out / NOVELTY) if promise.novelty else None,
    )
    answers = [[s.judged for s in scored(recipe, brain, one, looks, progress)] for one in sets]
    split = Halves(*answers) if len(answers) == 2 else halves(answers[0])
    split = split._replace(fits=alike(split.fits))
    refused = asked - sum(len(one) for one in answers)
    if not split.fits or not split.tests:
        return Gated(None, len(split.fits), refused, None)
    gate = _fitted(split, promise).model_copy(
        update={
            "consistency": promise.consistency,
            "task": recipe.task,
            "student": brain.voice.fingerprint,
            "source": OF_WINDOW if promise.on == "window" else OF_GOLDEN,
            "acceptable": looks.level,
            "novelty": None
            if looks.novelty is None
            else NoveltyFile(file=NOVELTY, sha256=sha256_of(out / NOVELTY)),
        }
    )
    save_gate(out / GATE, gate)
    wanted = _wanted(gate, split.tests, promise) if gate.threshold is None else None
    if wanted is not None and promise.on == "golden":
        wanted = wanted * len(answers[0]) // len(split.tests)  # one half of it chooses
    return Gated(gate, len(split.fits), refused, wanted)


def alike(fits: Sequence[Judged]) -> list[Judged]:
    """The answers that have the features that most of them have, and these alone: one without its
    log-probabilities is nothing to fit to, and at the gateway the teacher answers for it."""
    counts = Counter(frozenset(one.features) for one in fits if one.features)
    if not counts:
        return []
    names = max(counts, key=lambda some: (counts[some], len(some), sorted(some)))
    return [
        one._replace(
            features={name: one.features[name] for name in names},
            window={name: one.window[name] for name in names} if one.window else None,
        )
        for one in fits
        if names <= one.features.keys() and (not one.window or names <= one.window.keys())
    ]


def _fitted(split: Halves, promise: Promise) -> GateFile:
    """Streams have a gate of their own where the answers have heads; a student that was wrong
    nowhere, or right nowhere, is no mistake here."""
    headed = all(one.window for one in split.fits) and any(one.window for one in split.tests)
    return gate_from(
        split,
        promise.error,
        promise.delta,
        "auto",
        window=promise.window if headed and promise.consistency is None else None,
        heads=split,
        own=True,
    )


def _wanted(gate: GateFile, tests: Sequence[Judged], promise: Promise) -> int | None:
    found = sureness(gate.calibrator, tests)
    return foreseen_samples(found.scores, found.wrong, promise.error, promise.delta)


def _set_of(samples: Sequence[HeldOut]) -> EvaluationSet:
    texts = tuple(one.answer for one in samples)
    return EvaluationSet(
        name="held_out",
        reference="teacher",
        queries=tuple(one.query for one in samples),
        references=texts,
        teacher=Answers(texts, None),
        groups=None,
        left_out=0,
    )


def _golden(recipe: Recipe, run: Path) -> EvaluationSet:
    for one in load_sets(recipe, RunFolder(run)):
        if one.name == "golden":
            return one
    raise UserError(
        "retrain.fallback.on",
        "is golden, as the live student's gate has it, and the recipe has no golden set",
        action="write window",
    )
