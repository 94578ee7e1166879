"""The two stages of the pipeline that ask the teacher: `check` and `ask`.

Each reads the traffic stage's files and writes its own into the working folder it is given. Knows
file names; asking, storing and scoring are in the modules beside it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.errors import DataError, TeacherError
from stillhouse.core.jsonl import read_records, write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, LabelledQuery, Query
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import tune_check_split
from stillhouse.core.tasks import has_truth
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.answers import blind_problem, problem_of, require_usable
from stillhouse.teacher.ask import AskResult
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.batch_build import BatchResult, ask_batches
from stillhouse.teacher.batch_journal import FOLDER
from stillhouse.teacher.build import open_teacher, teacher_sampling
from stillhouse.teacher.check import check_teacher
from stillhouse.teacher.ensemble import (
    combine_results,
    ensemble_of,
    member_recipes,
    together_per_second,
)
from stillhouse.teacher.lifecycle import from_headers
from stillhouse.teacher.ray_ask import RayTeacher
from stillhouse.teacher.replay import STORE_FILE
from stillhouse.teacher.store import AnswerStore, answer_key

QUERIES: Final = "queries.jsonl"
LABELLED: Final = "labelled.jsonl"
GOLDEN: Final = "golden.jsonl"
COMPLETIONS: Final = "completions.jsonl"
GOLDEN_COMPLETIONS: Final = "golden_completions.jsonl"
MEMBERS: Final = "member_completions.jsonl"
FAILURES: Final = "failures.jsonl"
TIMINGS: Final = "timings.json"
CHECK: Final = "check.json"


class _Asked(NamedTuple):
    """`usd` is what the answers used cost, whenever they were paid: a killed run's too.

    `members` are those of an ensemble, in the recipe's order.
    """

    info: ModelInfo
    results: list[AskResult]
    usd: float
    batched: BatchResult
    members: tuple[_Asked, ...] = ()


class _CheckSet(NamedTuple):
    training: Sequence[LabelledQuery]
    check: Sequence[LabelledQuery]


def run_check(  # noqa: PLR0917 - one signature for all stages
    recipe: Recipe,
    traffic_dir: Path,
    tuned: Path | None,
    store_path: Path,
    work: Path,
    progress: Progress,
) -> Outcome:
    """Check the teacher on the labelled set (its held-back part where the teacher was tuned).

    Args:
        recipe: the whole recipe.
        traffic_dir: the traffic stage's folder.
        tuned: the tuned teacher's model folder, or `None`.
        store_path: the run's folder of paid answers.
        work: where check.json goes.
        progress: bars and lines.
    """
    path = traffic_dir / LABELLED
    if not path.exists() or not has_truth(recipe.task):
        why = "free text has no single true answer" if path.exists() else "there is no labelled set"
        progress.say(f"teacher not checked: {why}")
        write_json(work / CHECK, {"skipped": why})
        return Outcome(summary={"skipped": why})
    training, labelled = _check_set(recipe, path, tuned)
    if not labelled:
        raise DataError(str(path), "holds no labelled query", action="add labelled queries")
    asked = asyncio.run(
        _ask_all(recipe, tuned, store_path, {"checking the teacher": labelled}, progress)
    )
    result = asked.results[0]
    check = check_teacher(
        recipe.task,
        asked.info.name,
        asked.info.revision,
        labelled,
        result,
        training=training,
        confidence=recipe.evaluate.confidence,
        seed=recipe.seed,
        progress=progress,
    ).model_copy(update={"notes": _notes(asked.info)})
    write_json(work / CHECK, check.model_dump(mode="json"))
    return Outcome(
        summary={
            "n": check.n,
            "accuracy": check.accuracy.estimate if check.accuracy else None,
            "baseline": check.baseline.accuracy.estimate if check.baseline else None,
        },
        cost_usd=asked.usd,
    )


def run_ask(  # noqa: PLR0917 - one signature for all stages
    recipe: Recipe,
    traffic_dir: Path,
    tuned: Path | None,
    store_path: Path,
    work: Path,
    progress: Progress,
) -> Outcome:
    """Ask the teacher all queries and the golden set.

    Args:
        recipe: the whole recipe.
        traffic_dir: the traffic stage's folder.
        tuned: the tuned teacher's model folder, or `None`.
        store_path: the run's folder of paid answers.
        work: where completions, failures and timings go.
        progress: bars and lines.

    Raises:
        UserError: there is no query, or none of the answers can be used.
    """
    queries: list[Query] = list(read_records(traffic_dir / QUERIES, Query))
    if not queries:
        raise DataError(str(traffic_dir / QUERIES), "holds no query", action="add traffic")
    sets: dict[str, Sequence[Query]] = {"asking the teacher": queries}
    if (traffic_dir / GOLDEN).exists():
        sets["asking on the golden set"] = list(read_records(traffic_dir / GOLDEN, LabelledQuery))
    labelled = traffic_dir / LABELLED
    checked: Sequence[Query] = ()
    if labelled.exists() and has_truth(recipe.task):
        checked = _check_set(recipe, labelled, tuned).check
    asked = asyncio.run(_ask_all(recipe, tuned, store_path, sets, progress, checked))
    require_usable(recipe.task, asked.info.name, _flat(asked.results[0]))
    latencies_ms = array("d")
    count = write_records(work / COMPLETIONS, _measured(asked.results[0], latencies_ms))
    if len(asked.results) > 1:
        write_records(work / GOLDEN_COMPLETIONS, _measured(asked.results[1], latencies_ms))
    if asked.members:
        said = (c for member in asked.members for c in _flat(member.results[0]))
        write_records(work / MEMBERS, map(_lasting, said))
    failures = [failure for result in asked.results for failure in result.failures]
    write_records(work / FAILURES, failures)
    timings = _timings(asked, latencies_ms)
    write_json(work / TIMINGS, timings)
    for note in _notes(asked.info):
        progress.say(f"teacher {asked.info.name}: {note}")
    if failures:
        progress.say(
            f"teacher {asked.info.name}: no answer to {len(failures)} queries; see {FAILURES}"
        )
    return Outcome(
        summary={
            "queries": len(queries),
            "completions": count,
            "failures": len(failures),
            "asked": timings["asked"],
            "reused": timings["reused"],
            "revisions": timings["revisions"],
        },
        cost_usd=asked.usd,
        measured=frozenset({TIMINGS}),
    )


async def _ask_all(  # noqa: PLR0917 - the arguments of the stages
    recipe: Recipe,
    tuned: Path | None,
    store_path: Path,
    sets: Mapping[str, Sequence[Query]],
    progress: Progress,
    counted: Sequence[Query] = (),
) -> _Asked:
    """Ask all sets; what answers to `counted` cost is on another stage's bill."""
    if recipe.teacher.members:
        return await _ask_members(recipe, store_path, sets, progress, counted)
    completer = (
        RayTeacher(recipe.teacher, tuned, progress)
        if recipe.teacher.ray is not None
        else open_teacher(recipe.teacher, recipe.prices, tuned)
    )
    async with aclosing(completer):
        sampling = teacher_sampling(recipe, completer.info)
        results: list[AskResult] = []
        with AnswerStore(store_path / STORE_FILE) as store:
            batched = BatchResult()
            if not isinstance(completer, RayTeacher):
                batched = await ask_batches(
                    completer,
                    [query for queries in sets.values() for query in queries],
                    sampling,
                    store,
                    store_path / FOLDER,
                    section=recipe.teacher,
                    prices=recipe.prices,
                    progress=progress,
                    problem_of=partial(_problem_of, recipe, completer.info),
                )
            for title, queries in sets.items():
                unusable = None if results else partial(_problem_of, recipe, completer.info)
                if isinstance(completer, RayTeacher):
                    results.append(
                        await completer.ask(
                            queries,
                            sampling,
                            store,
                            progress=progress,
                            title=title,
                            problem_of=unusable,
                        )
                    )
                    continue
                result = await ask_as(
                    recipe.teacher,
                    completer,
                    batched.to_ask(completer, queries, sampling),
                    sampling,
                    store,
                    budget_usd=batched.held.budget_left(recipe.teacher.budget_usd),
                    prices=recipe.prices,
                    progress=progress,
                    title=title,
                    problem_of=unusable,
                )
                results.append(batched.added_to(result, completer, queries, sampling))
        told = from_headers(completer.info.name, getattr(completer, "headers", {}))
        if told is not None and (warning := told.warning(datetime.now(UTC).date())):
            progress.say(f"WARNING: teacher {warning}")
        for result in results:
            if result.failures and not result.completions_by_query:
                raise TeacherError(
                    f"no query got an answer from {completer.info.name}; the first: "
                    f"{result.failures[0].detail}"
                )
        usd_by_key = {key: usd for result in results for key, usd in result.usd_by_key.items()}
        for query in counted:
            usd_by_key.pop(answer_key(completer.info, query, sampling), None)
        return _Asked(completer.info, results, sum(usd_by_key.values()), batched)


