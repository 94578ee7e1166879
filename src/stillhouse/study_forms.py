"""The students of a frontier and their compressed forms, judged on one set of samples.

A variant whose recipe has a `compress` section brings its artefacts too: each is a point of its
own, of the first training where there are several. Knows finished variants; trains, times and
chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.scorers import scorers_for
from stillhouse.evaluate.candidates import EvaluationSet
from stillhouse.evaluate.comparison import retention_of
from stillhouse.evaluate.compressed import CompressedRow
from stillhouse.evaluate.gate import Verdict
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.results import STUDENT, TEACHER, Evaluation, Prediction, SetName
from stillhouse.study_repeats import deviation, each_mean, mean_of, training
from stillhouse.variants import Ran


class Judged(NamedTuple):
    """A student, or a compressed form of it, beside the teacher: a score a sample.

    `trainings` holds the scores of each training where there are several; `student` is then their
    mean, and `agreement` too.
    """

    ran: Ran
    student: list[float]
    teacher: list[float]
    form: CompressedRow | None = None
    trainings: tuple[list[float], ...] = ()
    agreement: tuple[float, ...] = ()

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


def judged_forms(
    recipe: Recipe,
    ran: Sequence[Ran],
    main: EvaluationSet,
    further: Mapping[str, Sequence[Ran]] | None = None,
) -> list[Judged]:
    """Each student's and the teacher's scores on the main set, in its order; then its forms'.

    Args:
        recipe: whose task says how a score is made.
        ran: the variants, of several trainings the first.
        main: the samples.
        further: a variant's other trainings, by its name.
    """
    found: list[Judged] = []
    for one in ran:
        found.append(
            judged_together(recipe, [one, *(further or {}).get(one.variant.name, ())], main)
        )
        forms = forms_of(one)
        lines = _lines(one, "compress", main) if forms else []
        for form in forms:
            student, teacher = (_scores(recipe, lines, name) for name in (form.name, TEACHER))
            found.append(Judged(one, student, teacher, form))
    return found


def judged_together(recipe: Recipe, ran: Sequence[Ran], main: EvaluationSet) -> Judged:
    """The trainings of one variant, the first of which is the variant itself."""
    every = [_lines(one, "evaluate", main) for one in ran]
    rows = tuple(_scores(recipe, lines, STUDENT) for lines in every)
    judged = Judged(ran[0], rows[0], _scores(recipe, every[0], TEACHER))
    if len(rows) == 1:
        return judged
    agreed = each_mean([[line.agreement for line in lines] for lines in every])
    return judged._replace(student=each_mean(rows), trainings=rows, agreement=tuple(agreed))


def _scores(recipe: Recipe, lines: Sequence[Prediction], name: str) -> list[float]:
    decisive = scorers_for(recipe.task)[0]
    return [decisive.score(line.answers[name], line.reference) for line in lines]


def _lines(one: Ran, stage: str, main: EvaluationSet) -> list[Prediction]:
    lines = [
        line
        for line in read_records(one.root / stage / "predictions.jsonl", Prediction)
        if line.set == main.name
    ]
    if [line.id for line in lines] != [query.id for query in main.queries]:
        raise RunFolderError(f"{one.root}: was judged on other samples; delete its folder")
    return lines


def of_trainings(
    judged: Judged, ran: Sequence[Ran], bound: Verdict, how: Resampling
) -> dict[str, Any]:
    """What a `SizedStudent` says of several trainings: their means, and what they were.

    Args:
        judged: with the scores of each.
        ran: the trainings, the one to be taken first.
        bound: the gate's verdict on the mean.
        how: how intervals are made.
    """
    own = ran[0].report.gate.verdict
    return {
        "score": mean_of(judged.student, how),
        "retention": retention_of(judged.student, judged.teacher, how),
        "agreement": mean_of(judged.agreement, how),
        "verdict": "pass" if bound.verdict == own == "pass" else "fail",
        "difference": bound.difference,
        "trainings": tuple(training(one) for one in ran),
        "deviation": deviation(judged.trainings),
    }


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
