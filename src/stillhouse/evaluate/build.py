"""Builds a report from a finished run's artifacts, without weights and without torch.

Knows the run folder's files; computes no score: those are in evaluation.json already.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, read_objects, read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.compressed import CompressedTable, read_table
from stillhouse.evaluate.course import Course, read_course
from stillhouse.evaluate.drafted import Drafted, read_drafted
from stillhouse.evaluate.report import (
    BaselineReport,
    Baselines,
    Cost,
    DatasetCounts,
    Fidelity,
    ModelReport,
    Point,
    Report,
    Size,
    SpeedReport,
    TwinReport,
)
from stillhouse.evaluate.results import (
    MAJORITY,
    STUDENT,
    TEACHER,
    TFIDF,
    TWIN,
    CandidateSpeed,
    Evaluation,
    ModelFacts,
    Prediction,
    SetResult,
    SpeedResult,
)

STAGES: Final = (
    "traffic",
    "tune",
    "check",
    "expand",
    "ask",
    "judge",
    "dataset",
    "train",
    "evaluate",
    "compress",
    "speculate",
)
FIVE_POINTS_N: Final = 385  # z^2 / (4 * 0.05^2) at 95%: a share's interval is then within 5 points
UNKNOWN: Final = CandidateSpeed(source="unknown")


class HistoryPoint(BaseModel):
    """One entry of train/history.json; null where it was not measured at that step."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    epoch: float
    loss: float | None = None
    held_out_divergence: float | None = None
    held_out_cross_entropy: float | None = None
    held_out_agreement: float | None = None


class PageData(NamedTuple):
    """What the page shows beyond the report."""

    history: tuple[HistoryPoint, ...]
    predictions: tuple[Prediction, ...]
    course: Course | None = None


def read_page_data(recipe: Recipe, run: RunFolder) -> PageData:
    """Learning curve and predictions of the main set.

    Raises:
        RunFolderError: an artifact is missing or damaged.
    """
    evaluation = read_evaluation(run)
    path = run.stage("train") / "history.json"
    history: tuple[HistoryPoint, ...] = ()
    if path.exists():
        try:
            history = TypeAdapter(tuple[HistoryPoint, ...]).validate_json(path.read_bytes())
        except ValidationError as error:
            raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
    lines = read_records(run.stage("evaluate") / "predictions.jsonl", Prediction)
    shown = tuple(line for line in lines if line.set == evaluation.main)
    return PageData(history, shown, read_course(run.stage("train")))


def read_evaluation(run: RunFolder) -> Evaluation:
    """evaluation.json of a run.

    Raises:
        RunFolderError: missing or damaged.
    """
    path = run.stage("evaluate") / "evaluation.json"
    try:
        return Evaluation.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None