def _problem_of(recipe: Recipe, info: ModelInfo, completion: Completion) -> str | None:
    """Why an answer cannot be used, or does not show the belief that training needs."""
    problem = problem_of(recipe.task, completion)
    teacher = recipe.teacher
    votes = teacher.samples > 1 and teacher.sampling_temperature > 0
    wanted = recipe.train.alpha > 0 and recipe.student.head == "label"
    if problem is None and wanted and not (info.local or votes or teacher.signals == "samples"):
        return blind_problem(completion)
    return problem


async def _ask_members(
    recipe: Recipe,
    store_path: Path,
    sets: Mapping[str, Sequence[Query]],
    progress: Progress,
    counted: Sequence[Query],
) -> _Asked:
    """Ask the members of an ensemble in turn, each under its own name, and combine."""
    members: list[_Asked] = []
    for one in member_recipes(recipe):
        titled = {f"{title}, {one.teacher.model}": queries for title, queries in sets.items()}
        members.append(await _ask_all(one, None, store_path, titled, progress, counted))
    ensemble = ensemble_of(recipe, [member.info for member in members])
    results = [
        combine_results(ensemble, [member.results[number] for member in members], queries)
        for number, queries in enumerate(sets.values())
    ]
    usd = sum(member.usd for member in members)
    return _Asked(ensemble.info, results, usd, BatchResult(), tuple(members))


