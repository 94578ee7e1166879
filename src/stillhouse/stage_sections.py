"""The parts of a recipe that a stage's result depends on: what is dumped into its key.

Knows sections; no stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from stillhouse.compress.planning import learns_grid, section_of
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_cut import CutSection
from stillhouse.core.recipe_signals import CaptureSection
from stillhouse.core.recipe_train import StudentSection
from stillhouse.core.section_dump import dump_section
from stillhouse.train.planning_signals import capture_format, trimmed

# What does not change an answer does not make answers stale.
_NO_PART: Final = (
    "api_key_env",
    "batch",
    "budget_usd",
    "concurrency",
    "deadline_s",
    "on_revision_change",
    "outage_s",
    "ray",
    "retires_on",
    "retries",
    "terms",
    "timeout_s",
    "tune",
)
NOT_IN_ANSWERS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(_NO_PART, True),
    "members": {"__all__": dict.fromkeys(("concurrency", "api_key_env"), True)},
}
NOT_IN_VERDICTS: Final = {
    "concurrency",
    "retries",
    "timeout_s",
    "budget_usd",
    "api_key_env",
    "gold",
}


def dump(
    model: BaseModel, *, without: Mapping[str, Any] | set[str] | None = None
) -> dict[str, Any]:
    """A section as plain objects, but for what is left out."""
    return dump_section(model, without=without)


def training_section(recipe: Recipe) -> Mapping[str, Any]:
    """What training depends on."""
    return {
        "task": dump(recipe.task),
        "student": dump(recipe.student),
        "train": dump(recipe.train, without={"distributed"}),
        "teacher": recipe.teacher.model,
        "chat_template": recipe.teacher.chat_template,
    }


def compress_section(recipe: Recipe) -> Mapping[str, Any]:
    """What the smaller forms of a student depend on; training too, where it may follow."""
    student = {"head": recipe.student.head, "max_tokens": recipe.student.max_tokens}
    return {
        "task": dump(recipe.task),
        "student": student,
        "compress": dump(section_of(recipe)),
        "evaluate": dump(recipe.evaluate),
        "prices": dump(recipe.prices),
        **({"training": training_section(recipe)} if learns_grid(recipe) else {}),
    }


def captured(recipe: Recipe) -> CaptureSection:
    """The capture section, its format named where `auto` stands for another than it mostly does."""
    section = recipe.capture or CaptureSection()
    if section.format != "auto" or not trimmed(recipe):
        return section
    return section.model_copy(update={"format": capture_format(recipe)})


def reading(recipe: Recipe) -> StudentSection:
    """What of the student matters to its teacher's signals: text is captured over the whole
    vocabulary, whichever pieces a student keeps."""
    whole = {"vocabulary": "full", "size": None, "cut": CutSection()}
    return recipe.student.model_copy(update=whole) if trimmed(recipe) else recipe.student
