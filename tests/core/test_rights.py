"""Terms of teachers: set, waived, missing, forbidding."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.rights import check_rights, terms_sentence

STATED = {"may_train": True, "says": "clause 3", "on": "2026-11-01", "url": "https://example.test"}
WAIVED = {"waived_by": "Ada", "reason": "an internal trial"}
ALL = ("traffic", "check", "ask", "dataset", "train", "evaluate")


def recipe(model: str = "openai:m", terms: Any = None) -> Recipe:
    return parse_recipe(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "traffic": {"path": "t.jsonl"},
            "teacher": {"model": model, "terms": terms},
            "student": {"head": "label", "from": "embedded-encoder"},
            "train": {"alpha": 0},
        }
    )


@pytest.mark.parametrize("model", ["openai:m", "anthropic:m", "hf:some/model", "gguf:m.gguf"])
def test_every_teacher_but_the_embedded_one_needs_terms(model: str) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.terms: is not set.*docs/rights\.md") as caught:
        check_rights(recipe(model), ALL)
    assert "\n" not in str(caught.value)
    check_rights(recipe(model), ("traffic",))
    check_rights(recipe(model, STATED), ALL)
    check_rights(recipe(model, WAIVED), ALL)


def test_the_licence_of_the_embedded_teacher_is_known() -> None:
    check_rights(recipe("embedded"), ALL)
    assert "apache-2.0" in terms_sentence(recipe("embedded").teacher)


def test_terms_that_forbid_training_refuse_it_but_not_asking() -> None:
    made = recipe(terms={**STATED, "may_train": False})
    check_rights(made, ("traffic", "check", "ask", "dataset"))
    with pytest.raises(RecipeError, match=r"may_train: is false \(says clause 3, 2026-11-01\)"):
        check_rights(made, ALL)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({}, "needs may_train, says and on, or waived_by and reason"),
        ({"may_train": True}, "needs may_train"),
        ({"may_train": True, "says": "x"}, "needs may_train"),
        ({"url": "https://example.test"}, "needs may_train"),
        ({"waived_by": "Ada"}, "needs may_train"),
        ({**STATED, **WAIVED}, "not both"),
        ({**STATED, "on": "yesterday"}, r"terms\.on"),
        ({**STATED, "says": ""}, r"terms\.says"),
        ({**STATED, "clause": 3}, "unknown key"),
    ],
)
def test_half_said_terms_are_an_error(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(terms=terms)


def test_a_bare_on_in_yaml_is_the_key() -> None:
    terms = yaml.safe_load("{may_train: true, says: the licence, on: 2026-11-01}")
    assert True in terms, "YAML 1.1 reads it so"
    made = recipe(terms=terms)
    assert made.teacher.terms is not None
    assert str(made.teacher.terms.on) == "2026-11-01"
    assert "on" in made.model_dump(mode="json")["teacher"]["terms"]


def test_what_cards_say() -> None:
    assert terms_sentence(recipe(terms=STATED).teacher) == (
        "Its outputs may train a model, according to clause 3 (https://example.test), "
        "read 2026-11-01."
    )
    assert "may not train" in terms_sentence(recipe(terms={**STATED, "may_train": False}).teacher)
    assert "waived by Ada" in terms_sentence(recipe(terms=WAIVED).teacher)
