"""What the gate of a cycle's student is to keep, and what is said where too little is there for it.

A student is calibrated where its task is gated: the live student has a gate.json, or gateway.yaml a
calibrator. What is promised stays what it was, unless loop.yaml says otherwise. Knows gates' files;
asks no student.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stillhouse.core.artefact import GATE
from stillhouse.core.errors import UserError
from stillhouse.core.risk_control import least_samples
from stillhouse.core.scorers import scorers_for
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.retrain.cycle_records import Incumbent, Promise
from stillhouse.retrain.loop import Loop, served
from stillhouse.serve.gate_file import GateFile, load_gate

ERROR: Final = 0.05
DELTA: Final = 0.05
FAIR: Final = 3  # times the least that a promise takes: for students that are wrong at times
HELD_OUT: Final = 300
WINDOW: Final = 16  # tokens of a stream, where no earlier gate says
GOLDEN: Final = "golden"


def promise_of(loop: Loop, incumbent: Incumbent | None) -> Promise | None:
    """The promise of a cycle that begins now; `None`: its student needs no gate.

    Raises:
        UserError: nothing says from which score a text is acceptable; the golden set is too small
            for what is promised; or no student is to be calibrated, and the gateway lets none
            climb without a gate.
        DataError: the gate that it follows cannot be read; names the file.
    """
    section, task = loop.section.fallback, loop.workshop.task
    if section.calibrate == "never":
        if loop.gateway is not None and not loop.climbs_ungated and live_gate(incumbent):
            raise UserError(
                "retrain.fallback.calibrate",
                "is never, and the live student has a gate.json: the gateway lets no student "
                "climb without one",
                action="write auto, or fallback.ungated: shown into gateway.yaml",
            )
        return None
    gate, like = _followed(loop, incumbent)
    if gate is None and section.calibrate == "auto":
        return None
    error, delta, acceptable = ERROR, DELTA, None
    window: int | None = None if isinstance(task, ClassificationTask) else WINDOW
    of_truth = False
    if gate is not None:
        error, delta, acceptable = gate.error, gate.delta, gate.acceptable
        window = None if gate.window is None else gate.window.tokens
        of_truth = loop.golden is not None and gate.source.startswith(GOLDEN)
    acceptable = acceptable if section.acceptable is None else section.acceptable
    if acceptable is None and isinstance(task, GenerationTask):
        raise UserError(
            "retrain.fallback.acceptable",
            f"is missing: which {scorers_for(task)[0].name} makes a text acceptable",
            action="write 0.5, say",
        )
    error = error if section.error is None else section.error
    delta = delta if section.delta is None else section.delta
    least = least_samples(error, delta)
    fair = max(HELD_OUT, FAIR * least)
    on = section.on or ("golden" if of_truth else "window")
    if on == GOLDEN and loop.golden is not None and loop.golden // 2 < least:
        raise UserError(
            "retrain.fallback.on",
            f"is golden, and the golden set has {loop.golden:,} rows, one half of which chooses: "
            f"an error of {100 * error:g}% with probability {1 - delta:g} takes at least "
            f"{2 * least}",
            action="add rows, write window, or promise less (retrain.fallback)",
        )
    return Promise(
        error=error,
        delta=delta,
        on=on,
        held_out=fair if section.held_out is None else section.held_out,
        acceptable=acceptable,
        window=window,
        consistency=None if gate is None else gate.consistency,
        novelty=gate is not None and gate.novelty is not None,
        like=like,
    )


def too_few(promise: Promise, count: int) -> str | None:
    """What is said where so many samples can show no error, whatever the student; `None`: they
    may."""
    least = least_samples(promise.error, promise.delta)
    if count >= least:
        return None
    action = "let cycles be further apart, raise the budget, or promise less (retrain.fallback)"
    if promise.on == "window" and promise.held_out < least:
        action = (
            f"raise retrain.fallback.held_out, which is {promise.held_out}, or promise less "
            "(retrain.fallback)"
        )
    return (
        f"to promise {in_words(promise)} takes at least {least}, of a student that is never wrong; "
        f"no student is trained, since without a gate it would answer nothing alone: {action}"
    )


def in_words(promise: Promise) -> str:
    """What is promised."""
    return f"an error of {100 * promise.error:g}% with probability {1 - promise.delta:g}"


def live_gate(incumbent: Incumbent | None) -> GateFile | None:
    """The gate.json of the student that is live.

    Raises:
        DataError: it cannot be read; names the file.
    """
    if incumbent is None:
        return None
    own = served(Path(incumbent.folder)) / GATE
    return load_gate(own) if own.is_file() else None


def _followed(loop: Loop, incumbent: Incumbent | None) -> tuple[GateFile | None, str]:
    own = live_gate(incumbent)
    if own is not None:
        return own, "the live student's gate.json"
    if loop.calibrator is not None:
        return load_gate(loop.calibrator), "gateway.yaml's calibrator"
    return None, ""
