"""The speed of a frontier's students, their forms, and a local teacher: all timed in turns, once.

What was timed is kept while nothing that it rests on changes: the students, the teacher with its
settings and weights, the task and its queries, the batch size, the packages that compute, the
device, the machine. What a query costs is no part of it: it is worked out from the speeds and the
price of the day. Knows run folders and models; chooses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.money import machine_usd_per_hour, usd_per_1k_queries
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.section_dump import says_the_same
from stillhouse.evaluate.candidates import EvaluationSet, sampling_for
from stillhouse.evaluate.results import TEACHER, CandidateSpeed
from stillhouse.evaluate.speed import Contestant, measure_speed
from stillhouse.models.completer import Completer
from stillhouse.pipeline import local_models, local_weights
from stillhouse.stage_sections import NOT_IN_ANSWERS, dump
from stillhouse.stages import TORCH_PACKAGES
from stillhouse.study_forms import forms_of, named
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.ensemble import open_ensemble
from stillhouse.variants import Ran

SPEED: Final = "speed.json"
RUNTIMES: Final = {  # what answers with a compressed form of a kind
    "executorch": ("executorch",),
    "genai": ("onnxruntime-genai",),
    "gguf": ("xllamacpp",),
    "hf": ("compressed-tensors", "torchao"),
    "onnx": ("onnxruntime",),
}


def speeds_of(  # noqa: PLR0917 - what is timed, on what, where it is kept
    recipe: Recipe,
    run: RunFolder,
    ran: Sequence[Ran],
    main: EvaluationSet,
    folder: Path,
    progress: Progress,
) -> dict[str, CandidateSpeed]:
    """The speeds, and what 1,000 queries cost at them now.

    Args:
        recipe: its teacher, prices, `evaluate` and device.
        run: the recipe's own folder.
        ran: the students.
        main: the set whose queries are timed.
        folder: where the speeds are kept.
        progress: for a bar.
    """
    hour = machine_usd_per_hour(recipe.prices).usd_per_hour
    return {
        name: speed.model_copy(
            update={"usd_per_1k": usd_per_1k_queries(speed.qps, hour) if speed.qps else None}
        )
        for name, speed in _kept_or_timed(recipe, run, ran, main, folder, progress).items()
    }


def _kept_or_timed(  # noqa: PLR0917 - as above
    recipe: Recipe,
    run: RunFolder,
    ran: Sequence[Ran],
    main: EvaluationSet,
    folder: Path,
    progress: Progress,
) -> dict[str, CandidateSpeed]:
    of = _rests_on(recipe, run, ran, main)
    try:
        kept = read_json(folder / SPEED)
        if says_the_same(kept.get("of"), of):
            return TypeAdapter(dict[str, CandidateSpeed]).validate_python(kept["candidates"])
    except (RunFolderError, ValidationError, KeyError):
        pass
    found = asyncio.run(_time(recipe, run, ran, main, progress))
    write_json(
        folder / SPEED,
        {"of": of, "candidates": {k: v.model_dump(mode="json") for k, v in found.items()}},
    )
    return found


def _rests_on(
    recipe: Recipe, run: RunFolder, ran: Sequence[Ran], main: EvaluationSet
) -> Mapping[str, Any]:
    """All that a speed depends on."""
    loading = require("stillhouse.models.loading", "train", "timing students")
    judged, teacher = recipe.evaluate, recipe.teacher
    return {
        "students": {
            one.variant.name: [
                _hash(RunFolder(one.root), stage)
                for stage in ("train", *(["compress"] if forms_of(one) else []))
            ]
            for one in ran
        },
        "teacher": dump(teacher, without=NOT_IN_ANSWERS),
        "tuned": _hash(run, "tune") if teacher.tune else "",
        "weights": {
            name: digest
            for field, source in local_models(recipe)
            if field != "student"  # its weights are the stage's
            for name, digest in local_weights(field, source)
        },
        "task": dump(recipe.task),
        "seed": recipe.seed,
        "queries": [query.id for query in main.queries[: judged.speed_queries]],
        "repeats": judged.speed_repeats,
        "batch_size": judged.batch_size,
        "device": loading.device_name(recipe.train.device),
        "machine": this_machine()._asdict(),
        "versions": package_versions("stillhouse", *_packages(recipe, ran)),
    }


def _packages(recipe: Recipe, ran: Sequence[Ran]) -> tuple[str, ...]:
    """What computes the answers: torch's for students and a local teacher, and forms' runtimes."""
    kinds = {form.kind for one in ran for form in forms_of(one)}
    if any(source.startswith("gguf:") for source in recipe.teacher.sources):
        kinds.add("gguf")
    return (*TORCH_PACKAGES, *sorted(name for kind in kinds for name in RUNTIMES[kind]))


def _hash(run: RunFolder, stage: str) -> str:
    manifest = run.manifest(stage)
    return "" if manifest is None else manifest.output_hash


async def _time(
    recipe: Recipe, run: RunFolder, ran: Sequence[Ran], main: EvaluationSet, progress: Progress
) -> dict[str, CandidateSpeed]:
    opener = require("stillhouse.models.student", "train", "timing students")
    few = main.queries[: recipe.evaluate.speed_queries]
    opened: dict[str, Completer] = {}
    try:
        if recipe.teacher.local and recipe.teacher.ray is None:
            tuned = run.stage("tune") / "model" if recipe.teacher.tune else None
            opened[TEACHER] = (
                open_ensemble(recipe)
                if recipe.teacher.members
                else open_teacher(recipe.teacher, recipe.prices, tuned)
            )
        for one in ran:
            places = {named(one, None): one.root / "train" / "student"}
            for form in forms_of(one):
                places[named(one, form)] = one.root / "compress" / form.folder
            for name, place in places.items():
                opened[name] = opener.open_student(
                    place,
                    recipe.task,
                    recipe.student.head,
                    recipe.evaluate.batch_size,
                    recipe.train.device,
                )
        sampling = sampling_for(recipe)
        with progress.bar("speed of all, in turns", None, "queries"):
            speeds = await measure_speed(
                {name: Contestant(completer, sampling) for name, completer in opened.items()},
                few,
                recipe.evaluate.speed_repeats,
            )
    finally:
        for completer in opened.values():
            await completer.aclose()
    return {
        name: CandidateSpeed(
            qps=speed.qps,
            repeats=speed.repeats,
            latency_p50_ms=speed.latency_p50_ms,
            latency_p95_ms=speed.latency_p95_ms,
            source="measured here, all in turns",
        )
        for name, speed in speeds.items()
    }
