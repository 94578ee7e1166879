"""Whose gate a student has that came without one, and whether it may climb then.

Where a task's students are gated by a calibrator, one that no gate is fitted to answers nothing
alone: the teacher does, unless gateway.yaml says that it is shown. Such a student may be put in
place by hand, but it does not climb: what the teacher answers for it would be its evidence. Knows
states and sections; opens nothing.
"""

from __future__ import annotations

from stillhouse.core.errors import DataError
from stillhouse.serve.gate_file import NEVER, load_gate
from stillhouse.serve.gates import threshold_of
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.records import ExperimentState, StudentFolder
from stillhouse.serve.seams import Gate
from stillhouse.serve.seats import CLOSED, NO_GATE, OF_FILE, Inherited


def demands_gate(task: TaskSection, running: StudentFolder | None) -> bool:
    """Whether a new student of a task needs a gate that is fitted to it: gateway.yaml has a
    calibrator, or the student that runs came with one of its own, or without one for it."""
    fallback = task.fallback
    if fallback.ungated == "shown" or not fallback.teacher_when_student_down:
        return False
    own = running is not None and running.gate not in (None, OF_FILE)
    return own or fallback.calibrator is not None


def inherited_gate(
    task: TaskSection,
    of_file: Gate | None,
    state: ExperimentState,
    running: StudentFolder | None,
    *,
    refined: bool,
) -> Inherited | None:
    """The gate of a new folder that has none: of a refined student its own, where it has one; else
    gateway.yaml's bare threshold, or its calibrator where that was fitted to the new one.

    Args:
        of_file: gateway.yaml's gate.
        running: the folder that the running student is of; `None`: it is gateway.yaml's.

    Raises:
        DataError: the calibrator's file cannot be used, and another student would be shown without
            a gate.
    """
    before = state if state.candidate is None else state.candidate.before
    if refined and running is not None and running.gate is not None and running.gate != NO_GATE:
        return Inherited(running.gate, of_file, running.threshold)
    fallback = task.fallback
    if refined and running is None and before.threshold is not None:
        return Inherited(OF_FILE, of_file, before.threshold)
    if fallback.calibrator is None and fallback.threshold is not None:
        return Inherited(OF_FILE, of_file, fallback.threshold)
    closed = demands_gate(task, running)
    if fallback.calibrator is not None:
        try:
            fitted, threshold = load_gate(fallback.calibrator).student, threshold_of(task)
        except DataError:  # it may lie in the live student's folder, and that be one without
            if not closed and not refined:
                raise
            return CLOSED if closed else None
        if fitted is not None:
            return Inherited(OF_FILE, of_file, threshold, fitted, closed)
    return CLOSED if closed else None


def gated_anew(task: TaskSection, state: ExperimentState, folder: StudentFolder) -> StudentFolder:
    """A stored student as gateway.yaml has it now: one without a gate may have been closed, or
    shown, under a file that said otherwise. One with a gate stays as it is."""
    if folder.gate not in (None, NO_GATE):
        return folder
    found = inherited_gate(task, None, state, folder, refined=True)
    if found is not None and found.fitted not in (None, folder.fingerprint):
        found = CLOSED if found.closed else None
    if found is None and folder.gate is None:
        return folder
    gate, threshold = (None, None) if found is None else (found.path, found.threshold)
    return folder.model_copy(update={"gate": gate, "threshold": threshold})


def problem_of(task: TaskSection, folder: StudentFolder) -> str | None:
    """Why a student would answer nothing alone; `None`: it answers what it is sure of."""
    if folder.gate == NO_GATE:
        return "it has no gate.json, and none is fitted to it"
    by_hand = folder.gate == OF_FILE and task.fallback.threshold is not None
    if folder.threshold is not None and folder.threshold >= NEVER and not by_hand:
        return "its gate shows no threshold that keeps the promised error"
    return None