def _check_set(recipe: Recipe, labelled: Path, tuned: Path | None) -> _CheckSet:
    """What the teacher is checked on, and what it was tuned on."""
    queries = list(read_records(labelled, LabelledQuery))
    if tuned is None or recipe.teacher.tune is None:
        return _CheckSet((), queries)
    return _CheckSet(*tune_check_split(queries, recipe.teacher.tune.check_fraction, recipe.seed))


def _flat(result: AskResult) -> Iterator[Completion]:
    """All answers, in the order of the queries, read one query at a time."""
    for completions in result.completions_by_query.values():
        yield from completions


def _measured(result: AskResult, latencies_ms: array[float]) -> Iterator[Completion]:
    """All answers as they last; what was measured goes to `latencies_ms`."""
    for completion in _flat(result):
        if completion.latency_ms is not None:
            latencies_ms.append(completion.latency_ms)
        yield _lasting(completion)


def _latencies(asked: _Asked) -> array[float]:
    found = array("d")
    for result in asked.results:
        for completion in _flat(result):
            if completion.latency_ms is not None:
                found.append(completion.latency_ms)
    return found


def _lasting(completion: Completion) -> Completion:
    """Without what was measured, so that equal runs have equal files."""
    return completion.model_copy(update={"latency_ms": None, "cost_usd": None})


def _notes(info: ModelInfo) -> tuple[str, ...]:
    """What an API model turned out to refuse; a local model's notes are no news."""
    if info.local:
        return ()
    return tuple(f"{name}: {note}" for name, note in sorted(info.notes.items()))


def _timings(asked: _Asked, latencies_ms: array[float]) -> dict[str, object]:
    """What asking took. `usd` was paid now; `usd_of_answers` is what all answers used cost, but
    for those that the check asked, at its worst where the server did not say;
    `usd_without_answer` was counted now for tries that may have been billed. `revisions` counts
    chats by the model revision that answered, `failed_tries` tries by reason.
    """
    revisions: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for result in asked.results:
        revisions.update(result.revisions)
        failed.update(result.failed_tries)
    seconds = asked.batched.seconds + sum(result.seconds for result in asked.results)
    count = sum(result.asked for result in asked.results)
    members = [
        {"model": member.info.name, **_timings(member, _latencies(member))}
        for member in asked.members
    ]
    return {
        "asked": count,
        "reused": sum(result.reused for result in asked.results),
        "failures": sum(len(result.failures) for result in asked.results),
        "seconds": seconds,
        "asked_by_batch": asked.batched.batched,
        "queries_per_second": _rate(asked),
        "usd": sum(result.usd for result in asked.results),
        "usd_of_answers": asked.usd,
        "usd_without_answer": sum(result.usd_without_answer for result in asked.results),
        "failed_tries": dict(failed.most_common()),
        "revisions": dict(revisions.most_common()),
        "latency_p50_ms": float(np.percentile(latencies_ms, 50)) if latencies_ms else None,
        "latency_p95_ms": float(np.percentile(latencies_ms, 95)) if latencies_ms else None,
        **({"members": members} if members else {}),
    }


def _rate(asked: _Asked) -> float | None:
    """Queries/s of what was asked now; `None` where all was there.

    Where batches answered too: their waiting says nothing of how fast the teacher answers.
    """
    if asked.members:
        return together_per_second([_rate(member) for member in asked.members])
    seconds = sum(result.seconds for result in asked.results)
    count = sum(result.asked for result in asked.results)
    return count / seconds if count and seconds > 0 and not asked.batched.batched else None
