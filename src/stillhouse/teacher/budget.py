"""Keeping a budget in USD: what is spent, what is in flight at its worst, what still fits.

The worst case of a request is its prompt at one token a byte (no byte-level tokenizer makes more)
plus room for chat markup, and every sample at its longest. Knows prices; asks nobody. A request
whose connection broke may have been billed by the provider all the same: that is not seen here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final

from stillhouse.core.errors import BudgetError, UserError
from stillhouse.core.money import completion_cost_usd, model_price
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.records import Query
from stillhouse.models.completer import ModelInfo, Sampling

MARKUP_TOKENS: Final = 16  # a message
REQUEST_TOKENS: Final = 64  # a request
SCHEMA_TOKENS: Final = 512  # what providers wrap around a JSON schema


class Budget:
    """A limit on spending. Without a limit, or for a model that runs here, everything fits.

    Args:
        limit_usd: the limit; `None` for none.
        spent_usd: what was paid before.
        info: the model asked.
        prices: the recipe's price overrides.

    Raises:
        UserError: there is a limit, and the model's price is not known.
    """

    def __init__(
        self, limit_usd: float | None, spent_usd: float, info: ModelInfo, prices: PricesSection
    ) -> None:
        self._limit = None if info.local else limit_usd
        self._priced = not info.local and model_price(prices, info.name) is not None
        self._model = info.name
        self._prices = prices
        self._reserved = 0.0
        self._in_flight = 0
        self._freed = asyncio.Condition()
        self.spent_usd = spent_usd
        if self._limit is not None and not self._priced:
            raise UserError(
                "teacher.budget_usd",
                f"cannot be kept: the price of {info.name} is not known",
                value=limit_usd,
                action=f"add it to the recipe under prices.models: {info.name.partition(':')[2]}",
            )

    def worst_usd(self, query: Query, sampling: Sampling, requests: int = 1) -> float:
        """The most that a query can cost, in USD; 0 where no price is known."""
        if not self._priced:
            return 0.0
        prompt = REQUEST_TOKENS + sum(
            MARKUP_TOKENS + len(message.content.encode("utf-8")) for message in query.messages
        )
        if sampling.json_schema is not None:
            prompt += SCHEMA_TOKENS + len(json.dumps(sampling.json_schema).encode("utf-8"))
        one = completion_cost_usd(self._prices, self._model, prompt, 0, prompt)
        answers = completion_cost_usd(
            self._prices, self._model, prompt, sampling.n * sampling.max_tokens
        )
        empty = completion_cost_usd(self._prices, self._model, prompt, 0)
        assert one is not None
        assert answers is not None
        assert empty is not None
        return requests * one + (answers - empty)

    async def reserve(self, usd: float) -> None:
        """Set `usd` aside; waits for requests in flight where only their worst case is in the way.

        Raises:
            BudgetError: it does not fit, and nothing in flight could make room.
        """
        if self._limit is None:
            return
        async with self._freed:
            while self.spent_usd + self._reserved + usd > self._limit:
                if self._in_flight == 0:
                    raise BudgetError(
                        f"teacher.budget_usd: asking on would cross the budget "
                        f"(${self.spent_usd:.4f} of ${self._limit:.4f} spent, the next query can "
                        f"cost up to ${usd:.4f}); every answer so far is kept: raise budget_usd "
                        "and run the same command again"
                    )
                await self._freed.wait()
            self._reserved += usd
            self._in_flight += 1

    async def settle(self, reserved_usd: float, paid_usd: float | None) -> None:
        """Give back what was set aside and count what was paid (`None`: the worst case)."""
        if self._limit is None:
            self.spent_usd += paid_usd or 0.0
            return
        async with self._freed:
            self._reserved -= reserved_usd
            self._in_flight -= 1
            self.spent_usd += reserved_usd if paid_usd is None else paid_usd
            self._freed.notify_all()
