"""INT8 forms that fall below their gate, and the same forms of a student distilled further.

Says which forms a student should learn the grid of, and how both are named. The training itself is
handed in by whoever runs the stage. Knows scores and names; no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compress import INT8, CompressSection, Format
from stillhouse.core.scorers import scorers_for
from stillhouse.evaluate.candidates import Answers, EvaluationSet
from stillhouse.evaluate.gate import decide
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.results import STUDENT

RETRAINED: Final = "quantization-aware"  # where the student is trained, below the stage's folder
_AWARE: Final = "-aware"


class Retrain(Protocol):
    """Distils a student further, on the grid of INT8."""

    def __call__(self, student: Path, work: Path) -> Path:
        """Train `student` in `work`; a killed training goes on there. Returns a float student's
        folder.

        Raises:
            UserError: this student, or this run, does not allow it; says why.
            StillhouseError: training went off.
        """


def aware_name(name: Format) -> str:
    """Of the form of the student that was distilled further: `onnx-int8-aware`."""
    return f"{name}{_AWARE}"


def plain_name(name: str) -> str | None:
    """The form that `name` is meant to better; `None` for the forms of the student as it was."""
    return name.removesuffix(_AWARE) if name.endswith(_AWARE) else None


def below_gate(
    recipe: Recipe, section: CompressSection, main: EvaluationSet, answers: Mapping[str, Answers]
) -> list[Format]:
    """The INT8 forms that rounding made too bad for the gate, in the order of `answers`.

    A form counts that scores below the float student, and fails against it or, where the float
    student does not, against the teacher. Where rounding cost nothing, or the float student is
    itself too bad, learning the grid is no remedy.
    """
    decisive = scorers_for(recipe.task)[0]
    evaluate = recipe.evaluate
    how = Resampling(evaluate.confidence, evaluate.resamples, recipe.seed, main.groups)
    margin = evaluate.margin if section.margin_teacher is None else section.margin_teacher

    def scores(texts: Sequence[str]) -> list[float]:
        return [decisive.score(a, r) for a, r in zip(texts, main.references, strict=True)]

    def fails(own: list[float], other: list[float], allowed: float) -> bool:
        return decide(own, other, allowed, main.reference, how).verdict == "fail"

    teacher, parent = scores(main.teacher.texts), scores(answers[STUDENT].texts)
    parent_fails = fails(parent, teacher, margin)
    found: list[Format] = []
    for name in INT8:
        if name not in answers:
            continue
        own = scores(answers[name].texts)
        worse = fails(own, parent, section.margin_student)
        if sum(own) < sum(parent) and (worse or (not parent_fails and fails(own, teacher, margin))):
            found.append(name)
    return found
