"""Keeping a budget in USD: what is spent, what is in flight at its worst, what still fits.

The worst case of a request is its prompt at one token a byte (no byte-level tokenizer makes more)
plus room for chat markup, and every sample at its longest. Before more is in flight than ever
before, the new worst case goes to the ledger on disk: a run that is killed has then spent at most
what the ledger says, whatever the provider billed without an answer that was kept. Knows prices;
asks nobody.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Final, Protocol

from stillhouse.core.errors import BudgetError, UserError
from stillhouse.core.money import model_price
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Query
from stillhouse.models.completer import ModelInfo, Sampling

MARKUP_TOKENS: Final = 16  # a message
REQUEST_TOKENS: Final = 64  # a request
SCHEMA_TOKENS: Final = 512  # what providers wrap around a JSON schema


class Ledger(Protocol):
    """Where a budget writes ahead; the answer store is one."""

    async def declare_window(self, window_usd: float, limit_usd: float | None) -> None:
        """From here on at most `window_usd` is in flight; durable when this returns."""

    def charge(self, usd: float, why: str) -> asyncio.Future[None]:
        """Count `usd` as spent without an answer; the future is done once that is durable."""


class Budget:
    """A limit on spending. Without a limit, or for a model that runs here, everything fits.

    Args:
        limit_usd: the limit; `None` for none.
        spent_usd: what was paid before.
        info: the model asked.
        prices: the recipe's price overrides.
        ledger: where the worst case in flight is written ahead; `None` to write nothing.
        in_flight: how many queries are asked at a time: the ledger's window grows up to that.

    Raises:
        UserError: there is a limit, and the model's price is not known.
    """

    def __init__(
        self,
        limit_usd: float | None,
        spent_usd: float,
        info: ModelInfo,
        prices: PricesSection,
        *,
        ledger: Ledger | None = None,
        in_flight: int = 1,
    ) -> None:
        self._limit = None if info.local else limit_usd
        self._price = None if info.local else model_price(prices, info.name)
        self._ledger = ledger
        self._most = in_flight
        self._covered = 0.0  # what the ledger's window allows
        self._declaring = asyncio.Lock()
        self._reserved = 0.0
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._schema: tuple[object, int] = (None, 0)
        self.spent_usd = spent_usd
        if self._limit is not None and self._price is None:
            raise UserError(
                "teacher.budget_usd",
                f"cannot be kept: the price of {info.name} is not known",
                value=limit_usd,
                action=f"add it to the recipe under prices.models: {info.name.partition(':')[2]}",
            )

    def worst_usd(self, query: Query, sampling: Sampling, requests: int = 1) -> float:
        """The most that a query can cost, in USD; 0 where no price is known."""
        if self._price is None:
            return 0.0
        prompt = REQUEST_TOKENS + sum(
            MARKUP_TOKENS + len(message.content.encode("utf-8")) for message in query.messages
        )
        if sampling.json_schema is not None:
            if self._schema[0] is not sampling.json_schema:
                size = len(json.dumps(sampling.json_schema).encode("utf-8"))
                self._schema = sampling.json_schema, size
            prompt += SCHEMA_TOKENS + self._schema[1]
        one = self._price.cost_usd(prompt, 0, prompt)
        answers = self._price.cost_usd(prompt, sampling.n * sampling.max_tokens)
        return requests * one + (answers - self._price.cost_usd(prompt, 0))

    async def reserve(self, usd: float) -> None:
        """Set `usd` aside; waits for requests in flight where only their worst case is in the way.

        Raises:
            BudgetError: it does not fit, and nothing in flight could make room.
            RunFolderError: the ledger cannot be written.
        """
        while self._limit is not None and self.spent_usd + self._reserved + usd > self._limit:
            if self._in_flight == 0:
                raise BudgetError(
                    f"teacher.budget_usd: asking on would cross the budget "
                    f"(${self.spent_usd:.4f} of ${self._limit:.4f} spent, the next query can "
                    f"cost up to ${usd:.4f}); every answer so far is kept: raise budget_usd "
                    "and run the same command again"
                )
            await self._room()
        self._reserved += usd
        self._in_flight += 1
        if self._ledger is not None and self._reserved > self._covered:
            try:
                await self._cover(self._ledger, usd)
            except BaseException:
                self._free(usd)
                raise

    async def settle(self, reserved_usd: float, paid_usd: float | None) -> None:
        """Give back what was set aside and count what was paid (`None`: the worst case)."""
        self.spent_usd += reserved_usd if paid_usd is None else paid_usd
        self._free(reserved_usd)

    async def lose(self, reserved_usd: float, why: str) -> None:
        """Count what was set aside as spent though no answer came: durable when this returns.

        Cancelled, it is written all the same.
        """
        if self._ledger is None or reserved_usd <= 0:
            await self.settle(reserved_usd, None)
            return
        done = self._ledger.charge(reserved_usd, why)
        try:
            await asyncio.shield(done)
        finally:
            await self.settle(reserved_usd, None)

    async def clear(self) -> None:
        """Tell the ledger that nothing is in flight any more, where that is so."""
        if self._ledger is not None and self._covered > 0 and self._in_flight == 0:
            await self._ledger.declare_window(0.0, self._limit)
            self._covered = 0.0

    def _free(self, usd: float) -> None:
        self._reserved -= usd
        self._in_flight -= 1
        if self._in_flight == 0:
            self._reserved = 0.0  # no rounding is left over
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)

    async def _room(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    async def _cover(self, ledger: Ledger, usd: float) -> None:
        """Have the ledger allow what is reserved: doubling, up to one full window of this query."""
        async with self._declaring:
            if self._reserved > self._covered:
                window = max(self._reserved, min(2 * self._reserved, self._most * usd))
                await ledger.declare_window(window, self._limit)
                self._covered = max(self._covered, window)
