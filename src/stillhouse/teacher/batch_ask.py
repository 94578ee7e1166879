"""Asking by batch: send what fits, wait, put what came back into the answer store, ask the rest.

Every step is in the journal before the next, so that a start after a kill finds each batch where it
was. The budget counts a batch in flight at its worst case. Answers are stored under the keys of
live asking, at the batch's price. Knows a provider only through `BatchProvider`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from stillhouse.core.errors import BudgetError, TeacherError
from stillhouse.core.progress import Progress, Silent, Ticker
from stillhouse.core.recipe_asking import BatchSection
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.answers import none_usable
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.batch import (
    CUSTOM_ID_CHARS,
    MB,
    Ask,
    Limits,
    Part,
    asks,
    take,
)
from stillhouse.teacher.batch_journal import BatchJournal, OpenBatch
from stillhouse.teacher.batch_provider import BatchProvider
from stillhouse.teacher.batch_settle import Settled, Settling, settle
from stillhouse.teacher.batch_submit import Submitting, submit
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.futility import FIRST_UNUSABLE
from stillhouse.teacher.retry import TeacherFailure
from stillhouse.teacher.revisions import Revisions
from stillhouse.teacher.store import AnswerKey, AnswerStore

FIRST_FAILED: Final = 5
PATIENCE: Final = 20  # looks in a row that a provider may be out of reach
MOST_DEFERRED: Final = 60  # times in a row that a provider may put a batch off
MOST_VANISHED: Final = 5  # batches in a row that were sent and did not arrive
PILOTS_AT_A_TIME: Final = 8
TRANSIENT: Final = frozenset({"server", "connection", "timeout", "rate_limit", "unreadable"})


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, and how long a batch that was sent may take to show up in the provider's list."""

    settle_s: float = 60.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], float] = time.time
    uniform: Callable[[float, float], float] = random.uniform


