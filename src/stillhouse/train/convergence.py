"""Why a student stopped improving, and what to do next: findings and a verdict in words.

Reads a training's course (learning curve, looks at the held-out set, the kept student on examples
it was trained on) and says of each known cause whether it is there, is not, or cannot be told from
what was measured (`evidence`). Rules, their error rates and limits are in docs/convergence.md.
Knows numbers; knows no model and no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stillhouse.core.learning_curve import CurveFit, fit_curve
from stillhouse.core.statistics import wilson
from stillhouse.train.convergence_rate import rate_too_high
from stillhouse.train.detect import Blocks, copied, gap, grew
from stillhouse.train.evidence import LEVEL, Evidence, Finding, Name, finite, percent, told

FITS: Final = 0.95  # a student that gives less of its lesson's answers back has not fitted it
WIDE: Final = 0.02  # agreement lost from seen to unseen examples that more data may bring back
MOVING: Final = 0.10  # a share of the divergence, gained in the last half, that is still moving
BARE, FLAT = 0.02, 0.90  # teacher entropy over log C, below and above which targets say little


class Verdict(NamedTuple):
    """`state` is the finding that explains most, or `converged` or `unknown`."""

    state: str
    sentence: str
    actions: tuple[str, ...]


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
                one._asdict() | {"numbers": {k: finite(v) for k, v in one.numbers.items()}}
                for one in self.findings
            ],
            "extrapolated_divergence": None
            if self.floor is None
            else {**self.floor.ceiling.to_json(), "known": self.floor.ceiling_known},
            "of_known_truth": _told_json(self.evidence),
            "looks": _looks_json(self.evidence),
        }


def judge_course(evidence: Evidence) -> Convergence:
    """All findings on a training, and the verdict."""
    floor = _floor(evidence)
    rate, growth = rate_too_high(evidence), _divergence_growth(evidence)
    data, moving = _too_little_data(evidence), _not_finished(evidence)
    findings = (
        rate,
        _copies_mistakes(evidence),
        growth,
        data,
        moving,
        _capacity_ceiling(evidence, rate, moving, floor),
        _soft_targets(evidence),
    )
    return Convergence(_verdict(findings), findings, floor, evidence)


def _copies_mistakes(evidence: Evidence) -> Finding:
    name: Name = "copies_mistakes"
    if evidence.classes is None:
        return Finding(name, None, "needs a classifier")
    known = told(evidence)
    if known is None:
        return Finding(
            name, None,
            "no example that is not trained on has a true answer beside the teacher's "
            "(traffic.labelled with use_labelled, and dataset.watch)",
        )  # fmt: skip
    found = copied(known.choices, known.teacher, known.truth)
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
        f"since step {step:,} accuracy went from {percent(found.accuracy[0])} to "
        f"{percent(found.accuracy[1])}, and the teacher's answer was given to "
        f"{percent(found.copied[0])}, then {percent(found.copied[1])} of the {found.wrong:,} items "
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
        f"agreement is {percent(evidence.lesson.agreement.mean)} on examples it was trained on and "
        f"{percent(evidence.kept.agreement.mean)} on held-out ones: {100 * found.difference:+.1f} "
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
    evidence: Evidence, rate: Finding, moving: Finding, floor: CurveFit | None
) -> Finding:
    """A student that has settled, by its looks and by their curve continued over steps, and does
    not give back even what it was trained on."""
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
    seen = f"the kept student gives {percent(got.estimate)} of the answers it was trained on"
    if got.high >= FITS:
        return Finding(name, False, seen, None, numbers)
    if moving.found is not False:
        return Finding(name, None, f"{seen}, but it had not settled", None, numbers)
    bigger = "a bigger student (student.size, student.layers)"
    longer = f"{bigger}; where it is cheap, twice the train.epochs first"
    if floor is None:
        seen += ", and has settled; too few looks to continue its divergence over steps"
        return Finding(name, True, seen, longer, numbers)
    best, last = floor.ceiling, evidence.looks[-1].divergence.mean
    numbers |= {"floor": best.estimate, "floor_low": best.low, "floor_high": best.high}
    ends = (
        f"its held-out divergence, {last:.3g} nats at the last look, would end at "
        f"{best.estimate:.3g} [{best.low:.3g}, {best.high:.3g}] with steps without end"
    )
    settled = (1 - MOVING) * last
    if best.high < settled:
        return Finding(name, None, f"{seen}, but {ends}: it had not settled", None, numbers)
    if best.low < settled:
        ends += ", so that more steps may still bring some"
        return Finding(name, True, f"{seen}, and has settled; {ends}", longer, numbers)
    return Finding(name, True, f"{seen}, and has settled: {ends}", bigger, numbers)


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


UNSEEN: Final[Mapping[str, str]] = {
    "rate_too_high": "whether the learning rate was too high",
    "copies_mistakes": "whether it copies the teacher's mistakes",
    "divergence_growth": "whether it moved away from the teacher",
    "too_little_data": "whether it has too little data",
    "not_finished": "whether it was still improving",
    "capacity_ceiling": "whether it is too small",
    "soft_targets": "whether the temperature fits",
}


def _verdict(findings: Sequence[Finding]) -> Verdict:
    """The first finding explains most; the actions of all, in order. Where there is none, what
    could not be looked at is said, and why."""
    there = [one for one in findings if one.found]
    if there:
        first = there[0]
        actions = tuple(one.action for one in there if one.action is not None)
        return Verdict(first.name, f"{WORDS[first.name]}: {first.seen}.", actions)
    unknown = [one for one in findings if one.found is None]
    unseen = "; ".join(f"{UNSEEN[one.name]} ({one.seen})" for one in unknown)
    core = {"rate_too_high", "divergence_growth", "not_finished"}
    if core & {one.name for one in unknown}:
        return Verdict(
            "unknown",
            "What was measured is too little to say why the student stands where it stands. It "
            f"cannot be told {unseen}.",
            ("more held-out examples, or more train.evals",),
        )
    if not unknown:
        return Verdict(
            "converged", "The student has converged: no known cause of a loss was found.", ()
        )
    return Verdict(
        "converged",
        "The student has converged; of the causes that could be looked at, none was found. It "
        f"cannot be told {unseen}.",
        (),
    )


def _floor(evidence: Evidence) -> CurveFit | None:
    """Held-out divergence over steps, continued; each look with its own standard error.

    All looks are at the same items, whose luck they share: their errors are taken as independent,
    which widens what is said of the shape.
    """
    looks = [
        look for look in evidence.looks if look.step > 0 and math.isfinite(look.divergence.mean)
    ]
    if len({look.step for look in looks}) < 4:
        return None
    errors = [look.divergence.error for look in looks]
    known = all(0 < error < math.inf for error in errors)
    return fit_curve(
        [look.step for look in looks],
        [look.divergence.mean for look in looks],
        errors=errors if known else None,
        best=0.0,
        falling=True,
    )


def _looks_json(evidence: Evidence) -> list[dict[str, float | int | None]]:
    known = told(evidence)
    wrong = None if known is None else known.teacher != known.truth
    rows: list[dict[str, float | int | None]] = []
    for number, look in enumerate(evidence.looks):
        row: dict[str, float | int | None] = {
            "step": look.step,
            "divergence": finite(look.divergence.mean),
            "divergence_error": finite(look.divergence.error),
            "agreement": look.agreement.mean,
            "accuracy": None,
            "agreement_on_mistakes": None,
        }
        if known is not None and wrong is not None:
            choices = known.choices[number]
            row["accuracy"] = float((choices == known.truth).mean())
            if wrong.any():
                row["agreement_on_mistakes"] = float((choices == known.teacher)[wrong].mean())
        rows.append(row)
    return rows


def _told_json(evidence: Evidence) -> dict[str, int] | None:
    known = told(evidence)
    if known is None:
        return None
    wrong = int((known.teacher != known.truth).sum())
    return {"examples": len(known.truth), "teacher_wrong": wrong}
