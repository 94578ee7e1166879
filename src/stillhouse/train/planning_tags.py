"""What a tag student does not do, found before anything is paid for. Imports no torch.

Knows the recipe only; whether its schema can be tagged, the recipe itself says (`core.recipe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe


class _Unfit(NamedTuple):
    """A key that says something, and why it cannot."""

    key: str
    beside: bool
    problem: str
    action: str


def check_tags(recipe: Recipe) -> None:
    """Refuse what needs beliefs, a text that is written, or a form that is not made.

    Raises:
        RecipeError: names the key and the way out.
    """
    if recipe.student.head != "tags":
        return
    for one in _unfit(recipe):
        if one.beside:
            raise RecipeError(one.key, one.problem, action=one.action)


def _unfit(recipe: Recipe) -> Iterator[_Unfit]:
    train, other = recipe.train, "or set student.head: text"
    yield _Unfit(
        "train.alpha",
        train.alpha > 0,
        "a tag student learns where a teacher's values stand, of which no teacher has a belief "
        "that could be a soft target",
        "set train.alpha: 0",
    )
    yield _Unfit(
        "train.hard_label_twin",
        train.hard_label_twin,
        "a tag student is trained on hard labels already",
        "set hard_label_twin: false",
    )
    yield _Unfit(
        "train.signals",
        train.signals == "cache",
        "a tag student reads no stored beliefs",
        f"set signals: live, {other}",
    )
    yield _Unfit(
        "capture",
        recipe.capture is not None,
        "a tag student reads no beliefs, so none are written down",
        f"leave capture out, {other}",
    )
    for key, given, problem in (
        ("train.terms", train.terms is not None, "no teacher reads along whose insides compare"),
        ("train.balance", train.balance != "fixed", "there is one loss, and nothing to balance"),
        ("train.progressive", train.progressive is not None, "there are no layers to compare"),
        ("train.on_policy", train.on_policy is not None, "a tag student writes no text"),
        ("train.selective", train.selective is not None, "there is no belief to select tokens by"),
        ("train.teachers", train.teachers is not None, "no teacher reads along"),
        ("train.packing", train.packing, "a tag student reads one text a row"),
        ("prune", recipe.prune is not None, "a tag student is not pruned yet"),
    ):
        yield _Unfit(key, given, problem, f"leave it out, {other}")
    section = train.distributed
    yield _Unfit(
        "train.distributed.strategy",
        section is not None and section.strategy == "fsdp2",
        "a tag student is small enough for every process",
        "use strategy: ddp",
    )
