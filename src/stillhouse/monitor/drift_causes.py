"""Which cause the tests of a window speak for: inputs, teacher, or student.

- Canaries are asked the same prompts, so that a change of theirs is the model's own.
- Agreement on inputs like the reference's falls if either model changed: it is the teacher's where
  canaries say so, the newest windows' too, since canaries are asked less often than there are
  windows; else the student's.
- Inputs changed where their embeddings, lengths or languages did. Confidence, latency and answers
  follow from any of the three, and name none.

Knows tests that were made; pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from stillhouse.core.loop_drift import DriftSection
from stillhouse.monitor.drift_records import (
    Canary,
    Cause,
    CauseFinding,
    Example,
    Observation,
    Persistence,
    TestResult,
)
from stillhouse.monitor.drift_tests import (
    AGREEMENT,
    CLASSIFIER,
    DIVERGENCE,
    STUDENT_CANARIES,
    TEACHER_CANARIES,
    Inputs,
    Trials,
)

ACTIONS: Final[Mapping[Cause, str]] = {
    "input_shift": "label the new kind of request with the teacher and distil again: "
    "stillhouse retrain; until then let the teacher answer more of it (fallback.threshold)",
    "teacher_drift": "pin the teacher's revision or accept the new one: check its answers on the "
    "labelled set, then freeze canaries again; do not retrain on mixed answers",
    "student_decay": "roll the student back (stillhouse registry rollback) and check its files and "
    "runtime; retrain only if the files are whole",
    "none": "nothing to do",
}
_PAIRS: Final = (AGREEMENT, DIVERGENCE)


def causes_of(
    tests: Sequence[TestResult],
    holds: Callable[[TestResult], bool],
    trials: Trials,
    settings: DriftSection,
    words: tuple[str, ...],
    *,
    persistence: Persistence,
) -> tuple[CauseFinding, ...]:
    """The causes that the tests which `holds` lets through speak for, the strongest first.

    Args:
        persistence: with this window; what canaries said when they were last asked.
    """
    spoken = [one for one in tests if holds(one)]
    blamed = _blamed(persistence)
    by: dict[Cause, list[TestResult]] = {}
    for one in spoken:
        cause = _cause(one, blamed)
        if cause is not None:
            by.setdefault(cause, []).append(one)
    found = [
        CauseFinding(
            cause=cause,
            strength=max(_strength(one) for one in its),
            tests=tuple(one.name for one in its),
            summary=_summary(cause, its, words),
            action=ACTIONS[cause],
            examples=_examples(cause, trials, settings.examples),
        )
        for cause, its in by.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.strength, one.cause)))


def _blamed(persistence: Persistence) -> Cause:
    """Whose doing a fall of agreement is, as far as canaries of the windows kept tell."""
    teacher = persistence.history.get(TEACHER_CANARIES, ())
    student = persistence.history.get(STUDENT_CANARIES, ())
    if any(student):
        return "student_decay"
    # The student says what it said: what moved away from it is the teacher.
    return "teacher_drift" if any(teacher) or (student and not teacher) else "student_decay"


def _cause(test: TestResult, blamed: Cause) -> Cause | None:
    if test.name == TEACHER_CANARIES:
        return "teacher_drift"
    if test.name == STUDENT_CANARIES:
        return "student_decay"
    if test.name in _PAIRS:
        return blamed
    return "input_shift" if test.family == "input" else None


def _strength(test: TestResult) -> float:
    """Effect over the effect that counts; of an area under the ROC, beyond one half."""
    chance = 0.5 if test.name.startswith(CLASSIFIER) else 0.0
    return (test.effect - chance) / max(test.least - chance, 1e-9)


def _summary(cause: Cause, tests: Sequence[TestResult], words: tuple[str, ...]) -> str:
    strongest = max(tests, key=_strength)
    measured = f"{strongest.measure} {strongest.effect:.3g} [{strongest.low:.3g}, "
    measured += f"{strongest.high:.3g}]"
    if cause == "input_shift":
        marks = f"; words: {', '.join(words)}" if words else ""
        return f"the requests are of another kind: {measured}{marks}"
    if cause == "teacher_drift":
        return f"the teacher answers otherwise than before: {measured}"
    return f"the student answers otherwise on inputs that did not change: {measured}"


def _examples(cause: Cause, trials: Trials, most: int) -> tuple[Example, ...]:
    if cause == "input_shift":
        return _typical(trials.inputs, most)
    of = trials.teacher if cause == "teacher_drift" else trials.student
    if of is not None and of.changed:
        return tuple(_changed(one) for one in of.changed[:most])
    return tuple(_disagreed(one) for one in trials.fallen[:most])


def _typical(inputs: Inputs | None, most: int) -> tuple[Example, ...]:
    if inputs is None:
        return ()
    order = sorted(range(len(inputs.rows)), key=lambda n: (-inputs.scores[n], inputs.rows[n].id))
    return tuple(
        Example(id=inputs.rows[n].id, text=inputs.rows[n].text or "", score=float(inputs.scores[n]))
        for n in order[:most]
    )


def _changed(one: Canary) -> Example:
    return Example(
        id=one.id, text=one.prompt, score=1.0 - one.likeness, before=one.frozen, now=one.now
    )


def _disagreed(one: Observation) -> Example:
    return Example(
        id=one.id,
        text=one.text or "",
        score=1.0 - (one.agreement or 0.0),
        before=one.teacher_answer,
        now=one.student_answer,
    )
