"""The step `calibrate`: how sure the new student must be to answer for itself.

The threshold is chosen on requests that nothing else has looked at: no training, no early stopping,
no choice of a smaller form, no gate of the cycle. What shapes the confidence may be any other
answers, so there the requests that judge students serve, of this window and of earlier ones. The
gate.json becomes one of the student's files before it is judged and registered. Knows no model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stillhouse.core.artefact import GATE, NOVELTY
from stillhouse.core.errors import StillhouseError
from stillhouse.core.jsonl import disk_errors
from stillhouse.retrain.cycle_files import ENTRY, RUN
from stillhouse.retrain.cycle_records import Cycle, CycleLine, Promise, Regated
from stillhouse.retrain.cycle_train import Refused
from stillhouse.retrain.loop import Loop, served
from stillhouse.retrain.promise import in_words, live_gate
from stillhouse.retrain.registry_objects import folder_digest
from stillhouse.retrain.seams import Gated, Samples
from stillhouse.retrain.verdict import Check

CALIBRATE: Final = "calibrate"  # the gate as it was made, whatever came of it
MOST_FITTED: Final = 1000  # answers that shape the confidence; the newest


def calibrate_step(loop: Loop, cycle: Cycle, lines: Sequence[CycleLine]) -> Cycle:
    """Fit the student's gate and put it among its files; nothing where it needs none.

    Raises:
        Refused: its answers are nothing that a gate can be fitted to.
    """
    promise = cycle.promise
    if promise is None:
        return cycle
    folder = loop.files.cycle(cycle.number)
    entry, out = folder / ENTRY, folder / CALIBRATE
    newest_first = [*loop.files.held_out(cycle.number), *loop.earlier_held_out(lines)[::-1]]
    samples = Samples(newest_first[:MOST_FITTED], loop.files.calibration(cycle.number))
    try:
        found = loop.workshop.calibrate(served(entry), folder / RUN, out, samples, promise)
    except StillhouseError:
        raise
    except ValueError as why:
        raise Refused(f"no gate can be fitted to the new student: {why}") from why
    if found.gate is not None and found.gate.threshold is not None:
        _put(out, served(entry), novelty=found.gate.novelty is not None)
    live = live_gate(cycle.incumbent)
    told = _told(found, promise, None if live is None else live.coverage)
    loop.say(f"window {cycle.name}: fallback: {told.said}")
    return cycle.model_copy(update={"fallback": told, "digest": folder_digest(entry)})


def check_of(cycle: Cycle) -> Check | None:
    """Whether a threshold keeps the promised error; `None`: nothing was promised.

    A student without one is refused: it would answer nothing alone, and at the gateway the
    teacher's answers in its stead would be its evidence.
    """
    if cycle.promise is None:
        return None
    found = cycle.fallback
    passed = found is not None and found.threshold is not None
    said = "it was not calibrated" if found is None else found.said
    if not passed:
        stays = "no student becomes live" if cycle.incumbent is None else "the live student stays"
        said = f"{said}; {stays}, since this one would answer nothing alone"
    return Check(against="error", window=cycle.name, passed=passed, said=f"fallback: {said}")


def _put(out: Path, student: Path, *, novelty: bool) -> None:
    """Copy the gate into the student's folder, whole: nothing else is ever left there."""
    with disk_errors(student):
        for name in (NOVELTY, GATE) if novelty else (GATE,):
            copied = out / f"{name}.copy"
            shutil.copyfile(out / name, copied)
            os.replace(copied, student / name)


def _told(found: Gated, promise: Promise, live_coverage: float | None) -> Regated:
    gate = found.gate
    count = 0 if gate is None else gate.n
    window = None if gate is None else gate.window
    told = Regated(
        threshold=None if gate is None else gate.threshold,
        coverage=0.0 if gate is None else gate.coverage,
        live_coverage=live_coverage,
        n=count,
        fitted=found.fitted,
        refused=found.refused,
        wanted=found.wanted,
        stream_threshold=None if window is None else window.threshold,
        stream_tokens=None if window is None else window.tokens,
    )
    whose = "samples of the golden set" if promise.on == "golden" else "held-out requests"
    return told.model_copy(update={"said": _words(told, promise, f"{count:,} {whose}")})


def _words(told: Regated, promise: Promise, samples: str) -> str:
    if told.threshold is None:
        if told.n == 0:
            why = "the student answered none of the samples"
        elif told.wanted is None:
            why = f"even where it is surest it is wrong too often ({samples})"
        elif promise.on == "golden":
            why = f"{samples} are too few; about {told.wanted:,} would do"
        else:
            why = (
                f"{samples} are too few; about {told.wanted:,} would do (retrain.fallback.held_out)"
            )
        return f"no threshold keeps {in_words(promise)}: {why}"
    beside = "" if told.live_coverage is None else f", the live student {told.live_coverage:.1%}"
    text = (
        f"it answers {100 * told.coverage:.1f}% alone{beside}, from a confidence of "
        f"{told.threshold:.3f} on, wrong in at most {100 * promise.error:g}% of that with "
        f"probability {1 - promise.delta:g} ({samples})"
    )
    if told.stream_tokens is None:
        return text
    if told.stream_threshold is None:
        return f"{text}; no threshold keeps it for streams, which the teacher answers"
    return (
        f"{text}; streams by their first {told.stream_tokens} tokens, {told.stream_threshold:.3f}"
    )
