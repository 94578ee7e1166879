"""Why a student stopped improving, and what to do next: findings and a verdict in words.

Reads a training's course (learning curve, looks at the held-out set, the kept student on examples
it was trained on) and says of each known cause whether it is there, is not, or cannot be told from
what was measured. `LEVEL` is the chance that a test speaks of something that is not there. Rules,
their error rates and limits are in docs/convergence.md. Knows numbers; knows no model and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from stillhouse.core.learning_curve import CurveFit, fit_curve
from stillhouse.core.statistics import wilson
from stillhouse.train.detect import Blocks, Integers, copied, gap, grew, rises
from stillhouse.train.history import CurveRow
from stillhouse.train.looks import Look

LEVEL: Final = 0.01
FITS: Final = 0.95  # a student that gives less of its lesson's answers back has not fitted it
WIDE: Final = 0.02  # agreement lost from seen to unseen examples that more data may bring back
MOVING: Final = 0.10  # a share of the divergence, gained in the last half, that is still moving
BARE, FLAT = 0.02, 0.90  # teacher entropy over log C, below and above which targets say little

Name = Literal[
    "rate_too_high",
    "copies_mistakes",
    "divergence_growth",
    "too_little_data",
    "not_finished",
    "capacity_ceiling",
    "soft_targets",
]


class Finding(NamedTuple):
    """One known cause: `found` (`None`: cannot be told), what was seen, and what to do about it."""

    name: Name
    found: bool | None
    seen: str
    action: str | None = None
    numbers: Mapping[str, float | int | None] = {}


class Verdict(NamedTuple):
    """`state` is the finding that explains most, or `converged` or `unknown`."""

    state: str
    sentence: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The course of one training.

    `kept` and `lesson` are the kept student on the held-out set and on examples of the training
    set. For a classifier of C `classes`, `teacher` and `truth` [N] are answers to the held-out
    items, -1 where unknown, and `entropy` is the teacher's mean one over classes at the
    distillation temperature (nats), `None` where it is not known or not learned from.
    """

    rows: Sequence[CurveRow]
    looks: Sequence[Look]
    kept: Look | None
    lesson: Look | None
    best_step: int
    learning_rate: float
    distillation_temperature: float
    classes: int | None = None
    teacher: Integers | None = None
    truth: Integers | None = None
    entropy: float | None = None


