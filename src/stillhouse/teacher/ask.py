"""Ask a teacher many queries: bounded concurrency, every answer kept at once, nothing asked twice.

A fixed number of workers draw from one list, so a million queries cost no million tasks. A query
the teacher cannot answer is recorded and the run goes on; a teacher that cannot answer at all stops
it early. Knows completers, the store and the budget; does not know what an answer is worth.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from stillhouse.core.errors import (
    BudgetError,
    StillhouseError,
    TeacherError,
    UnanswerableQueryError,
    UserError,
)
from stillhouse.core.progress import Progress, Silent, Ticker
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.api import ApiTeacher
from stillhouse.teacher.breaker import Breaker
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.futility import Futility
from stillhouse.teacher.gate import Gate, StoppedError
from stillhouse.teacher.keys import AnswerKey, answer_keys
from stillhouse.teacher.limiter import Limiter
from stillhouse.teacher.replay import Recorded
from stillhouse.teacher.revisions import Revisions
from stillhouse.teacher.store import AnswerStore
from stillhouse.teacher.stored import StoredAnswers
from stillhouse.teacher.tries import Tries

NO_ANSWER: Final = "no_answer"
OUTAGE_S: Final = 600.0
# One more worker for each so many: while some wait for the disk, as many requests as are allowed
# stay in flight.
SPARE_WORKERS: Final = 4
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class AskResult(NamedTuple):
    """What came of asking.

    `completions_by_query` follows the order of the queries, leaves out those without an answer,
    and reads each answer from the store when it is asked for. `asked` and `reused` count queries;
    `usd` is what was paid now, `seconds` how long it took. `usd_by_key` is what all answers used
    cost, whenever they were paid, at its worst where not known; each distinct chat once.
    `usd_without_answer` was counted now for tries that may have been billed; `revisions` counts
    the chats used by the revision that answered; `failed_tries` counts tries by reason.
    """

    completions_by_query: Mapping[str, tuple[Completion, ...]]
    failures: tuple[Rejection, ...]
    usd: float
    seconds: float
    asked: int
    reused: int
    usd_by_key: Mapping[AnswerKey, float]
    usd_without_answer: float = 0.0
    revisions: Mapping[str, int] = NOTHING
    failed_tries: Mapping[str, int] = NOTHING


@dataclass(slots=True)
class _Run:
    """What the workers of one `ask` share."""

    completer: Completer
    sampling: Sampling
    store: AnswerStore
    budget: Budget
    waiting: Iterator[tuple[AnswerKey, Query]]
    ticker: Ticker
    revisions: Revisions
    say: Callable[[str], None]
    futility: Futility
    gate: Gate | None = None
    tries: Tries | None = None
    recorded: Recorded | None = None
    failures: dict[AnswerKey, str] = field(default_factory=dict)
    usd: float = 0.0
    stopped_by: StillhouseError | None = None

    def stop(self, error: StillhouseError | None) -> None:
        """End the run for this reason, if it is the first."""
        if error is not None and self.stopped_by is None:
            self.stopped_by = error
            if self.gate is not None:
                self.gate.stop()


async def ask(
    completer: Completer,
    queries: Sequence[Query],
    sampling: Sampling,
    store: AnswerStore,
    *,
    concurrency: int,
    budget_usd: float | None = None,
    prices: PricesSection | None = None,
    progress: Progress | None = None,
    title: str = "asking the teacher",
    problem_of: Callable[[Completion], str | None] | None = None,
    deadline_s: float | None = None,
    outage_s: float = OUTAGE_S,
    stop_on_revision_change: bool = False,
) -> AskResult:
    """Answer every query `sampling.n` times, from the store where it can be.

    Queries with equal chats are asked once. Cancelled or killed at any moment, all answers that
    arrived are in the store, and the next call goes on from there.

    Args:
        completer: the teacher.
        queries: with distinct ids.
        sampling: how answers are drawn.
        store: where answers are kept.
        concurrency: the most queries in flight at a time; the rate limits of an API teacher may
            allow fewer.
        budget_usd: limit on what all answers in the store may have cost together.
        prices: the recipe's price overrides.
        progress: where the bar goes.
        title: of the bar.
        problem_of: why an answer cannot be used; asking stops where none of the first can, and a
            line is said where most cannot.
        deadline_s: how long an API teacher may take for one request's answer, over all its tries
            and waits.
        outage_s: how long an API teacher may give no answer at all before the run stops.
        stop_on_revision_change: whether answers of two models end the run.

    Raises:
        BudgetError: asking on would cross the budget; answers in flight are waited for and kept.
        UserError: a budget is set, and the price of the teacher is not known; or none of the
            first answers can be used; or the key is refused, or the model unknown; or the store is
            frozen and lacks answers.
        TeacherError: the account is empty, the teacher fails query after query or is gone for too
            long; or its revision changed.
        RunFolderError: the store cannot be written.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: must be at least 1 (got {concurrency})")
    started = time.perf_counter()
    prices, info = prices or PricesSection(), completer.info
    progress = progress or Silent()
    keys = answer_keys(info, queries, sampling)
    distinct = dict.fromkeys(keys)
    open_chats: dict[AnswerKey, Query] = {}
    for key, query in zip(keys, queries, strict=True):
        if key not in open_chats and store.count(key) < sampling.n:
            open_chats[key] = query
    charged = sum(store.charges_usd.values())
    spent = store.paid_usd
    if budget_usd is not None and not info.local:
        spent += store.unpriced_usd(prices)
    api = completer if isinstance(completer, ApiTeacher) else None
    workers = concurrency if api is None else concurrency + -(-concurrency // SPARE_WORKERS)
    workers = max(1, min(workers, len(open_chats)))
    budget = Budget(budget_usd, spent, info, prices, ledger=store, in_flight=workers)
    revisions = Revisions(info.name, stop=stop_on_revision_change)
    for key in distinct:
        revisions.add(store.revisions_of(key))
    failures: Mapping[AnswerKey, str] = {}
    failed_tries: Mapping[str, int] = {}
    usd = 0.0
    _refuse_where_futile(store, revisions, len(open_chats), len(distinct))
    if open_chats:
        store.introduce(info)
        store.overlap_writes(not info.local)
        with progress.bar(title, len(open_chats), "queries") as ticker:
            run = _Run(
                completer,
                sampling,
                store,
                budget,
                iter(open_chats.items()),
                ticker,
                revisions,
                progress.say,
                Futility(
                    info,
                    problem_of,
                    reused=len(distinct) - len(open_chats),
                    say=progress.say,
                ),
                recorded=completer if isinstance(completer, Recorded) else None,
            )
            if api is not None:
                run.gate = Gate(
                    Limiter(concurrency, random.uniform), Breaker(outage_s, random.uniform)
                )
                run.tries = Tries(api, run.gate, budget, deadline_s)
            run.stop(run.futility.of_stored(store, distinct))
            await _work_off(run, workers)
        failures, usd = run.failures, run.usd
        if run.tries is not None:
            failed_tries = dict(run.tries.failed)
    return AskResult(
        completions_by_query=StoredAnswers(store, queries, keys, sampling.n),
        failures=tuple(
            Rejection(
                query_id=query.id,
                reason=NO_ANSWER,
                detail=failures[key],
                messages=query.messages,
            )
            for key, query in zip(keys, queries, strict=True)
            if key in failures
        ),
        usd=usd,
        seconds=time.perf_counter() - started,
        asked=len(open_chats),
        reused=len(queries) - len(open_chats),
        usd_by_key={}
        if info.local
        else {key: store.usd_of(key, sampling.n, prices) for key in distinct},
        usd_without_answer=sum(store.charges_usd.values()) - charged,
        revisions=dict(revisions.counts.most_common()),
        failed_tries=failed_tries,
    )


def _refuse_where_futile(
    store: AnswerStore, revisions: Revisions, missing: int, wanted: int
) -> None:
    if store.frozen is not None and missing:
        raise UserError(
            str(store.path),
            f"is frozen, and lacks answers to {missing} of {wanted} chats",
            action=f"set teacher.model: replay:{store.path} to go on without them, or ask in "
            "another run folder",
        )
    problem = revisions.problem()
    if problem is not None:
        raise problem


async def _work_off(run: _Run, workers: int) -> None:
    tasks = [asyncio.create_task(_worker(run)) for _ in range(workers)]
    try:
        # A worker raises only what no other worker can go on after (a full disk, a bug).
        await asyncio.gather(*tasks)
    finally:
        if run.gate is not None:
            run.gate.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        run.store.flush()
        await run.budget.clear()
    if run.stopped_by is not None:
        raise run.stopped_by


async def _worker(run: _Run) -> None:
    """Take queries until there are none, or some worker found that asking on is futile."""
    for key, query in run.waiting:
        if run.stopped_by is None:
            try:
                await _answer(run, key, query)
            except StoppedError:
                return
            except BudgetError as error:
                run.stop(error)
            except TeacherError as error:
                run.failures[key] = str(error)
                run.stop(run.futility.of_failure(error, len(run.failures)))
        if run.stopped_by is not None:
            return
        run.ticker.advance()
        if run.usd:
            run.ticker.note(f"${run.usd:.4f}")


async def _answer(run: _Run, key: AnswerKey, query: Query) -> None:
    """Ask until all samples of a query are kept, or the run is stopped.

    Raises:
        TeacherError: they cannot be had.
        BudgetError: the next could cross the budget.
        StoppedError: the run has ended meanwhile.
    """

    async def keep(completions: Sequence[Completion], worst_usd: float) -> float | None:
        return await _keep(run, key, completions, worst_usd)

    while run.stopped_by is None:
        have = run.store.count(key)
        missing = run.sampling.n - have
        if missing <= 0:
            run.futility.answered()
            return
        if run.recorded is not None:
            found = run.recorded.recorded(key)[have : run.sampling.n]
            if not found:
                raise UnanswerableQueryError(run.recorded.why_none(key))
            await keep(found, 0.0)
            continue
        # One sample a request where a server gives no more: each is kept before the next is paid.
        once: int = getattr(run.completer, "samples_per_request", missing)
        sampling = replace(run.sampling, n=min(missing, once), seed=run.sampling.seed + have)
        if run.tries is not None:
            await run.tries.answer(query, sampling, keep)
        else:
            await _complete(run, query, sampling, keep)


async def _keep(
    run: _Run, key: AnswerKey, completions: Sequence[Completion], worst_usd: float
) -> float | None:
    """Make answers durable. Gives what they cost, `None` where that is not known."""
    costs = [completion.cost_usd for completion in completions]
    paid = None if None in costs else sum(cost for cost in costs if cost is not None)
    # What runs here, or was paid by another run, costs this one nothing.
    free = run.completer.info.local
    await run.store.put(key, completions, worst_usd, 0.0 if free else None)
    run.usd += 0.0 if free else worst_usd if paid is None else paid
    run.stop(run.futility.of_answers(completions))
    said = run.revisions.add(dict.fromkeys(c.revision for c in completions))
    if said is not None:
        run.say(said)
        run.stop(run.revisions.problem())
    return paid


async def _complete(
    run: _Run,
    query: Query,
    sampling: Sampling,
    keep: Callable[[Sequence[Completion], float], Awaitable[float | None]],
) -> None:
    """Ask a completer that sees to its own tries."""
    worst = run.budget.worst_usd(query, sampling, requests=sampling.n)
    await run.budget.reserve(worst)
    paid: float | None = 0.0
    try:
        if run.stopped_by is None:
            completions = await run.completer.complete(query, sampling)
            paid = None
            paid = await keep(completions, worst)
    finally:
        await run.budget.settle(worst, paid)