def build_report(recipe: Recipe, run: RunFolder) -> Report:
    """Put a run's results together.

    Raises:
        RunFolderError: an artifact is missing or damaged.
    """
    evaluation = read_evaluation(run)
    path = run.stage("evaluate") / "speed.json"
    try:
        speed = SpeedResult.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
    main = evaluation.main_set
    teacher, student = evaluation.teacher, evaluation.student
    check = run.stage("check") / "check.json"
    manifests = {n: m for n in STAGES if (m := run.manifest(n)) is not None}
    seconds = {name: manifest.seconds for name, manifest in manifests.items()}
    agreement = main.candidates[STUDENT].agreement
    assert agreement is not None, "the student is always compared with the teacher"
    draft = Report(
        name=recipe.name,
        created=speed.created,
        task=recipe.task.name,
        kind=recipe.task.kind,
        metric=main.metric,
        reference="golden" if main.reference == "truth" else "teacher",
        n=main.n,
        teacher=_model(teacher, main, TEACHER),
        student=_model(student, main, STUDENT),
        twin=_twin(main),
        baselines=Baselines(majority=_baseline(main, MAJORITY), tfidf=_baseline(main, TFIDF)),
        retention=main.retention,
        fidelity=Fidelity(agreement=agreement, divergence=main.candidates[STUDENT].divergence),
        mcnemar=main.mcnemar,
        gate=evaluation.gate,
        size=Size(
            ratio=_over(student.parameters, teacher.parameters),
            teacher_bytes=teacher.size_bytes,
            student_bytes=student.size_bytes,
        ),
        speed=_speed(speed),
        cost=_cost(speed, sum(m.cost_usd for m in manifests.values())),
        seconds={"total": round(sum(seconds.values()), 3), **seconds},
        peak_rss_mb=max((m.peak_rss_mb for m in manifests.values()), default=0.0),
        candidates=_points(evaluation, speed),
        sets={
            "golden": next((s for s in evaluation.sets if s.name == "golden"), None),
            "held_out": next((s for s in evaluation.sets if s.name == "held_out"), None),
        },
        teacher_check=_json_object(check) if check.exists() else None,
        dataset=_counts(run),
        machine=speed.machine,
        versions=speed.versions,
        compress=compressed_of(recipe, run),
        speculate=drafted_of(recipe, run),
        notes=evaluation.notes,
        warnings=(),
    )
    return draft.model_copy(update={"warnings": (*warnings_for(draft, main), *_unlearned(run))})


def _unlearned(run: RunFolder) -> tuple[str, ...]:
    """What of the teacher's answers a tag student could not learn, as its training says."""
    path = run.stage("train") / "train.json"
    tags = _json_object(path).get("tags") if path.exists() else None
    said = tags.get("said") if isinstance(tags, dict) else None
    return () if said is None else (str(said),)


def compressed_of(recipe: Recipe, run: RunFolder) -> CompressedTable | None:
    """The compress stage's table, where the recipe has the stage and it is finished.

    Raises:
        RunFolderError: it is damaged.
    """
    if recipe.compress is None or run.manifest("compress") is None:
        return None
    return read_table(run.stage("compress"))


def drafted_of(recipe: Recipe, run: RunFolder) -> Drafted | None:
    """What the speculate stage found, where the recipe has the stage and it is finished.

    Raises:
        RunFolderError: it is damaged.
    """
    if recipe.speculate is None or run.manifest("speculate") is None:
        return None
    return read_drafted(run.stage("speculate"))


def warnings_for(report: Report, main: SetResult) -> tuple[str, ...]:
    """What weakens a report's figures, a sentence each."""
    found: list[str] = []
    if report.n < FIVE_POINTS_N:
        found.append(
            f"n is {report.n}, below {FIVE_POINTS_N}: a score's interval can be wider than "
            "±5 points"
        )
    check = report.teacher_check
    if check is not None and check.get("better_than_baseline") is False:
        found.append("teacher not better than the linear baseline on the labelled set (its check)")
    gain = main.teacher_over_tfidf
    if main.reference == "truth" and gain is not None and gain.low <= 0:
        found.append(
            "the teacher is not clearly better than the TF-IDF baseline "
            f"({_points_of(gain.estimate)} points [{_points_of(gain.low)}, "
            f"{_points_of(gain.high)}]): a linear model may do this job"
        )
    tfidf = report.baselines.tfidf
    if tfidf is not None and tfidf.score.estimate >= report.student.score.estimate:
        found.append("the TF-IDF baseline scores at least as high as the student")
    if report.retention is None:
        found.append("the teacher scores 0, so that retention is not defined")
    for name, who in (("teacher", TEACHER), ("student", STUDENT)):
        bad = main.candidates[who].unreadable
        if bad:
            found.append(f"{bad} of {main.n} answers of the {name} could not be read; they score 0")
    if report.reference == "teacher":
        found.append("no golden set: nothing here says how often teacher or student is right")
    twin = report.twin
    if twin is not None and twin.soft_target_gain.low <= 0:
        found.append(
            "no clear gain from soft targets over hard labels: "
            f"{_points_of(twin.soft_target_gain.estimate)} points "
            f"[{_points_of(twin.soft_target_gain.low)}, {_points_of(twin.soft_target_gain.high)}]"
        )
    return tuple(found)


