"""What is searched: keys, own values, defaults, refusals before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.recipe_tune import RangeSection, SearchSection
from stillhouse.train.search_space import Parameter, default_search, space_of, with_values


def recipe(**sections: Any) -> Recipe:
    raw = {
        "name": "t",
        "task": {"kind": "classification", "labels": ["a", "b"], "prompt": "{text}"},
        "traffic": {"path": "x"},
        "teacher": {"model": "hf:./t"},
        "student": {"head": "label", "from": "hf:./s"},
    }
    return parse_recipe(raw | sections)


def search(**keys: Any) -> SearchSection:
    return SearchSection.model_validate(
        {"search": {k.replace("__", "."): v for k, v in keys.items()}}
    )


def test_the_default_is_around_the_recipes_own_values() -> None:
    found = default_search(recipe(train={"learning_rate": 1e-4}))
    assert list(found) == ["train.learning_rate", "train.distillation_temperature", "train.alpha"]
    rate = found["train.learning_rate"]
    assert isinstance(rate, RangeSection)
    assert (rate.low, rate.high) == (pytest.approx(1e-5), pytest.approx(1e-3))
    hard = default_search(recipe(train={"alpha": 0}))
    assert list(hard) == ["train.learning_rate"]


def test_the_default_knows_terms_and_adapters() -> None:
    one = recipe(
        train={
            "lora": {"r": 8, "alpha": 16},
            "terms": [{"kind": "response"}, {"kind": "hidden", "weight": 0.5}],
        }
    )
    found = default_search(one)
    assert {"train.lora.r", "train.terms.hidden.weight", "train.terms.hidden.layers"} <= set(found)
    space = {p.key: p for p in space_of(one, SearchSection())}
    assert space["train.terms.hidden.weight"].own == 0.5
    assert space["train.lora.r"].own == 8


def test_the_own_value_is_always_in_the_space() -> None:
    own = recipe(train={"learning_rate": 5e-2}, student={"head": "label", "from": "hf:./s"})
    found = space_of(
        own, search(train__learning_rate={"low": 1e-5, "high": 1e-3}, student__layers=[1, 2])
    )
    rate, layers = found
    assert (rate.low, rate.high, rate.log) == (1e-5, 5e-2, True)
    assert layers.choices == (None, 1, 2)


def test_a_rank_brings_its_alpha_along() -> None:
    one = recipe(train={"lora": {"r": 16, "alpha": 32}})
    changed = with_values(one, {"train.lora.r": 4}).train.lora
    assert changed is not None
    assert (changed.r, changed.alpha) == (4, 8)
    both = with_values(one, {"train.lora.r": 4, "train.lora.alpha": 32}).train.lora
    assert both is not None
    assert both.alpha == 32


def test_values_reach_their_place_and_nothing_else() -> None:
    one = recipe(train={"terms": [{"kind": "response"}, {"kind": "hidden"}, {"kind": "attention"}]})
    found = with_values(
        one,
        {
            "train.terms.hidden.weight": 3.0,
            "train.terms.2.layers": [[0, 1], [1, 3]],
            "train.distillation_temperature": 4.0,
        },
    )
    assert found.train.terms is not None
    assert found.train.terms[1].weight == 3.0
    assert found.train.terms[2].layers == ((0, 1), (1, 3))  # type: ignore[union-attr]
    assert found.train.distillation_temperature == 4.0
    assert found.model_copy(update={"train": one.train}) == one
    assert with_values(one, {}) == one


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("train.learning_rat", [1, 2], "known keys"),
        ("train.lora.r", [4, 8], "no train.lora"),
        ("train.terms.hidden.weight", [1, 2], "no train.terms"),
        ("train.learning_rate", [0.1, "fast"], "train.learning_rate"),
        ("train.distillation_temperature", {"low": -1, "high": 2}, "greater than 0"),
        ("train.alpha", {"low": 0, "high": 1}, "another measure"),
        ("student.layers", {"low": 1, "high": 2}, "no number to begin with"),
        ("train.batch_size", {"low": 8, "high": 64}, "valid integer"),
    ],
)
def test_what_cannot_be_searched_is_named(key: str, values: Any, said: str) -> None:
    section = SearchSection.model_validate({"search": {key: values}})
    own = recipe(train={"batch_size": 8})
    with pytest.raises(RecipeError, match=said):
        space_of(own, section)


@pytest.mark.parametrize(
    "keys",
    [
        {"teacher.model": ["a", "b"]},
        {"train": [1, 2]},
        {"train.device": ["cpu", "cuda"]},
        {"train.distributed.world_size": [1, 2]},
        {"train.alpha": [0.5]},
        {"train.alpha": [0.5, 0.5]},
        {"train.alpha": {"low": 1, "high": 0.5}},
        {"train.alpha": {"low": 0, "high": 1, "log": True}},
        {},
    ],
)
def test_a_search_that_makes_no_sense_is_no_recipe(keys: Any) -> None:
    with pytest.raises(ValidationError):
        SearchSection.model_validate({"search": keys})


def test_numbers_are_short_and_stay_inside() -> None:
    one = Parameter("k", 0.5, low=0.12344, high=0.9, log=False)
    assert one.decoded(0.654321987) == 0.6543
    assert one.decoded(0.12344) == 0.12344  # 0.1234 would lie outside
    choice = Parameter("k", None, choices=(None, [0, 2], "skip"))
    assert [choice.decoded(choice.encoded(v)) for v in choice.choices] == [None, [0, 2], "skip"]
