"""Prices: known models, dated names, overrides, unknown is None, machine hours to queries."""

from __future__ import annotations

from datetime import date

import pytest

from stillhouse.core import money
from stillhouse.core.money import (
    completion_cost_usd,
    machine_usd_per_hour,
    model_price,
    usd_per_1k_queries,
)
from stillhouse.core.recipe_teacher import Price, PricesSection

NONE = PricesSection()


def overrides(**models: tuple[float, float]) -> PricesSection:
    return PricesSection(
        models={
            name.replace("__", ":"): Price(input_usd_per_mtok=i, output_usd_per_mtok=o)
            for name, (i, o) in models.items()
        }
    )


def test_cost_is_tokens_times_price_per_million() -> None:
    # gpt-4.1: 2 USD in, 8 USD out per million tokens.
    assert completion_cost_usd(NONE, "openai:gpt-4.1", 1000, 500) == pytest.approx(0.006)
    assert completion_cost_usd(NONE, "gpt-4.1", 1000, 500) == pytest.approx(0.006)


def test_a_dated_snapshot_has_its_models_price_and_a_sibling_its_own() -> None:
    assert model_price(NONE, "gpt-4.1-2025-04-14") == model_price(NONE, "gpt-4.1")
    assert model_price(NONE, "claude-haiku-4-5-20251001") == model_price(NONE, "claude-haiku-4-5")
    mini = model_price(NONE, "gpt-4.1-mini")
    assert mini is not None
    assert mini.input == 0.40


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4.1-turbo-max",
        "openai-compatible:gpt-4.1",  # another server's price is its own
        "anthropic:gpt-4.1",
        "hf:gpt-4.1",
        "embedded",
        "",
    ],
)
def test_unknown_is_none_never_zero(model: str) -> None:
    assert model_price(NONE, model) is None
    assert completion_cost_usd(NONE, model, 10, 10) is None


def test_unknown_token_counts_give_no_cost() -> None:
    assert completion_cost_usd(NONE, "gpt-4.1", None, 10) is None
    assert completion_cost_usd(NONE, "gpt-4.1", 10, None) is None


def test_overrides_win_exact_before_glob_and_longest_glob_first() -> None:
    prices = PricesSection(
        models={
            "gpt-*": Price(input_usd_per_mtok=1, output_usd_per_mtok=1),
            "gpt-4*": Price(input_usd_per_mtok=2, output_usd_per_mtok=2),
            "gpt-4.1": Price(input_usd_per_mtok=3, output_usd_per_mtok=3),
        }
    )
    for model, expected in (("openai:gpt-4.1", 3), ("gpt-4o", 2), ("openai:gpt-9", 1)):
        price = model_price(prices, model)
        assert price is not None
        assert price.input == expected


def test_an_override_prices_a_compatible_server_by_bare_or_full_name() -> None:
    for key in ("llama", "openai-compatible__llama"):
        assert completion_cost_usd(
            overrides(**{key: (1.0, 2.0)}), "openai-compatible:llama", 1_000_000, 500_000
        ) == pytest.approx(2.0)


def test_an_override_of_zero_is_free_not_unknown() -> None:
    assert completion_cost_usd(overrides(llama=(0.0, 0.0)), "llama", 10, 10) == 0.0


def test_a_long_prompt_is_billed_as_a_whole_at_the_long_price() -> None:
    at = completion_cost_usd(NONE, "claude-haiku-5-5", 100_000, 100)
    above = completion_cost_usd(NONE, "claude-haiku-5-5", 100_001, 100)
    assert at == pytest.approx((100_000 * 0.10 + 100 * 0.50) / 1e6)
    assert above == pytest.approx((100_001 * 0.50 + 100 * 2.50) / 1e6)


def test_tokens_written_to_the_cache_cost_their_own_price() -> None:
    assert completion_cost_usd(NONE, "gpt-6-luna", 2000, 0, cache_write_tokens=1000) == (
        pytest.approx((1000 * 0.10 + 1000 * 0.125) / 1e6)
    )


def test_every_row_is_dated_sourced_and_said_once() -> None:
    rows = money._table().models
    assert len({(row.provider, row.model) for row in rows}) == len(rows)
    for row in rows:
        assert row.as_of is not None
        assert date(2025, 1, 1) < row.as_of
        assert row.source.startswith("https://")
        assert row.output >= row.input > 0


def test_machine_price_default_is_dated_and_override_wins() -> None:
    default = machine_usd_per_hour(NONE)
    assert default.usd_per_hour > 0
    assert default.as_of is not None
    assert default.source.startswith("https://")
    own = machine_usd_per_hour(PricesSection(machine_usd_per_hour=0.0))
    assert own.usd_per_hour == 0.0
    assert own.as_of is None


def test_usd_per_1k_queries() -> None:
    assert usd_per_1k_queries(qps=10, usd_per_hour=0.36) == pytest.approx(0.01)
    for qps in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="qps"):
            usd_per_1k_queries(qps, 1.0)
    with pytest.raises(ValueError, match="usd_per_hour"):
        usd_per_1k_queries(1.0, -1.0)


def test_batch_prices_come_from_the_discount_where_it_is_known() -> None:
    table = model_price(PricesSection(), "openai:gpt-4.1")
    assert table is not None
    assert table.batch_usd(3.0) == 1.5
    raw = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    plain = model_price(PricesSection.model_validate({"models": {"m": raw}}), "openai:m")
    cut = model_price(
        PricesSection.model_validate({"models": {"m": {**raw, "batch_discount": 0.25}}}), "m"
    )
    assert plain is not None
    assert cut is not None
    assert plain.batch_usd(4.0) is None
    assert cut.batch_usd(4.0) == 3.0
