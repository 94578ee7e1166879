"""Ask a teacher many queries: bounded concurrency, every answer kept at once, nothing asked twice.

A fixed number of workers draw from one list, so a million queries cost no million tasks. A query
the teacher cannot answer is recorded and the run goes on; a teacher that cannot answer at all stops
it early. Knows completers, the store and the budget; does not know what an answer is worth.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from stillhouse.core.errors import (
    StillhouseError,
    TeacherError,
    UnanswerableQueryError,
    UserError,
)
from stillhouse.core.progress import Progress, Silent, Ticker
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.answers import none_usable
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.retry import INPUT_REASONS, USER_REASONS, TeacherFailure
from stillhouse.teacher.store import AnswerKey, AnswerStore, answer_key

FIRST_FAILURES: Final = 5
LATER_FAILURES: Final = 50
FIRST_UNUSABLE: Final = 20
# A local model costs nothing and answers the longest queries first, which are no fair sample.
FIRST_UNUSABLE_LOCAL: Final = 200
NO_ANSWER: Final = "no_answer"


class AskResult(NamedTuple):
    """What came of asking.

    `completions_by_query` follows the order of the queries and leaves out those without an answer.
    `asked` and `reused` count queries; `usd` is what was paid now, `seconds` how long it took.
    `usd_by_key` is what all answers used cost, whenever they were paid, at its worst where not
    known; each distinct chat once.
    """

    completions_by_query: Mapping[str, tuple[Completion, ...]]
    failures: tuple[Rejection, ...]
    usd: float
    seconds: float
    asked: int
    reused: int
    usd_by_key: Mapping[AnswerKey, float]


@dataclass(slots=True)
class _Run:
    """What the workers of one `ask` share."""

    completer: Completer
    sampling: Sampling
    store: AnswerStore
    budget: Budget
    waiting: Iterator[tuple[AnswerKey, Query]]
    ticker: Ticker
    reused: int
    failures: dict[AnswerKey, str] = field(default_factory=dict)
    usd: float = 0.0
    successes: int = 0
    failed_in_a_row: list[str] = field(default_factory=list)
    stopped_by: StillhouseError | None = None
    problem_of: Callable[[Completion], str | None] | None = None  # None once enough were seen
    usable: set[str] = field(default_factory=set)  # queries
    unusable: dict[str, Completion] = field(default_factory=dict)  # by query
    say: Callable[[str], None] = lambda _: None


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
) -> AskResult:
    """Answer every query `sampling.n` times, from the store where it can be.

    Queries with equal chats are asked once. Cancelled or killed at any moment, all answers that
    arrived are in the store, and the next call goes on from there.

    Args:
        completer: the teacher.
        queries: with distinct ids.
        sampling: how answers are drawn.
        store: where answers are kept.
        concurrency: queries in flight at a time.
        budget_usd: limit on what all answers in the store may have cost together.
        prices: the recipe's price overrides.
        progress: where the bar goes.
        title: of the bar.
        problem_of: why an answer cannot be used; asking stops where none of the first
            `FIRST_UNUSABLE` can, and a line is said where most cannot.

    Raises:
        BudgetError: asking on would cross the budget; answers in flight are waited for and kept.
        UserError: a budget is set, and the price of the teacher is not known; or none of the
            first answers can be used.
        TeacherError: the key is refused, the account is empty, the model is unknown, or the teacher
            fails query after query.
        RunFolderError: the store cannot be written.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: must be at least 1 (got {concurrency})")
    started = time.perf_counter()
    prices = prices or PricesSection()
    spent = store.paid_usd
    if budget_usd is not None and not completer.info.local:
        spent += store.unpriced_usd(prices)
    budget = Budget(budget_usd, spent, completer.info, prices)
    keys = [answer_key(completer.info, query, sampling) for query in queries]
    open_chats: dict[AnswerKey, Query] = {}
    for key, query in zip(keys, queries, strict=True):
        if len(store.get(key)) < sampling.n:
            open_chats.setdefault(key, query)
    if open_chats:
        with (progress or Silent()).bar(title, len(open_chats), "queries") as ticker:
            run = _Run(
                completer,
                sampling,
                store,
                budget,
                iter(open_chats.items()),
                ticker,
                reused=len(set(keys)) - len(open_chats),
                problem_of=problem_of,
                say=(progress or Silent()).say,
            )
            for key in dict.fromkeys(keys):
                _look_at(run, store.get(key))
            await _work_off(run, min(concurrency, len(open_chats)))
        failures, usd = run.failures, run.usd
    else:
        failures, usd = {}, 0.0
    return AskResult(
        completions_by_query={
            query.id: tuple(
                completion.model_copy(update={"query_id": query.id})
                for completion in store.get(key)[: sampling.n]
            )
            for key, query in zip(keys, queries, strict=True)
            if store.get(key)
        },
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
        if completer.info.local
        else {key: store.usd_of(key, sampling.n, prices) for key in keys},
    )