@dataclass(frozen=True, slots=True)
class Convergence:
    """What is known of a course."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    floor: CurveFit | None
    evidence: Evidence

    def as_json(self) -> dict[str, Any]:
        """convergence.json."""
        return {
            "verdict": self.verdict._asdict() | {"actions": list(self.verdict.actions)},
            "findings": [
                one._asdict() | {"numbers": {k: _finite(v) for k, v in one.numbers.items()}}
                for one in self.findings
            ],
            "extrapolated_divergence": None
            if self.floor is None
            else {**self.floor.ceiling.to_json(), "known": self.floor.ceiling_known},
            "looks": _looks_json(self.evidence),
        }


def judge_course(evidence: Evidence) -> Convergence:
    """All findings on a training, and the verdict."""
    floor = _floor(evidence)
    rate, growth = _rate_too_high(evidence), _divergence_growth(evidence)
    data, moving = _too_little_data(evidence), _not_finished(evidence)
    findings = (
        rate,
        _copies_mistakes(evidence),
        growth,
        data,
        moving,
        _capacity_ceiling(evidence, rate, data, moving, floor),
        _soft_targets(evidence),
    )
    return Convergence(_verdict(findings), findings, floor, evidence)


def _rate_too_high(evidence: Evidence) -> Finding:
    """A rising training loss, or a student that learned nothing though its loss has settled."""
    losses = [row.loss for row in evidence.rows if row.loss is not None]
    lower = f"lower train.learning_rate (it was {evidence.learning_rate:g}), to a tenth at first"
    name: Name = "rate_too_high"
    if any(row.loss is None and row.held_out_divergence is None for row in evidence.rows):
        return Finding(name, True, "the training loss was not finite at some step", lower)
    if len(losses) < 8:
        return Finding(name, None, f"{len(losses)} rows of training loss are too few to tell")
    p = rises(losses)
    numbers: dict[str, float | int | None] = {"p_value": p}
    if p <= LEVEL:
        return Finding(
            name, True, f"the training loss rose in the course of training (p = {p:.2g})", lower,
            numbers,
        )  # fmt: skip
    settled = rises([-loss for loss in losses[len(losses) // 2 :]]) > LEVEL
    if evidence.kept is not None and evidence.teacher is not None and settled:
        common = int(np.bincount(evidence.teacher[evidence.teacher >= 0]).max(initial=0))
        share = common / max(1, int((evidence.teacher >= 0).sum()))
        agreement = evidence.kept.agreement
        got = wilson(int(agreement.sums.sum()), len(agreement.sums), 1 - 2 * LEVEL)
        numbers |= {"agreement": got.estimate, "most_frequent_answer": share}
        if got.low <= share:
            return Finding(
                name, True,
                f"the training loss has settled, yet the student agrees on {_share(got.estimate)}, "
                f"not clearly above always giving the most frequent answer ({_share(share)})",
                f"{lower}; if it was low already, raise it and train longer", numbers,
            )  # fmt: skip
    return Finding(name, False, "the training loss did not rise", None, numbers)


def _copies_mistakes(evidence: Evidence) -> Finding:
    name: Name = "copies_mistakes"
    looks = [look.choices for look in evidence.looks]
    if evidence.teacher is None or evidence.truth is None or any(c is None for c in looks):
        return Finding(name, None, "needs a classifier, and the truth of held-out examples")
    known = (evidence.truth >= 0) & (evidence.teacher >= 0)
    if not known.any():
        return Finding(name, None, "no held-out example has a true answer beside the teacher's")
    choices = np.array([c[known] for c in looks if c is not None]).reshape(-1, int(known.sum()))
    found = copied(choices, evidence.teacher[known], evidence.truth[known])
    if found is None:
        return Finding(name, None, "fewer than two looks, or the teacher is never wrong here")
    step = evidence.looks[found.look].step
    numbers: dict[str, float | int | None] = {
        "since_step": step,
        "teacher_wrong": found.wrong,
        "accuracy_then": found.accuracy[0],
        "accuracy_last": found.accuracy[1],
        "copied_then": found.copied[0],
        "copied_last": found.copied[1],
        "p_value": found.p_value,
    }
    seen = (
        f"since step {step:,} accuracy went from {_share(found.accuracy[0])} to "
        f"{_share(found.accuracy[1])}, and the teacher's answer was given to "
        f"{_share(found.copied[0])}, then {_share(found.copied[1])} of the {found.wrong:,} items "
        f"where it is wrong (p = {found.p_value:.2g})"
    )
    if found.p_value > LEVEL:
        return Finding(name, False, seen, None, numbers)
    return Finding(
        name, True, seen,
        f"stop near step {step:,} (fewer train.epochs), lower train.alpha where true answers are "
        "in the data, or correct the teacher (teacher.samples, a judge)", numbers,
    )  # fmt: skip


def _divergence_growth(evidence: Evidence) -> Finding:
    name: Name = "divergence_growth"
    found = grew([look.divergence for look in evidence.looks])
    if found is None:
        return Finding(name, None, "needs two looks at the held-out set, of 8 items or batches")
    step = evidence.looks[found.look].step
    numbers: dict[str, float | int | None] = {
        "since_step": step,
        "change": found.change,
        "p_value": found.p_value,
    }
    if found.p_value > LEVEL:
        return Finding(name, False, "held-out divergence did not grow", None, numbers)
    return Finding(
        name, True,
        f"held-out divergence grew by {found.change:.3g} nats since step {step:,} "
        f"(p = {found.p_value:.2g}); the student of step {evidence.best_step:,} was kept",
        "fewer train.epochs or a lower train.learning_rate; train.patience stops a run earlier",
        numbers,
    )  # fmt: skip


def _too_little_data(evidence: Evidence) -> Finding:
    name: Name = "too_little_data"
    if evidence.lesson is None or evidence.kept is None:
        return Finding(name, None, "the kept student was not looked at on its training examples")
    found = gap(evidence.lesson.agreement, evidence.kept.agreement, LEVEL)
    if found is None:
        return Finding(name, None, "needs 8 held-out items or batches")
    seen = (
        f"agreement is {_share(evidence.lesson.agreement.mean)} on examples it was trained on and "
        f"{_share(evidence.kept.agreement.mean)} on held-out ones: {100 * found.difference:+.1f} "
        f"points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    )
    numbers = {"gap": found.difference, "low": found.low, "high": found.high}
    if found.low <= WIDE:
        return Finding(name, False, seen, None, numbers)
    return Finding(
        name, True, seen,
        "more teacher answers (`stillhouse curve` says how many are worth paying for)", numbers,
    )  # fmt: skip


def _not_finished(evidence: Evidence) -> Finding:
    """Whether the second half of the course still gained a share of the divergence."""
    name: Name = "not_finished"
    if len(evidence.looks) < 2 or len(evidence.looks[-1].divergence.sums) < 8:
        return Finding(name, None, "needs two looks at the held-out set, of 8 items or batches")
    last = evidence.looks[-1]
    half = max(
        (look for look in evidence.looks[:-1] if look.step <= last.step / 2),
        key=lambda look: look.step,
        default=evidence.looks[0],
    )
    gained = Blocks(half.divergence.sums - last.divergence.sums, last.divergence.items)
    share = gained.mean / max(half.divergence.mean, 1e-12)
    clear = gained.mean - 2.33 * gained.error > MOVING * half.divergence.mean
    still = clear and evidence.best_step == last.step
    numbers: dict[str, float | int | None] = {"since_step": half.step, "gained": share}
    seen = (
        f"from step {half.step:,} to {last.step:,} held-out divergence went from "
        f"{half.divergence.mean:.3g} to {last.divergence.mean:.3g} nats"
    )
    if not still:
        return Finding(name, False, seen, None, numbers)
    return Finding(name, True, f"{seen}, and the last look was the best", "more train.epochs",
                   numbers)  # fmt: skip


def _capacity_ceiling(
    evidence: Evidence, rate: Finding, data: Finding, moving: Finding, floor: CurveFit | None
) -> Finding:
    """A student that has settled, and does not give back even what it was trained on."""
    name: Name = "capacity_ceiling"
    if evidence.classes is None:
        return Finding(
            name, None,
            "of a text student one size tells nothing: no size gives every token of its teacher "
            "back (`stillhouse frontier` compares sizes)",
        )  # fmt: skip
    if evidence.lesson is None:
        return Finding(name, None, "the kept student was not looked at on its training examples")
    if rate.found:
        return Finding(name, None, "cannot be told from a course whose rate was too high")
    lesson = evidence.lesson.agreement
    got = wilson(int(lesson.sums.sum()), len(lesson.sums), 1 - 2 * LEVEL)
    numbers: dict[str, float | int | None] = {"agreement": got.estimate, "high": got.high}
    seen = f"the kept student gives {_share(got.estimate)} of the answers it was trained on"
    if floor is not None:
        best = floor.ceiling
        numbers |= {"floor": best.estimate, "floor_low": best.low, "floor_high": best.high}
        seen += (
            f"; its held-out divergence, continued over steps, ends at {best.estimate:.3g} nats "
            f"[{best.low:.3g}, {best.high:.3g}]"
        )
    if got.high >= FITS:
        return Finding(name, False, seen, None, numbers)
    if moving.found is not False:
        return Finding(name, None, f"{seen}, but it had not settled", None, numbers)
    return Finding(
        name, True, f"{seen}, and has settled",
        "a bigger student (student.size, student.layers); where it is cheap, twice the "
        "train.epochs first", numbers,
    )  # fmt: skip


def _soft_targets(evidence: Evidence) -> Finding:
    name: Name = "soft_targets"
    temperature = evidence.distillation_temperature
    if evidence.entropy is None or evidence.classes is None:
        return Finding(name, None, "needs a classifier that learns from the teacher's beliefs")
    share = evidence.entropy / math.log(evidence.classes)
    seen = (
        f"at T = {temperature:g} the teacher's beliefs have {evidence.entropy:.3g} nats of at most "
        f"{math.log(evidence.classes):.3g}"
    )
    numbers: dict[str, float | int | None] = {"entropy": evidence.entropy, "share": share}
    if share < BARE:
        action = f"raise train.distillation_temperature (to {2 * temperature:g}, say)"
        return Finding(name, True, f"{seen}: hardly more than its answers", action, numbers)
    if share > FLAT:
        action = f"lower train.distillation_temperature (to {temperature / 2:g}, say)"
        return Finding(name, True, f"{seen}: hardly anything but noise", action, numbers)
    return Finding(name, False, seen, None, numbers)


WORDS: Final[Mapping[str, str]] = {
    "rate_too_high": "The learning rate was too high",
    "copies_mistakes": "The student came to copy the teacher's mistakes",
    "divergence_growth": "The student moved away from the teacher after its best step",
    "too_little_data": "The student knows its training examples better than new ones",
    "not_finished": "Training ended while the student was still improving",
    "capacity_ceiling": "The student is too small for this task",
    "soft_targets": "The distillation temperature does not fit the teacher",
}


def _verdict(findings: Sequence[Finding]) -> Verdict:
    """The first finding explains most; the actions of all, in order."""
    there = [one for one in findings if one.found]
    if there:
        first = there[0]
        actions = tuple(one.action for one in there if one.action is not None)
        return Verdict(first.name, f"{WORDS[first.name]}: {first.seen}.", actions)
    unknown = [one.name for one in findings if one.found is None]
    core = {"rate_too_high", "divergence_growth", "not_finished"}
    if core & set(unknown):
        return Verdict(
            "unknown",
            "What was measured is too little to say why the student stands where it stands.",
            ("more held-out examples, or more train.evals",),
        )
    return Verdict(
        "converged", "The student has converged: no known cause of a loss was found.", ()
    )


def _floor(evidence: Evidence) -> CurveFit | None:
    """Held-out divergence over steps, continued."""
    points = [(look.step, look.divergence.mean) for look in evidence.looks if look.step > 0]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if len(finite) < 4 or len({step for step, _ in finite}) < 4:
        return None
    steps, values = zip(*finite, strict=True)
    return fit_curve(steps, values, best=0.0, falling=True)


def _looks_json(evidence: Evidence) -> list[dict[str, float | int | None]]:
    found: list[dict[str, float | int | None]] = []
    teacher, truth = evidence.teacher, evidence.truth
    for look in evidence.looks:
        row: dict[str, float | int | None] = {
            "step": look.step,
            "divergence": _finite(look.divergence.mean),
            "divergence_error": _finite(look.divergence.error),
            "agreement": look.agreement.mean,
            "accuracy": None,
            "agreement_on_mistakes": None,
        }
        if look.choices is not None and truth is not None and (truth >= 0).any():
            known = truth >= 0
            row["accuracy"] = float((look.choices == truth)[known].mean())
            wrong = known & (teacher >= 0) & (teacher != truth) if teacher is not None else ~known
            if wrong.any():
                row["agreement_on_mistakes"] = float((look.choices == teacher)[wrong].mean())
        found.append(row)
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"
