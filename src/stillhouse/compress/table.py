"""Puts a compress run's results together: one row a model, the float student first.

Knows scores, speeds and footprints that others found; asks, times and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from pydantic import ValidationError

from stillhouse.compress.retrained import plain_name
from stillhouse.compress.verdicts import choose, remarks, rule, speedup
from stillhouse.core.artefact import Kind
from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.money import machine_usd_per_hour
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compress import CompressSection
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.statistics import Interval, paired_difference
from stillhouse.evaluate.build import read_evaluation
from stillhouse.evaluate.candidates import Answers, EvaluationSet
from stillhouse.evaluate.comparison import Comparison, divergence_between, retention_of
from stillhouse.evaluate.compressed import CompressedRow, CompressedTable, Footprint
from stillhouse.evaluate.fidelity import agreement
from stillhouse.evaluate.gate import decide
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.pricing import FIGURES_REST_ON, priced
from stillhouse.evaluate.results import (
    STUDENT,
    TEACHER,
    CandidateSpeed,
    GateResult,
    MachineFacts,
    SpeedResult,
)
from stillhouse.evaluate.speed import Speed

RUNTIMES: Final = (
    "onnx",
    "onnxruntime",
    "executorch",
    "onnxruntime-genai",
    "gguf",
    "xllamacpp",
    "compressed-tensors",
    "torchao",
)


class Made(NamedTuple):
    """A model on disk."""

    kind: Kind
    precision: str
    size_bytes: int


class Measured(NamedTuple):
    """A model at work; `written` is the tokens of its mean answer."""

    speed: Speed
    footprint: Footprint
    written: float


class _Judged(NamedTuple):
    """What every row is judged by."""

    recipe: Recipe
    section: CompressSection
    main: EvaluationSet
    answers: Mapping[str, Answers]
    compared: Mapping[str, Comparison]
    how: Resampling


def build_table(  # noqa: PLR0917 - what a table is made of
    recipe: Recipe,
    run: RunFolder,
    section: CompressSection,
    judged: Sequence[EvaluationSet],
    answers: Mapping[str, Mapping[str, Answers]],
    compared: Mapping[str, Comparison],
    made: Mapping[str, Made],
    measured: Mapping[str, Measured],
    left_out: Mapping[str, str],
) -> CompressedTable:
    """The table, the gate's verdicts and the choice.

    Args:
        recipe: the whole recipe.
        run: its evaluate stage, where it is finished, knows the teacher's speed and size.
        section: the margins.
        judged: the sets, the main one first.
        answers: by set, then by model.
        compared: by set.
        made: by model, `student` first.
        measured: by model.
        left_out: formats that could not be made, and why.

    Raises:
        RunFolderError: evaluate's files are missing or damaged.
    """
    main = judged[0]
    evaluate = recipe.evaluate
    how = Resampling(evaluate.confidence, evaluate.resamples, recipe.seed, main.groups)
    base = _Judged(recipe, section, main, answers[main.name], compared, how)
    hour = machine_usd_per_hour(recipe.prices).usd_per_hour
    speeds = {name: priced(one.speed, hour) for name, one in measured.items()}
    rows = tuple(_row(base, name, made, measured[name], speeds) for name in made)
    best = choose(rows[1:])
    evaluation = read_evaluation(run) if run.manifest("evaluate") is not None else None
    result = compared[main.name].result
    return CompressedTable(
        name=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        main=main.name,
        metric=result.metric,
        reference=main.reference,
        n=result.n,
        teacher=result.candidates[TEACHER].score,
        teacher_qps=_teacher_qps(run) if evaluation else None,
        teacher_size_bytes=evaluation.teacher.size_bytes if evaluation else None,
        rows=rows,
        left_out=dict(left_out),
        best=None if best is None else best.name,
        margin_teacher=_margin(base),
        margin_student=section.margin_student,
        min_speedup=section.min_speedup,
        speed_by=section.speed_by,
        queries=measured[STUDENT].speed.queries,
        notes=(*(evaluation.notes if evaluation else ()), *remarks(rows[1:], rows[0])),
        machine=MachineFacts(**this_machine()._asdict()),
        versions=package_versions(*FIGURES_REST_ON, *RUNTIMES),
    )


def _row(
    base: _Judged,
    name: str,
    made: Mapping[str, Made],
    measured: Measured,
    speeds: Mapping[str, CandidateSpeed],
) -> CompressedRow:
    task, how, main = base.recipe.task, base.how, base.main
    scores = base.compared[main.name].scores
    own, parent = base.answers[name], base.answers[STUDENT]
    teacher = _gate(base, scores[name], scores[TEACHER], _margin(base))
    student = None
    if name == STUDENT:
        verdict, sentence = teacher.verdict, "the float student"
    else:
        student = _gate(base, scores[name], scores[STUDENT], base.section.margin_student)
        verdict, sentence = rule(
            name,
            base.section,
            against_teacher=teacher,
            against_student=student,
            own=speeds[name],
            parent=speeds[STUDENT],
            size_bytes=made[name].size_bytes,
        )
    faster = speedup(speeds[name], speeds[STUDENT])
    beliefs = own.probabilities if name != STUDENT else None
    return CompressedRow(
        name=name,
        folder="" if name == STUDENT else name,
        kind=made[name].kind,
        precision=made[name].precision,
        size_bytes=made[name].size_bytes,
        size_ratio=made[name].size_bytes / made[STUDENT].size_bytes,
        sets={
            compared.result.name: compared.result.candidates[name]
            for compared in base.compared.values()
        },
        retention_teacher=retention_of(scores[name], scores[TEACHER], how),
        retention_student=retention_of(scores[name], scores[STUDENT], how),
        agreement_student=agreement(task, own.texts, parent.texts, how),
        divergence_student=None if beliefs is None else divergence_between(parent, beliefs, how),
        against_teacher=teacher,
        against_student=student,
        speed=speeds[name],
        tokens_per_s=measured.written * measured.speed.qps
        if base.recipe.student.head == "text"
        else None,
        latency_speedup=faster.latency,
        throughput_speedup=faster.throughput,
        footprint=measured.footprint,
        gain=_gain(base, name),
        verdict=verdict,
        sentence=sentence,
    )


def _gain(base: _Judged, name: str) -> Interval | None:
    scores, how, plain = base.compared[base.main.name].scores, base.how, plain_name(name)
    if plain is None or plain not in scores:
        return None
    return paired_difference(
        scores[name],
        scores[plain],
        how.confidence,
        resamples=how.resamples,
        seed=how.seed,
        groups=how.groups,
    )


def _margin(base: _Judged) -> float:
    own = base.section.margin_teacher
    return base.recipe.evaluate.margin if own is None else own


def _gate(base: _Judged, own: Sequence[float], other: Sequence[float], margin: float) -> GateResult:
    return GateResult(**decide(own, other, margin, base.main.reference, base.how)._asdict())


def _teacher_qps(run: RunFolder) -> float | None:
    path = run.stage("evaluate") / "speed.json"
    try:
        speed = SpeedResult.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
    found = speed.candidates.get(TEACHER)
    return None if found is None else found.qps
