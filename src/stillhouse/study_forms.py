"""The students of a frontier and their compressed forms, judged on one set of samples.

A variant whose recipe has a `compress` section brings its artefacts too: each is a point of its
own. Knows finished variants; trains, times and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.scorers import scorers_for
from stillhouse.evaluate.candidates import EvaluationSet
from stillhouse.evaluate.compressed import CompressedRow
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.results import STUDENT, TEACHER, Evaluation, Prediction, SetName
from stillhouse.variants import Ran


class Judged(NamedTuple):
    """A student, or a compressed form of it, beside the teacher: a score a sample."""

    ran: Ran
    student: list[float]
    teacher: list[float]
    form: CompressedRow | None = None

    @property
    def name(self) -> str:
        """Variant, then the form."""
        return named(self.ran, self.form)


def named(ran: Ran, form: CompressedRow | None) -> str:
    """`light`, or `light/onnx-int8`."""
    name = ran.variant.name
    return name if form is None else f"{name}/{form.name}"


def forms_of(ran: Ran) -> tuple[CompressedRow, ...]:
    """The compressed forms of a variant whose recipe has the section."""
    table = ran.report.compress
    return () if table is None else table.artefacts


def judged_forms(recipe: Recipe, ran: Sequence[Ran], main: EvaluationSet) -> list[Judged]:
    """Each student's and the teacher's scores on the main set, in its order; then its forms'."""
    decisive = scorers_for(recipe.task)[0]

    def scores(lines: Sequence[Prediction], name: str) -> list[float]:
        return [decisive.score(line.answers[name], line.reference) for line in lines]

    found: list[Judged] = []
    for one in ran:
        lines = _lines(one, "evaluate", main)
        found.append(Judged(one, scores(lines, STUDENT), scores(lines, TEACHER)))
        forms = forms_of(one)
        lines = _lines(one, "compress", main) if forms else []
        for form in forms:
            found.append(Judged(one, scores(lines, form.name), scores(lines, TEACHER), form))
    return found


def _lines(one: Ran, stage: str, main: EvaluationSet) -> list[Prediction]:
    lines = [
        line
        for line in read_records(one.root / stage / "predictions.jsonl", Prediction)
        if line.set == main.name
    ]
    if [line.id for line in lines] != [query.id for query in main.queries]:
        raise RunFolderError(f"{one.root}: was judged on other samples; delete its folder")
    return lines


def of_student(made: Report, evaluation: Evaluation) -> dict[str, Any]:
    """What a `SizedStudent` says of a student as it was evaluated."""
    return {
        "size_bytes": evaluation.student.size_bytes,
        "score": made.student.score,
        "retention": made.retention,
        "agreement": made.fidelity.agreement,
        "verdict": made.gate.verdict,
        "difference": made.gate.difference,
    }


def of_form(form: CompressedRow, main: SetName) -> dict[str, Any]:
    """Of a compressed form: refused by its own gate, it is refused here."""
    own = form.sets[main]
    return {
        "size_bytes": form.size_bytes,
        "score": own.score,
        "retention": form.retention_teacher,
        "agreement": own.agreement,
        "verdict": form.verdict,
        "difference": form.against_teacher.difference,
    }
