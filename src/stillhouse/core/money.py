"""What tokens and machine hours cost in USD: a dated table, and the recipe's own prices before it.

Every price carries the day it was last seen stated and where; an unknown price is `None`, never 0.
Cache discounts are not taken off, so a cost is what the provider bills or a little more. Knows no
provider's API and no taxes.
"""

from __future__ import annotations

import re
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Final, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field

from stillhouse.core.recipe_teacher import PricesSection

MTOK: Final = 1_000_000
HOUR_S: Final = 3600.0
_DATED = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")
_OVERRIDE_SOURCE: Final = "prices.models of the recipe"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LongPromptPrice(_Row):
    """What a whole request costs once its prompt is longer than `above` tokens."""

    above: int = Field(ge=1)
    input: float = Field(ge=0)
    output: float = Field(ge=0)


class ModelPrice(_Row):
    """One model's price, USD per million tokens."""

    provider: Literal["openai", "anthropic"] | None = None
    model: str
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cache_write: float | None = Field(default=None, ge=0)
    long: LongPromptPrice | None = None
    batch_discount: float | None = Field(default=None, ge=0, lt=1)
    as_of: date | None = None
    source: str

    def cost_usd(
        self, prompt_tokens: int, completion_tokens: int, cache_write_tokens: int = 0
    ) -> float:
        """USD of one request; `cache_write_tokens` are among the prompt's."""
        input_price, output_price = self.input, self.output
        write_price = self.cache_write
        if self.long is not None and prompt_tokens > self.long.above:
            if write_price is not None and input_price > 0:
                write_price *= self.long.input / input_price
            input_price, output_price = self.long.input, self.long.output
        extra = 0.0 if write_price is None else max(0.0, write_price - input_price)
        return (
            prompt_tokens * input_price
            + min(cache_write_tokens, prompt_tokens) * extra
            + completion_tokens * output_price
        ) / MTOK

    def batch_usd(self, list_usd: float) -> float | None:
        """What a list price comes to in the provider's batches; `None` where that is not known."""
        return None if self.batch_discount is None else list_usd * (1.0 - self.batch_discount)


class MachinePrice(NamedTuple):
    """What an hour of the machine that runs local models costs."""

    usd_per_hour: float
    name: str
    source: str
    as_of: str | None


class _Table(_Row):
    models: tuple[ModelPrice, ...]
    machine: dict[str, str | float | date]


@cache
def _table() -> _Table:
    text = resources.files("stillhouse.core").joinpath("prices.yaml").read_text(encoding="utf-8")
    return _Table.model_validate(yaml.safe_load(text))


def model_price(prices: PricesSection, model: str) -> ModelPrice | None:
    """The price of a model, or `None` where none is known.

    Args:
        prices: the recipe's overrides, whose keys are model names or globs; they go first.
        model: a teacher as recipes name it (`openai:gpt-4.1`) or the bare model name. The table
            is asked only for models of its own two providers: another server's price is its own.
    """
    provider, colon, rest = model.partition(":")
    bare = rest if colon and provider in _PREFIXES else model
    override = _override(prices, model) or _override(prices, bare)
    if override is not None:
        return override
    if bare == model:
        wanted: tuple[str | None, ...] = ("openai", "anthropic")
    else:
        wanted = (provider,)
    undated = _DATED.sub("", bare)
    for row in _table().models:
        if row.provider in wanted and row.model in (bare, undated):
            return row
    return None


_PREFIXES: Final = ("openai", "anthropic", "openai-compatible", "hf", "gguf")


def _override(prices: PricesSection, model: str) -> ModelPrice | None:
    """The override under exactly this name, else under the glob with most literal characters."""
    key: str | None = model if model in prices.models else None
    if key is None:
        globs = [name for name in prices.models if fnmatchcase(model, name)]
        key = max(globs, key=lambda name: (len(name.replace("*", "")), name), default=None)
    if key is None:
        return None
    price = prices.models[key]
    return ModelPrice(
        model=key,
        input=price.input_usd_per_mtok,
        output=price.output_usd_per_mtok,
        batch_discount=price.batch_discount,
        source=_OVERRIDE_SOURCE,
    )


def completion_cost_usd(
    prices: PricesSection,
    model: str,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cache_write_tokens: int = 0,
) -> float | None:
    """USD of one request; `None` where the price or a token count is not known."""
    price = model_price(prices, model)
    if price is None or prompt_tokens is None or completion_tokens is None:
        return None
    return price.cost_usd(prompt_tokens, completion_tokens, cache_write_tokens)


def machine_usd_per_hour(prices: PricesSection) -> MachinePrice:
    """The recipe's `prices.machine_usd_per_hour`, else the table's dated cloud machine."""
    if prices.machine_usd_per_hour is not None:
        return MachinePrice(
            prices.machine_usd_per_hour, "your machine", "prices.machine_usd_per_hour", None
        )
    row = _table().machine
    return MachinePrice(
        float(str(row["usd_per_hour"])), str(row["name"]), str(row["source"]), str(row["as_of"])
    )


def usd_per_1k_queries(qps: float, usd_per_hour: float) -> float:
    """USD per 1,000 queries on a machine kept busy: 1000 * (USD per hour / 3600) / (queries per s).

    Raises:
        ValueError: `qps` is not positive, or the price is negative.
    """
    if not qps > 0:
        raise ValueError(f"qps: must be positive (got {qps})")
    if usd_per_hour < 0:
        raise ValueError(f"usd_per_hour: must not be negative (got {usd_per_hour})")
    return 1000.0 * (usd_per_hour / HOUR_S) / qps
