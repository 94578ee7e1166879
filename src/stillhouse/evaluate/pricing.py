"""Speed and cost of every candidate, measured in one run where it can be.

Local models are timed in turns through `speed`; what an API teacher took and billed is read from
the answers it gave. Knows the run folder and the price table; no scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json, read_records
from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.money import completion_cost_usd, machine_usd_per_hour, usd_per_1k_queries
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import baseline_answers, sampling_for
from stillhouse.evaluate.results import (
    MAJORITY,
    STUDENT,
    TEACHER,
    TFIDF,
    CandidateSpeed,
    MachineFacts,
    SpeedResult,
)
from stillhouse.evaluate.speed import Contestant, Speed, measure_speed, time_function
from stillhouse.models.baselines import Baseline
from stillhouse.models.completer import Completer

MEASURED: Final = "measured here, in turns"
FIGURES_REST_ON: Final = (
    "stillhouse",
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "scikit-learn",
)


async def measure_candidates(
    recipe: Recipe,
    run: RunFolder,
    queries: Sequence[Query],
    *,
    student: Completer,
    teacher: Completer | None,
    baselines: Mapping[str, Baseline],
    progress: Progress,
) -> SpeedResult:
    """Time the candidates on the first `evaluate.speed_queries` queries and price them."""
    few, repeats = queries[: recipe.evaluate.speed_queries], recipe.evaluate.speed_repeats
    machine = machine_usd_per_hour(recipe.prices)
    sampling = sampling_for(recipe)
    contestants = {STUDENT: Contestant(student, sampling)}
    if teacher is not None:
        contestants = {TEACHER: Contestant(teacher, sampling), **contestants}
    with progress.bar("speed", None, "queries"):
        speeds = await measure_speed(contestants, few, repeats)
        if TFIDF in baselines:
            linear = baselines[TFIDF]
            speeds[TFIDF] = time_function(
                lambda: baseline_answers(recipe.task, linear, few), len(few), repeats
            )
    candidates = {name: priced(s, machine.usd_per_hour) for name, s in speeds.items()}
    if MAJORITY in baselines:
        candidates[MAJORITY] = CandidateSpeed(usd_per_1k=0.0, source="a constant")
    if teacher is None:
        candidates = {TEACHER: _api_teacher(recipe, run), **candidates}
    return SpeedResult(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=MachineFacts(**this_machine()._asdict()),
        versions=package_versions(*FIGURES_REST_ON),
        queries=len(few),
        candidates=candidates,
        machine_usd_per_hour=machine.usd_per_hour,
        machine_price_source=", ".join(
            part for part in (machine.name, machine.source, machine.as_of) if part
        ),
    )


def priced(speed: Speed, usd_per_hour: float) -> CandidateSpeed:
    """A measured speed, with what 1,000 queries cost at it."""
    return CandidateSpeed(
        qps=speed.qps,
        repeats=speed.repeats,
        latency_p50_ms=speed.latency_p50_ms,
        latency_p95_ms=speed.latency_p95_ms,
        usd_per_1k=usd_per_1k_queries(speed.qps, usd_per_hour),
        source=MEASURED,
    )


def _api_teacher(recipe: Recipe, run: RunFolder) -> CandidateSpeed:
    """What asking it took (ask/timings.json) and what an answer costs by its tokens."""
    folder = run.stage("ask")
    try:
        timings = read_json(folder / "timings.json")
    except RunFolderError:
        timings = {}
    return CandidateSpeed(
        qps=_number(timings.get("queries_per_second")),
        latency_p50_ms=_number(timings.get("latency_p50_ms")),
        latency_p95_ms=_number(timings.get("latency_p95_ms")),
        usd_per_1k=_members_cost_per_1k(recipe, run, timings)
        if recipe.teacher.members
        else _mean_cost_per_1k(recipe, run),
        source="from the asking of the teacher (ask/timings.json)",
    )


def _mean_cost_per_1k(recipe: Recipe, run: RunFolder) -> float | None:
    costs: list[float] = []
    for completion in read_records(run.stage("ask") / "completions.jsonl", Completion):
        cost = completion_cost_usd(
            recipe.prices,
            # What a frozen store answers was paid to another.
            completion.model if recipe.teacher.kind == "replay" else recipe.teacher.model,
            completion.prompt_tokens,
            completion.completion_tokens,
        )
        if cost is not None:
            costs.append(cost)
    return 1000 * sum(costs) / len(costs) if costs else None


def _members_cost_per_1k(
    recipe: Recipe, run: RunFolder, timings: Mapping[str, object]
) -> float | None:
    """An ensemble costs the sum of its members: tokens behind an API, time on this machine.

    `None` where the price of one is not known, or the time of a local one was not taken.
    """
    local = {s.model for s in recipe.teacher.member_sections if s.local}
    queries: set[str] = set()
    total = 0.0
    for completion in read_records(run.stage("ask") / "member_completions.jsonl", Completion):
        queries.add(completion.query_id)
        if completion.model in local:
            continue
        cost = completion_cost_usd(
            recipe.prices, completion.model, completion.prompt_tokens, completion.completion_tokens
        )
        if cost is None:
            return None
        total += cost
    per_1k = 1000 * total / max(1, len(queries))
    machine = machine_usd_per_hour(recipe.prices)
    timed = timings.get("members")
    for index, section in enumerate(recipe.teacher.member_sections):
        if section.local:
            rate = (
                _number(timed[index].get("queries_per_second")) if isinstance(timed, list) else None
            )
            if rate is None:
                return None
            per_1k += usd_per_1k_queries(rate, machine.usd_per_hour)
    return per_1k


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