async def _work_off(run: _Run, workers: int) -> None:
    tasks = [asyncio.create_task(_worker(run)) for _ in range(workers)]
    try:
        # A worker raises only what no other worker can go on after (a full disk, a bug).
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if run.stopped_by is not None:
        raise run.stopped_by


async def _worker(run: _Run) -> None:
    """Take queries until there are none, or some worker found that asking on is futile."""
    for key, query in run.waiting:
        if run.stopped_by is None:
            await _answer(run, key, query)
        if run.stopped_by is not None:
            return
        run.ticker.advance()
        if run.usd:
            run.ticker.note(f"${run.usd:.4f}")


async def _answer(run: _Run, key: AnswerKey, query: Query) -> None:
    while True:
        have = len(run.store.get(key))
        missing = run.sampling.n - have
        if missing <= 0:
            run.successes += 1
            run.failed_in_a_row.clear()
            return
        # One sample a request where a server gives no more: each is kept before the next is paid.
        once: int = getattr(run.completer, "samples_per_request", missing)
        # A completer that can ask once alone does: what one request brings is kept before the next.
        complete: Callable[[Query, Sampling], Awaitable[Sequence[Completion]]] = getattr(
            run.completer, "complete_once", run.completer.complete
        )
        sampling = replace(run.sampling, n=min(missing, once), seed=run.sampling.seed + have)
        worst = run.budget.worst_usd(query, sampling, requests=sampling.n)
        try:
            await run.budget.reserve(worst)
        except StillhouseError as error:
            run.stopped_by = run.stopped_by or error
            return
        if run.stopped_by is not None:
            await run.budget.settle(worst, 0.0)
            return
        paid: float | None = 0.0
        try:
            completions = await complete(query, sampling)
            costs = [completion.cost_usd for completion in completions]
            paid = None if None in costs else sum(cost for cost in costs if cost is not None)
            await run.store.put(key, completions, worst)
            run.usd += worst if paid is None else paid
            _look_at(run, completions)
        except TeacherError as error:
            _count_failure(run, key, error)
            return
        finally:
            await run.budget.settle(worst, paid)


def _look_at(run: _Run, completions: Sequence[Completion]) -> None:
    """Stop the run where all answers so far are of no use: more would be no better.

    Where most are, say so once: whoever pays can stop it.
    """
    if run.problem_of is None:
        return
    for completion in completions:
        if run.problem_of(completion) is None:
            run.usable.add(completion.query_id)
            run.unusable.pop(completion.query_id, None)
        elif completion.query_id not in run.usable:
            run.unusable.setdefault(completion.query_id, completion)
    info = run.completer.info
    seen, bad = len(run.usable) + len(run.unusable), len(run.unusable)
    if seen < (FIRST_UNUSABLE_LOCAL if info.local else FIRST_UNUSABLE):
        return
    if bad > seen / 2:
        first = next(iter(run.unusable.values()))
        problem = run.problem_of(first) or ""
        if not run.usable:
            run.stopped_by = run.stopped_by or none_usable(info.name, bad, first, problem)
        else:
            run.say(
                f"warning: {bad} of the first {seen} answers cannot be used (such as: {problem})"
            )
    run.problem_of = None


def _count_input_failure(run: _Run, error: TeacherError) -> None:
    """A query's own fault counts only where a server took none of very many.

    A local model answers the longest first: those it cannot read come before all others.
    """
    if run.completer.info.local or run.successes or run.reused:
        return
    if len(run.failures) >= LATER_FAILURES:
        run.stopped_by = run.stopped_by or TeacherError(
            f"none of the first {len(run.failures)} queries could be answered; the last: {error}"
        )


def _stopping(failure: TeacherFailure) -> StillhouseError:
    """The error that ends the run: a refused key and an unknown model are the user's to mend."""
    if failure.reason in USER_REASONS:
        return UserError("teacher", str(failure))
    return failure


def _count_failure(run: _Run, key: AnswerKey, error: TeacherError) -> None:
    """Record a query without an answer, and stop the run where that says all of it is futile."""
    run.failures[key] = str(error)
    if isinstance(error, TeacherFailure) and error.fatal:
        run.stopped_by = run.stopped_by or _stopping(error)
        return
    reason = error.reason if isinstance(error, TeacherFailure) else type(error).__name__
    if isinstance(error, UnanswerableQueryError) or reason in INPUT_REASONS:
        _count_input_failure(run, error)
        return
    if run.failed_in_a_row and run.failed_in_a_row[-1] != reason:
        run.failed_in_a_row.clear()
    run.failed_in_a_row.append(reason)
    count = len(run.failed_in_a_row)
    if count >= (LATER_FAILURES if run.successes else FIRST_FAILURES):
        which = f"the last {count}" if run.successes else f"the first {count}"
        run.stopped_by = run.stopped_by or TeacherError(
            f"{which} queries got no answer, all for one reason: {error}; every answer so far "
            "is kept: run the same command again once it is mended"
        )
