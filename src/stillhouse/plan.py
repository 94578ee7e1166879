"""`stillhouse plan`: what a run's asking will cost and give, before it is done.

Reads the traffic as the run would, asks a sample where one is wanted, and writes plan.json beside
the run's stages. Knows the stages; the arithmetic is in `teacher.plan`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.compress.planning import compress_notes
from stillhouse.core.answers import agreed
from stillhouse.core.duplicates import groups_of, repeats
from stillhouse.core.errors import DataError, RecipeError
from stillhouse.core.jsonl import read_records, write_json
from stillhouse.core.lineage import LABELLED, QUERIES
from stillhouse.core.money import model_price
from stillhouse.core.owners import GOLDEN
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, LabelledQuery, Query, Rejection
from stillhouse.core.rights import require_terms
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.tasks import has_truth
from stillhouse.dataset.checks import check_completion
from stillhouse.dataset.validators import Validators
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.pipeline import run_stages
from stillhouse.plan_student import plan_student, student_lines
from stillhouse.teacher.batch_build import check_batches
from stillhouse.teacher.batch_journal import FOLDER, held_by_batches
from stillhouse.teacher.build import open_teacher, teacher_info, teacher_sampling
from stillhouse.teacher.ensemble import member_recipes
from stillhouse.teacher.estimate import Estimate
from stillhouse.teacher.plan import Known, make
from stillhouse.teacher.plan_records import Plan
from stillhouse.teacher.replay import STORE_FILE
from stillhouse.teacher.sample import Sample, ask_sample, distinct_chats, draw, stored
from stillhouse.teacher.store import AnswerStore, answer_key

PLAN: Final = "plan.json"
FEWEST: Final = 2


class Planned(NamedTuple):
    """The plan, and whether a sample was wanted that could not be priced."""

    plan: Plan
    sample_refused: bool


def make_plan(recipe: Recipe, root: Path, sample: int | None, progress: Progress) -> Planned:
    """Plan the asking of a recipe's teacher.

    Args:
        recipe: the whole recipe.
        root: the run folder: the traffic stage is run in it, and a sample's answers are kept there.
        sample: how many queries to ask; `None`: none, and no request is made.
        progress: bars and lines.

    Raises:
        UserError: a sample is wanted and the terms are not set, the traffic cannot be read, there
            is no key, or the sample does not fit the budget.
        StillhouseError: the teacher does not answer.
    """
    if sample is not None:
        require_terms(recipe.teacher)
    members = recipe.teacher.member_sections
    free = sample is None and all(member.local for member in members)
    if (members and not free) or recipe.teacher.kind == "replay":
        raise RecipeError(
            "teacher.model",
            "only a single teacher that is asked can be planned",
            value=recipe.teacher.model,
            action="a replay costs nothing; plan the members of an ensemble one by one, with "
            "teacher.model set to each"
            + ("; without --sample, one of local models is planned too" if members else ""),
        )
    run_stages(recipe, root, progress, last="traffic")
    run = RunFolder(root)
    with run.locked():
        priced = recipe.teacher.local or model_price(recipe.prices, recipe.teacher.model)
        refused = sample is not None and not priced
        plan = asyncio.run(_plan(recipe, run, None if refused else sample, progress))
        write_json(root / PLAN, plan.model_dump(mode="json"))
    return Planned(plan, refused)


async def _plan(recipe: Recipe, run: RunFolder, sample: int | None, progress: Progress) -> Plan:
    traffic = list(read_records(run.stage("traffic") / QUERIES, Query))
    if not traffic:
        raise DataError(str(run.stage("traffic") / QUERIES), "holds no query", action="add traffic")
    chats = distinct_chats([*traffic, *_others(recipe, run)])
    held = held_by_batches(run.store / FOLDER)
    completer: Completer | None = None
    if sample is not None:
        tuned = run.stage("tune") / "model"
        completer = open_teacher(
            recipe.teacher,
            recipe.prices,
            tuned if recipe.teacher.tune is not None and tuned.exists() else None,
        )
    if completer is None:
        members = list(member_recipes(recipe)) if recipe.teacher.members else []
        one = members[0] if members else recipe  # of an ensemble, all are of this machine
        info = teacher_info(one.teacher)
        sampling = teacher_sampling(one, info)
        if info.local:
            found = Sample((), drawn=False)
            plan = _made(recipe, run, info, sampling, traffic, chats, chats, found, 0.0)
            return _of_ensemble(plan, recipe) if members else plan
        with AnswerStore(run.store / STORE_FILE) as store:
            requests = sampling.n if recipe.teacher.kind == "anthropic" else 1
            there = stored(traffic, info, sampling, store, requests)
            waiting = _waiting(chats, info, sampling, store)
            paid = store.paid_usd + held.usd
        found = Sample(there, drawn=False)
        return _made(recipe, run, info, sampling, traffic, chats, waiting, found, paid)
    async with aclosing(completer):
        if recipe.teacher.batch is not None:
            await check_batches(completer)
        sampling = teacher_sampling(recipe, completer.info)
        with AnswerStore(run.store / STORE_FILE) as store:
            chosen = draw(distinct_chats(traffic), sample or 0, recipe.seed)
            found = await ask_sample(recipe, completer, sampling, store, chosen, held, progress)
            waiting = _waiting(chats, completer.info, sampling, store)
            paid = store.paid_usd + held.usd
        return _made(recipe, run, completer.info, sampling, traffic, chats, waiting, found, paid)


def _made(  # noqa: PLR0917 - what a plan is made from
    recipe: Recipe,
    run: RunFolder,
    info: ModelInfo,
    sampling: Sampling,
    traffic: Sequence[Query],
    chats: Sequence[Query],
    waiting: Sequence[Query],
    sample: Sample,
    paid_usd: float,
) -> Plan:
    validators = Validators(recipe.dataset.validators)

    def accepts(query: Query, completions: Sequence[Completion]) -> bool:
        kept = [
            completion
            for completion in completions
            if not isinstance(
                check_completion(recipe.task, query, completion, recipe.dataset, validators),
                Rejection,
            )
        ]
        return agreed(recipe.task, kept) is not None

    plan = make(
        Known(
            recipe=recipe,
            info=info,
            sampling=sampling,
            traffic=traffic,
            waiting=waiting,
            queries=len(chats),
            sample=sample,
            accepts=accepts,
            near_repeats=_near_repeats(recipe, traffic),
            paid_usd=paid_usd,
            disk_free_bytes=shutil.disk_usage(run.root).free,
        )
    )
    student = plan_student(recipe, run, traffic, sample, plan.examples)
    return plan.model_copy(
        update={"student": student, "notes": (*plan.notes, *compress_notes(recipe))}
    )


def _of_ensemble(plan: Plan, recipe: Recipe) -> Plan:
    """The plan of one member as that of all: each of them is asked each query."""
    count = len(recipe.teacher.members)
    return plan.model_copy(
        update={
            "teacher": recipe.teacher.model,
            "prompt_tokens": plan.prompt_tokens.times(count),
            "completion_tokens": plan.completion_tokens.times(count),
            "storage_bytes": plan.storage_bytes.times(count),
            "notes": (f"each of {count} members is asked each query, in turn", *plan.notes),
        }
    )


def _others(recipe: Recipe, run: RunFolder) -> Iterator[Query]:
    """What is asked beside the traffic: the golden set, and the labelled one for the check."""
    folder = run.stage("traffic")
    for name, asked in ((LABELLED, has_truth(recipe.task)), (GOLDEN, True)):
        if asked and (folder / name).exists():
            yield from read_records(folder / name, LabelledQuery)


def _waiting(
    chats: Sequence[Query], info: ModelInfo, sampling: Sampling, store: AnswerStore
) -> list[Query]:
    return [q for q in chats if len(store.get(answer_key(info, q, sampling))) < sampling.n]


def _near_repeats(recipe: Recipe, traffic: Sequence[Query]) -> int:
    """The most that near-duplicates can take out: all answers taken as equal."""
    threshold = recipe.dataset.near_duplicate
    if threshold >= 1:
        return 0
    texts = [recipe.task.varying_text(query) for query in traffic]
    return len(repeats(texts, [""] * len(texts), groups_of(texts, threshold), threshold))


def plan_lines(planned: Planned) -> Iterator[tuple[str, str]]:
    """The plan as (name, value) rows for people."""
    plan = planned.plan
    yield "teacher", plan.teacher
    yield (
        "queries",
        f"{plan.queries:,} distinct, {plan.answered:,} answered, {plan.open:,} to ask"
        + (f", {plan.samples_per_query} times each" if plan.samples_per_query > 1 else ""),
    )
    if plan.sample is not None:
        sample = plan.sample
        yield (
            "rests on",
            f"{sample.n:,} answers ({sample.asked:,} asked now for ${sample.usd:.4f}, "
            f"{sample.reused:,} there before)",
        )
    yield "tokens in", _shown(plan.prompt_tokens, "{:,.0f}")
    yield "tokens out", _shown(plan.completion_tokens, "{:,.0f}")
    if plan.price is not None:
        yield "price", plan.price
    if plan.price_wanted is not None:
        yield "USD", f"not known: {plan.price_wanted}"
        if planned.sample_refused:
            yield "sample", "not asked: what it costs could not be said first"
    if plan.usd_list is not None:
        yield "USD, list", _shown(plan.usd_list, "${:,.4g}")
    if plan.usd_batch is not None:
        yield "USD, batch", _shown(plan.usd_batch, "${:,.4g}")
    if plan.seconds is None:
        yield "time", plan.seconds_limited_by
    else:
        yield (
            "time",
            f"{_shown(plan.seconds.times(1 / 60), '{:,.1f}')} min, "
            f"limited by {plan.seconds_limited_by}",
        )
    yield "disk", _shown(plan.storage_bytes.times(1 / 2**20), "{:,.1f}") + " MiB"
    yield "accepted", _shown(plan.accepted, "{:,.0f}") + " queries of the traffic"
    yield "examples", _shown(plan.examples, "{:,.0f}") + " after near-duplicates"
    if plan.budget is not None:
        budget = plan.budget
        buys = "" if budget.queries is None else f": {_shown(budget.queries, '{:,.0f}')} queries"
        if budget.examples is not None and budget.examples.basis == "sample":
            buys += f", {_shown(budget.examples, '{:,.0f}')} examples"
        yield (
            "budget",
            f"${budget.usd:,.2f}, ${budget.left_usd:,.2f} left; suffices: {budget.suffices}{buys}",
        )
    for target in plan.targets:
        cost = "" if target.usd_list is None else f", {_shown(target.usd_list, '${:,.4g}')} list"
        if target.usd_batch is not None:
            cost += f", {_shown(target.usd_batch, '${:,.4g}')} batch"
        inside = "within this traffic" if target.within_traffic else "more than this traffic gives"
        yield (
            f"for {target.examples:,} examples",
            f"{_shown(target.queries, '{:,.0f}')} queries{cost}; {inside}",
        )
    yield "cheapest", plan.cheapest
    if plan.student is not None:
        yield from student_lines(plan.student)
    for note in plan.notes:
        yield "note", note


def _shown(value: Estimate, form: str) -> str:
    """`12 [10, 15]` of a sample; `about 12, at most 40 (bound)` where nothing was asked."""

    def one(number: float | None) -> str:
        return "unknown" if number is None else form.format(number)

    if value.basis == "known":
        return one(value.estimate)
    if value.basis == "sample":
        return f"{one(value.estimate)} [{one(value.low)}, {one(value.high)}]"
    said = [
        f"{word}{one(number)}"
        for word, number in (
            ("about ", value.estimate),
            ("at least ", value.low),
            ("at most ", value.high),
        )
        if number is not None
    ]
    return f"{', '.join(said) or 'unknown'} (bound)"