@dataclass(slots=True)
class BatchAsking:
    """What one call works with, and what came of it so far.

    `failures` say why a query has no answer; what has neither answer nor failure at the end is to
    be asked live. `usd_by_key` is what was paid now.
    """

    provider: BatchProvider
    teacher: str
    asked_as: TeacherSection
    sampling: Sampling
    store: AnswerStore
    journal: BatchJournal
    budget: Budget
    revisions: Revisions
    prices: PricesSection
    share: float  # of the list price
    progress: Progress
    clock: Clock
    problem_of: Callable[[Completion], str | None] | None = None
    failures: dict[AnswerKey, str] = field(default_factory=dict)
    usd_by_key: dict[AnswerKey, float] = field(default_factory=dict)
    rounds: dict[AnswerKey, int] = field(default_factory=dict)
    pending: dict[AnswerKey, Query] = field(default_factory=dict)
    queries: Mapping[AnswerKey, Query] = field(default_factory=dict)
    most_requests: int | None = None  # where the provider puts larger batches off
    batched: int = 0
    deferred: int = 0
    vanished: int = 0
    piloted: bool = False
    usable: bool = False

    @property
    def section(self) -> BatchSection:
        """The recipe's `teacher.batch`; its defaults where batches are only collected."""
        return self.asked_as.batch or BatchSection()

    async def run(self, queries: Mapping[AnswerKey, Query], ticker: Ticker) -> None:
        """Answer every query by batch, as far as it goes.

        Raises:
            BudgetError: not even one more query fits.
            UserError: none of the answers can be used, or the server has no batches.
            TeacherError: the key is refused, a batch is refused or was cancelled, or the provider
                is out of reach; whatever runs is in the journal, and the next start goes on.
        """
        self.queries = queries
        in_flight = {key for batch in self._open() for key in self._keys_of(batch.name)}
        self.pending = {
            key: query
            for key, query in queries.items()
            if self._missing(key) and key not in in_flight
        }
        await self.collect(ticker, once=True)
        while self.pending or self._open():
            await self._send()
            await self.collect(ticker)

    async def collect(self, ticker: Ticker, *, once: bool = False) -> None:
        """Wait until a batch in flight is settled, or look once."""
        outages = 0
        while batches := self._open():
            settled = False
            for batch in batches:
                try:
                    result = await settle(self._settling(ticker), batch)
                except TeacherFailure as error:
                    outages += 1
                    if error.fatal or outages > PATIENCE:
                        raise
                    self.progress.say(f"{error}; looking again in {self.section.poll_s:g} s")
                    continue
                outages = 0
                if result is not None:
                    self._after(result)
                    settled = True
            if settled or once:
                return
            await self.clock.sleep(self.section.poll_s * self.clock.uniform(0.9, 1.1))

    def _settling(self, ticker: Ticker) -> Settling:
        return Settling(
            self.provider, self.teacher, self.section, self.store, self.journal, self.share,
            self.progress, ticker, self.clock.now, self.clock.settle_s,
        )  # fmt: skip

    def _after(self, settled: Settled) -> None:
        """Take over what a batch brought, and stop where going on is futile."""
        if settled.deferred:
            self.deferred += 1
            self.most_requests = max(1, settled.requests // 2)
        elif settled.vanished:
            self.vanished += 1
        elif settled.answered:
            self.deferred = self.vanished = 0
            self.most_requests = self.most_requests and 2 * self.most_requests
        self.usd_by_key.update(settled.usd_by_key)
        self.batched += len(settled.usd_by_key)
        self.failures.update(settled.failures)
        for key in settled.keys:
            if key not in self.queries or key in self.failures or not self._missing(key):
                continue
            if key in settled.again:
                self.rounds[key] = self.rounds.get(key, 0) + 1
            self.pending[key] = self.queries[key]
        if settled.stop is not None:
            raise settled.stop
        self._count_revisions(settled.usd_by_key)
        self._look_at(settled)
        if self.deferred > MOST_DEFERRED or self.vanished > MOST_VANISHED:
            raise TeacherError(
                f"{self.teacher}: {max(self.deferred, self.vanished)} batches in a row came to "
                f"nothing: {settled.reason}; run the same command again later"
            )

    def _count_revisions(self, keys: Iterable[AnswerKey]) -> None:
        for key in keys:
            said = self.revisions.add(self.store.revisions_of(key))
            if said is not None:
                self.progress.say(said)
        problem = self.revisions.problem()
        if problem is not None:
            raise problem

    def _look_at(self, settled: Settled) -> None:
        """Stop before more is paid where no answer of a whole batch can be used."""
        if self.problem_of is None or self.usable:
            return
        first: tuple[Completion, str] | None = None
        count = 0
        for key in settled.usd_by_key:
            for completion in self.store.get(key):
                problem = self.problem_of(completion)
                if problem is None:
                    self.usable = True
                    return
                first = first or (completion, problem)
                count += 1
        if first is not None and count >= FIRST_UNUSABLE:
            raise none_usable(self.provider.completer.info.name, count, *first)

    async def _send(self) -> None:
        """Send batches until all is sent, enough are in flight, or the budget has no room."""
        if self.deferred:
            if self._open():
                return
            await self.clock.sleep(self.section.poll_s)
        if self.pending and not self.piloted:
            try:
                await self._pilot()
            except BudgetError:
                if not self._open():
                    raise
                return  # what is in flight costs less than its worst case: there will be room
        parts: Sequence[Part] = self._parts()
        while parts and len(self._open()) < self.section.in_flight:
            if sum(len(part.asks) for part in parts) < self.section.min_requests:
                if not self._open():
                    self.pending.clear()
                return
            taken = take(parts, self._limits(), self._room())
            for part in taken.too_large:
                self.pending.pop(part.key)
                self.failures[part.key] = (
                    f"its request of {max(ask.size for ask in part.asks):,} bytes is larger than a "
                    f"whole batch may be ({self._limits().size:,} bytes)"
                )
            if not taken.parts:
                if taken.short_of_usd and not self._open():
                    raise self._out_of_budget(taken.left[0])
                return
            if not await self._submit(taken.parts) or self.deferred:
                return
            parts = taken.left

    async def _pilot(self) -> None:
        """Ask a few queries live: what the model refuses is known before thousands are sent.

        Raises:
            UserError: the server has no batches; nothing was asked then.
        """
        await self.provider.marker()
        known = sum(bool(self.store.get(key)) for key in self.queries)
        few_at_a_time = min(PILOTS_AT_A_TIME, self.asked_as.concurrency)
        live = self.asked_as.model_copy(update={"concurrency": few_at_a_time})
        wanted, answered, failed = max(1, self.section.pilot - known), 0, 0
        while self.pending and wanted > 0:
            few = dict(list(self.pending.items())[:wanted])
            result = await ask_as(
                live, self.provider.completer, list(few.values()), self.sampling, self.store,
                budget_usd=self.journal.held.budget_left(self.asked_as.budget_usd),
                prices=self.prices, progress=Silent(), title="", problem_of=self.problem_of,
            )  # fmt: skip
            self._count_revisions(few)
            details = {failure.query_id: failure.detail for failure in result.failures}
            for key, query in few.items():
                self.pending.pop(key)
                self.usd_by_key[key] = self.store.usd_of(key, self.sampling.n, self.prices)
                if query.id in details:
                    self.failures[key] = details[query.id]
            wanted -= len(few) - len(details)
            answered += len(few) - len(details)
            failed += len(details)
            if failed >= FIRST_FAILED and not answered:
                last = result.failures[-1].detail
                raise TeacherError(f"the first {failed} queries got no answer; the last: {last}")
        self.piloted = True

    def _parts(self) -> list[Part]:
        """What is to be sent now; queries that went into enough batches are left to live asking."""
        per_request = max(1, self.provider.samples_per_request)
        found = []
        for key, query in list(self.pending.items()):
            if self.rounds.get(key, 0) >= self.section.rounds:
                self.pending.pop(key)
                continue
            have = len(self.store.get(key))
            if have >= self.sampling.n:
                self.pending.pop(key)
                continue

            def measure(first: int, n: int, key: AnswerKey = key, query: Query = query) -> Ask:
                body = self._body(key, query, first, n)
                size = len(self.provider.line("x" * CUSTOM_ID_CHARS, body))
                worst = self.budget.worst_usd(query, replace(self.sampling, n=n)) * self.share
                return Ask(first, n, size, worst)

            found.append(Part(key, tuple(asks(have, self.sampling.n, per_request, measure))))
        return found

    async def _submit(self, parts: Sequence[Part]) -> bool:
        """Send one batch; whether more can be sent now."""
        sent = {part.key: self.pending.pop(part.key) for part in parts}
        try:
            await submit(
                Submitting(
                    self.provider, self.teacher, self.journal, self.progress, self.clock.now,
                    self._body,
                ),
                parts,
                sent,
            )  # fmt: skip
        except TeacherFailure as error:
            self.pending = {**sent, **self.pending}
            requests = sum(len(part.asks) for part in parts)
            if error.reason == "too_long" and requests > 1:
                self.most_requests = requests // 2
                return True
            if error.reason not in TRANSIENT or self.deferred >= PATIENCE:
                raise
            self.deferred += 1
            self.progress.say(f"{error}; sending it again in {self.section.poll_s:g} s")
            return False
        return True

    def _body(self, key: AnswerKey, query: Query, first: int, n: int) -> dict[str, Any]:
        # Other seeds in another round: the samples there may be any of the earlier round's.
        tried = self.rounds.get(key, 0)
        seed = self.sampling.seed + first + tried * self.sampling.n
        return self.provider.body(query, self.sampling, n, seed)

    def _limits(self) -> Limits:
        most, section = self.provider.limits, self.section
        requests = min(
            most.requests, section.max_requests or most.requests, self.most_requests or 2**31
        )
        size = most.size if section.max_mb is None else min(most.size, int(section.max_mb * MB))
        return Limits(requests, size)

    def _room(self) -> float | None:
        if self.asked_as.budget_usd is None:
            return None
        spent = self.store.paid_usd + self.store.unpriced_usd(self.prices)
        return self.asked_as.budget_usd - spent - self.journal.open_usd()

    def _out_of_budget(self, part: Part) -> BudgetError:
        room, worst = self._room() or 0.0, sum(ask.worst_usd for ask in part.asks)
        held = self.journal.open_usd()
        in_flight = f", ${held:.4f} held for batches that are open or lost" if held else ""
        return BudgetError(
            f"teacher.budget_usd: asking on would cross the budget (${max(0.0, room):.4f} of "
            f"${self.asked_as.budget_usd:.4f} left{in_flight}, the next query can cost up to "
            f"${worst:.4f}); every answer so far is kept: raise budget_usd and run the same "
            "command again"
        )

    def _missing(self, key: AnswerKey) -> bool:
        return len(self.store.get(key)) < self.sampling.n

    def _open(self) -> list[OpenBatch]:
        return self.journal.open_of(self.teacher)

    def _keys_of(self, name: str) -> set[AnswerKey]:
        return {
            AnswerKey(self.teacher, item.chat, item.sampling) for item in self.journal.items(name)
        }
