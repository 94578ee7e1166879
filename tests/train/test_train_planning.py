"""Plans: what a teacher's beliefs can be read from is known before anything is paid for."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.train.planning import check_recipe

VOTES = {"samples": 5, "sampling_temperature": 1.0}


def recipe(teacher: dict[str, Any], **train: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "traffic": {"path": "x"},
            "teacher": teacher,
            "student": {"head": "label", "from": "hf:x"},
            "train": train,
        }
    )


@pytest.mark.parametrize("model", ["embedded", "hf:m", "gguf:m.gguf"])
@pytest.mark.parametrize("signals", ["auto", "logprobs"])
@pytest.mark.parametrize("drawn", [{"samples": 3}, {"sampling_temperature": 0.7}, VOTES])
def test_likelihoods_of_a_sampled_local_teacher_are_refused(
    model: str, signals: str, drawn: dict[str, Any]
) -> None:
    teacher = {"model": model, "signals": signals}
    with pytest.raises(RecipeError, match=r"teacher\.signals.*signals: samples") as caught:
        check_recipe(recipe(teacher | drawn))
    assert "\n" not in str(caught.value)
    check_recipe(recipe(teacher))
    check_recipe(recipe(teacher | drawn, alpha=0))
    check_recipe(recipe(teacher | VOTES | {"signals": "samples"}))


@pytest.mark.parametrize("signals", ["auto", "samples"])
def test_votes_of_a_teacher_without_logprobs_are_beliefs(signals: str) -> None:
    check_recipe(recipe({"model": "anthropic:m", "signals": signals} | VOTES))


@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"samples": 5},
        {"sampling_temperature": 1.0},
        VOTES | {"signals": "logprobs"},
        VOTES | {"signals": "none"},
    ],
)
def test_without_votes_or_logprobs_there_is_no_belief(drawn: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"train\.alpha.*anthropic"):
        check_recipe(recipe({"model": "anthropic:m"} | drawn))