def _points_of(share: float) -> str:
    return f"{100 * share:+.1f}"


def _model(facts: ModelFacts, main: SetResult, name: str) -> ModelReport:
    result = main.candidates[name]
    return ModelReport(
        name=facts.name,
        revision=facts.revision,
        parameters=facts.parameters,
        score=result.score,
        macro_f1=result.metrics.get("macro_f1"),
        calibration_error=result.calibration_error,
    )


def _twin(main: SetResult) -> TwinReport | None:
    if TWIN not in main.candidates or main.soft_target_gain is None:
        return None
    return TwinReport(score=main.candidates[TWIN].score, soft_target_gain=main.soft_target_gain)


def _baseline(main: SetResult, name: str) -> BaselineReport | None:
    found = main.candidates.get(name)
    return None if found is None else BaselineReport(score=found.score)


def _over(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _speed(speed: SpeedResult) -> SpeedReport:
    teacher = speed.candidates.get(TEACHER, UNKNOWN)
    student = speed.candidates.get(STUDENT, UNKNOWN)
    return SpeedReport(
        teacher_qps=teacher.qps,
        student_qps=student.qps,
        ratio=_over(student.qps, teacher.qps),
        teacher_qps_repeats=teacher.repeats,
        student_qps_repeats=student.repeats,
        teacher_latency_p50_ms=teacher.latency_p50_ms,
        teacher_latency_p95_ms=teacher.latency_p95_ms,
        student_latency_p50_ms=student.latency_p50_ms,
        student_latency_p95_ms=student.latency_p95_ms,
        teacher_source=teacher.source,
        queries=speed.queries,
    )


def _cost(speed: SpeedResult, paid: float) -> Cost:
    teacher = speed.candidates.get(TEACHER, UNKNOWN).usd_per_1k
    student = speed.candidates.get(STUDENT, UNKNOWN).usd_per_1k
    return Cost(
        teacher_usd_per_1k=teacher,
        student_usd_per_1k=student,
        ratio=_over(student, teacher),
        machine_usd_per_hour=speed.machine_usd_per_hour,
        machine_price_source=speed.machine_price_source,
        teacher_answers_usd=round(paid, 6),
    )


def _points(evaluation: Evaluation, speed: SpeedResult) -> tuple[Point, ...]:
    """Everyone on the main set; a twin has the student's shape, so also its speed and price."""
    facts = {
        TEACHER: evaluation.teacher,
        STUDENT: evaluation.student,
        TWIN: evaluation.twin,
    }
    points: list[Point] = []
    for name, result in evaluation.main_set.candidates.items():
        timed = speed.candidates.get(STUDENT if name == TWIN else name, UNKNOWN)
        known = facts.get(name)
        points.append(
            Point(
                name=name,
                score=result.score,
                usd_per_1k=timed.usd_per_1k,
                qps=timed.qps,
                parameters=known.parameters if known is not None else None,
            )
        )
    return tuple(points)


def _counts(run: RunFolder) -> DatasetCounts:
    folder = run.stage("dataset")
    golden = run.stage("traffic") / "golden.jsonl"
    rejections = folder / "rejections.jsonl"
    reasons: Counter[str] = Counter()
    if rejections.exists():
        reasons.update(str(line.get("reason")) for _, line in read_objects(rejections))
    return DatasetCounts(
        train=_lines(folder / "train.jsonl"),
        held_out=_lines(folder / "held_out.jsonl"),
        golden=_lines(golden) if golden.exists() else None,
        rejected=dict(reasons.most_common()),
    )


def _lines(path: Path) -> int:
    return sum(1 for _ in read_objects(path)) if path.exists() else 0


def _json_object(path: Path) -> dict[str, JsonValue]:
    return TypeAdapter(dict[str, JsonValue]).validate_python(read_json(path))
