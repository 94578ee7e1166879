"""Recipes: sections check themselves and each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.recipe_train import StudentSection, TrainSection


def raw(**changes: Any) -> dict[str, Any]:
    """A small valid recipe, with whole sections replaced."""
    return {
        "name": "test",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "traffic": {"path": "t.jsonl"},
        "teacher": {"model": "hf:some/model"},
        "student": {"head": "label", "from": "teacher"},
        **changes,
    }


EXTRACTION = {
    "kind": "extraction",
    "json_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
}


def test_defaults_are_those_of_the_documentation() -> None:
    recipe = Recipe.model_validate(raw())
    assert recipe.seed == 0
    assert recipe.dataset.held_out == 0.1
    assert recipe.dataset.min_examples == 50
    assert recipe.train.epochs == 3
    assert recipe.train.schedule == "cosine"
    assert recipe.evaluate.margin == 0.05


def test_the_learning_rate_depends_on_lora() -> None:
    assert TrainSection().effective_learning_rate == 2e-5
    lora = TrainSection.model_validate({"lora": {}})
    assert lora.effective_learning_rate == 2e-4
    assert lora.lora is not None
    assert (lora.lora.r, lora.lora.alpha) == (16, 32)
    assert lora.lora.target_modules == ("q_proj", "v_proj")
    assert TrainSection(learning_rate=1e-3).effective_learning_rate == 1e-3


@pytest.mark.parametrize(
    ("model", "kind", "name", "trainable", "local"),
    [
        ("openai:gpt-x", "openai", "gpt-x", False, False),
        ("anthropic:claude", "anthropic", "claude", False, False),
        ("hf:org/model:tag", "hf", "org/model:tag", True, True),
        ("gguf:a/b.gguf", "gguf", "a/b.gguf", False, True),
        ("embedded", "embedded", "embedded", True, True),
    ],
)
def test_teacher_forms(model: str, kind: str, name: str, trainable: bool, local: bool) -> None:
    teacher = TeacherSection(model=model)
    assert (teacher.kind, teacher.name) == (kind, name)
    assert (teacher.trainable, teacher.local) == (trainable, local)


@pytest.mark.parametrize(
    "section",
    [
        {"model": "gpt-x"},
        {"model": "openai:"},
        {"model": "embedded:x"},
        {"model": "openai-compatible:m"},
        {"model": "openai:m", "tune": {}},
        {"model": "gguf:m", "tune": {}},
        {"model": "openai:m", "signals": "samples"},
        {"model": "openai:m", "signals": "samples", "samples": 5},
        {"model": "openai:m", "api_key": "secret"},
        {"model": "openai:m", "sampling_temperature": 2.5},
        {"model": "anthropic:m", "sampling_temperature": 1.5},
        {"model": "openai:m", "device": "cuda"},
        {"model": "embedded", "base_url": "http://localhost:8000/v1"},
        {"model": "gguf:m", "api_key_env": "KEY"},
    ],
)
def test_a_teacher_that_cannot_work_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TeacherSection.model_validate(section)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_key_env", "sk-proj-hush"),
        ("api_key_env", "hush hush"),
        ("api_key_env", "1hush"),
        ("api_key_env", "HUSH\n"),
        ("api_key_env", ["hush"]),
        ("base_url", "http://me:hush@host/v1"),
        ("base_url", "me:hush@host"),
        ("base_url", "https://host/v1?key=hush"),
        ("base_url", "https://host/v1#hush"),
        ("base_url", "sk-hush"),
    ],
)
def test_what_may_hold_a_secret_is_refused_and_not_repeated(field: str, value: object) -> None:
    section = {"model": "openai:m", field: value}
    with pytest.raises(ValidationError) as caught:
        TeacherSection.model_validate(section)
    assert "hush" not in str(caught.value).casefold()
    student = {"head": "label", "from": "hf:m"}
    with pytest.raises(RecipeError, match=rf"teacher\.{field}") as shown:
        parse_recipe(raw(teacher=section, student=student))
    assert "hush" not in str(shown.value).casefold()


def test_names_of_variables_and_plain_urls_are_taken() -> None:
    section = TeacherSection(model="openai:m", api_key_env="_My_KEY2", base_url="https://h:1/v1")
    assert (section.api_key_env, section.base_url) == ("_My_KEY2", "https://h:1/v1")


@pytest.mark.parametrize(
    "section",
    [
        {"layers": 0},
        {"layers": []},
        {"layers": [2, 1]},
        {"layers": [1, 1]},
        {"vocabulary": 10},
        {"vocabulary": "some"},
        {"from": "hf:"},
        {"from": "model"},
    ],
)
def test_a_student_that_cannot_be_is_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StudentSection.model_validate({"head": "label", "from": "teacher", **section})


@pytest.mark.parametrize("layers", [None, 3, (0, 2, 5)])
def test_student_layers(layers: int | tuple[int, ...] | None) -> None:
    student = StudentSection.model_validate({"head": "text", "from": "hf:m", "layers": layers})
    assert student.layers == layers


def test_micro_batches_divide_the_batch() -> None:
    with pytest.raises(ValidationError, match="multiple"):
        TrainSection(batch_size=32, micro_batch_size=5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": EXTRACTION}, "needs a classification task"),
        ({"teacher": {"model": "hf:m", "tune": {}}}, "needs traffic.labelled"),
        ({"teacher": {"model": "openai:m"}}, "trainable weights"),
        ({"student": {"head": "text", "from": "embedded-encoder"}}, "cannot write text"),
        ({"surplus": 1}, "Extra inputs"),
        ({"name": "../escape"}, "pattern"),
        ({"seed": -1}, "greater than or equal"),
    ],
)
def test_sections_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(raw(**changes))


def test_recipes_are_frozen() -> None:
    recipe = Recipe.model_validate(raw())
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]
