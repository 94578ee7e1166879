"""Where a run's student comes from and how good it is, read from the run folder.

Hashes and figures as the stages wrote them: manifests, recipe.json, lineage.json, report.json (or
evaluation.json, where there is no report). Computes nothing anew. Knows no registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, cast

from pydantic import JsonValue

from stillhouse.core.artefact import file_sha256, student_sha
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json, read_objects
from stillhouse.core.lineage import QUERIES, read_lineage
from stillhouse.core.runfolder import MANIFEST, Manifest, RunFolder

STUDENT: Final = "student"
# Stages that write a student, the last word first.
TRAINED_BY: Final = ("prune", "train")
RECIPE: Final = "recipe.json"
REPORT: Final = "report.json"
EVALUATION: Final = "evaluation.json"
_FIGURES: Final = ("metric", "reference", "n", "retention", "fidelity", "size", "cost", "warnings")


class RunStudent(NamedTuple):
    """A run's student: its folder, its task by the recipe, its lineage and its figures."""

    folder: Path
    task: str | None
    lineage: dict[str, JsonValue]
    metrics: dict[str, JsonValue]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run which has trained a student."""
    return any((folder / stage / MANIFEST).is_file() for stage in TRAINED_BY)


def lineage_of(run_folder: Path) -> RunStudent:
    """What a run folder says of its student.

    `lineage` has recipe (name, hash, seed), the recipe's task, teacher (model, revision), traffic
    (hash, count, window), dataset (hash, counts, users, terms) and train (digest of the stage's
    key, versions, seconds, USD, base, hash of the student). `metrics` are the report's: score,
    retention, fidelity, gate, cost, and the student's score on each set.

    Raises:
        UserError: no run's folder, or its student is gone.
        RunFolderError: a file of it is damaged.
    """
    run = RunFolder(run_folder)
    stage = next((s for s in TRAINED_BY if (run.stage(s) / MANIFEST).is_file()), None)
    manifest = run.manifest(stage) if stage is not None else None
    if stage is None or manifest is None:
        raise UserError(
            str(run_folder),
            "has no trained student",
            action="give a run's folder after: stillhouse run RECIPE",
        )
    folder = run.stage(stage) / STUDENT
    if not folder.is_dir():
        raise UserError(str(folder), "is gone", action="run the recipe again")
    recipe = _json(run_folder / RECIPE)
    report = _json(run_folder / REPORT)
    teacher = _part(recipe, "teacher")
    lineage: dict[str, JsonValue] = {
        "run": run_folder.name,
        "recipe": _known(
            name=recipe.get("name"),
            sha256=_hash(run_folder / RECIPE),
            seed=recipe.get("seed"),
        ),
        "task": _known(**_part(recipe, "task")),
        "teacher": _known(
            model=teacher.get("model"), revision=_part(report, "teacher").get("revision")
        ),
        "traffic": _traffic(run),
        "dataset": _dataset(run, manifest),
        "train": _known(
            stage=stage,
            digest=manifest.digest,
            versions=manifest.key.get("versions"),
            seconds=manifest.seconds,
            cost_usd=manifest.cost_usd,
            base=_part(recipe, "student").get("from"),
            student_sha=student_sha(folder),
        ),
    }
    task = _part(recipe, "task").get("name")
    metrics = _metrics(report) if report else _evaluation(run)
    return RunStudent(folder, task if isinstance(task, str) else None, lineage, metrics)


def _traffic(run: RunFolder) -> JsonValue:
    manifest = run.manifest("traffic")
    path = run.stage("traffic") / QUERIES
    if manifest is None or not path.is_file():
        return None
    times = sorted(_times(path))
    return _known(
        hash=manifest.outputs.get(QUERIES),
        queries=manifest.summary.get("queries"),
        window=[times[0], times[-1]] if times else None,
    )


def _times(path: Path) -> Iterator[str]:
    for _, raw in read_objects(path):
        at = raw.get("at")
        if isinstance(at, str):
            yield at


def _dataset(run: RunFolder, trained: Manifest) -> JsonValue:
    inputs = trained.key.get("inputs")
    digest = inputs.get("dataset") if isinstance(inputs, Mapping) else None
    known = read_lineage(run.root).datasets.get(str(digest))
    manifest = run.manifest("dataset")
    summary = {} if manifest is None or manifest.output_hash != digest else manifest.summary
    return _known(
        hash=digest,
        train=summary.get("train"),
        held_out=summary.get("held_out"),
        examples=None if known is None else known.examples,
        users=None if known is None else known.users,
        terms=None if known is None else known.terms,
    )


def _metrics(report: Mapping[str, object]) -> dict[str, JsonValue]:
    student, gate = _part(report, "student"), _part(report, "gate")
    found = {name: report[name] for name in _FIGURES if report.get(name) is not None}
    found |= {
        "score": student.get("score"),
        "teacher_score": _part(report, "teacher").get("score"),
        "calibration_error": student.get("calibration_error"),
        "parameters": student.get("parameters"),
        "gate": gate.get("verdict"),
        "gate_difference": gate.get("difference"),
        "gate_margin": gate.get("margin"),
        "sets": {
            name: _set(told)
            for name, told in _part(report, "sets").items()
            if isinstance(told, Mapping)
        },
    }
    return _known(**found)


def _evaluation(run: RunFolder) -> dict[str, JsonValue]:
    told = _json(run.stage("evaluate") / EVALUATION)
    sets = told.get("sets")
    if not isinstance(sets, list):
        return {}
    return {"sets": {str(one["name"]): _set(one) for one in sets if isinstance(one, Mapping)}}


def _set(told: Mapping[str, object]) -> JsonValue:
    return _known(
        metric=told.get("metric"),
        reference=told.get("reference"),
        score=_part(_part(told, "candidates"), "student").get("score"),
    )


def _known(**values: object) -> dict[str, JsonValue]:
    """What is known of these, as plain JSON."""
    known = {name: value for name, value in values.items() if value is not None}
    return cast(dict[str, JsonValue], json.loads(json.dumps(known)))


def _part(told: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = told.get(name)
    return part if isinstance(part, Mapping) else {}


def _json(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}


def _hash(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
