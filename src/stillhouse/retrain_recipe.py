"""The recipes of a cycle: the task's own, with the cycle's traffic, budget and start.

What is asked and how stays as it is, so that answers which are paid are found again. Knows recipes;
runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe

CONFIG: Final = "config.json"
# Sections that are about the first student alone.
_LEFT_OUT: Final = ("prune", "compare", "tune", "speculate")


def learning_recipe(
    recipe: Recipe,
    section: RetrainSection,
    queries: Path,
    limit_usd: float | None,
    start: Path | None,
) -> Recipe:
    """The recipe that a cycle's student is made by.

    Args:
        recipe: the task's, its paths absolute.
        section: the task's retraining.
        queries: the cycle's traffic.
        limit_usd: on all answers in the store.
        start: folder of the student to go on from; `None`: the recipe's source.
    """
    raw = _plain(recipe, queries, limit_usd)
    for key in ("epochs", "learning_rate"):
        if getattr(section, key) is not None:
            raw["train"][key] = getattr(section, key)
    if start is not None:
        raw["student"] = _warm(recipe, start)
    return parse_recipe(raw, "the recipe of this cycle")


def asking_recipe(recipe: Recipe, queries: Path, limit_usd: float | None) -> Recipe:
    """The recipe by which the teacher is asked alone: nothing is learnt from it."""
    raw = _plain(recipe, queries, limit_usd)
    raw["dataset"]["min_examples"] = 2
    raw["traffic"]["golden"] = None
    if recipe.teacher.tune is None:
        raw["traffic"]["labelled"] = None
    return parse_recipe(raw, "the recipe of this cycle")


def reuses_log(recipe: Recipe) -> bool:
    """Whether an answer of the log is all that this recipe needs of an answer: a single text of an
    API teacher, without beliefs."""
    teacher = recipe.teacher
    return (
        not teacher.local
        and not teacher.members
        and teacher.kind != "replay"
        and teacher.samples == 1
        and teacher.token_logprobs == 0
        and recipe.dataset.best_of == "none"
        and not recipe.needs_beliefs
    )


def can_start_from(recipe: Recipe, folder: Path) -> str | None:
    """Why training cannot go on from a student, or `None`.

    A text student whose vocabulary was cut cannot: its teacher's beliefs are over other pieces.
    """
    if not (folder / CONFIG).is_file():
        return f"{folder} holds no weights that can be trained on"
    trimmed = recipe.student.vocabulary != "full" or recipe.student.size is not None
    if recipe.student.head == "text" and trimmed and recipe.train.alpha > 0:
        return "a text student of a trimmed vocabulary is trained from the recipe's source"
    return None


def _plain(recipe: Recipe, queries: Path, limit_usd: float | None) -> dict[str, Any]:
    raw: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True)
    # What was left out of a student's section may depend on what is given.
    raw["student"] = recipe.student.model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw |= dict.fromkeys(_LEFT_OUT)
    raw["traffic"] |= {"path": str(queries), "limit": None, "select": None, "expand": None}
    raw["teacher"] |= {"budget_usd": limit_usd}
    return raw


def _warm(recipe: Recipe, start: Path) -> dict[str, Any]:
    section: Mapping[str, Any] = {
        "head": recipe.student.head,
        "from": f"hf:{start}",
        "max_tokens": recipe.student.max_tokens,
    }
    if recipe.student.head == "text":
        return dict(section)
    names = read_json(start / CONFIG).get("architectures")
    if not (isinstance(names, list) and names and str(names[0]).endswith("Classification")):
        raise UserError(str(start), "is no classifier", action="set retrain.start: scratch")
    return {**section, "keep_head": True}
