"""What `stillhouse tune` searches: named keys of a recipe, their ranges and choices.

Puts values into a recipe and checks that each fits, before anything is trained. The recipe's own
values are always in the space, since a search begins with them. Knows recipes; knows no sampler and
imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import JsonValue

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_features import LayeredTerm
from stillhouse.core.recipe_file import known_keys, parse_recipe
from stillhouse.core.recipe_tune import RangeSection, SearchSection
from stillhouse.train.planning import check_recipe

DIGITS: Final = 4  # significant ones of a number that was drawn: the recipe that comes out is read
BETWEEN: Final = 0.382  # of a range: no whole number, where its ends are
RATE, HEAD_RATE = "train.learning_rate", "train.head_learning_rate"
TEMPERATURE, ALPHA = "train.distillation_temperature", "train.alpha"
RANK, LORA_ALPHA = "train.lora.r", "train.lora.alpha"
RANKS: Final = (4, 8, 16, 32, 64)
FACTOR: Final = 10.0  # rates and weights are searched so many times lower and higher by default
MAPS: Final = ("skip", "last", "first")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key that is searched. `own` is the recipe's value; either a range or `choices`."""

    key: str
    own: JsonValue
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[JsonValue, ...] = ()

    @property
    def tried(self) -> tuple[JsonValue, ...]:
        """What shows whether all of it fits: every choice, or both ends and what is between."""
        between = self.low + BETWEEN * (self.high - self.low)
        return self.choices or (self.low, self.decoded(between), self.high)

    def encoded(self, value: JsonValue) -> float | str:
        """As a study stores it: a number, or a choice as JSON."""
        if self.choices:
            return json.dumps(value)
        assert isinstance(value, int | float), "ranges hold numbers"
        return float(value)

    def decoded(self, stored: float | str) -> JsonValue:
        """The value of what a study stores; numbers have four significant digits."""
        if self.choices:
            value: JsonValue = json.loads(str(stored))
            return value
        return min(max(float(f"{float(stored):.{DIGITS}g}"), self.low), self.high)


def space_of(recipe: Recipe, section: SearchSection) -> tuple[Parameter, ...]:
    """What is searched, in the order of the recipe.

    Raises:
        RecipeError: a key the recipe does not have, or a value that does not fit it.
    """
    search = section.search if section.search is not None else default_search(recipe)
    raw = _raw(recipe)
    space = tuple(_parameter(recipe, raw, key, values) for key, values in search.items())
    for parameter in space:
        for value in parameter.tried:
            check_recipe(with_values(recipe, {parameter.key: value}))
    _check_alpha(recipe, space)
    return space


def default_search(recipe: Recipe) -> dict[str, RangeSection | tuple[JsonValue, ...]]:
    """What matters for a recipe of its kind, around its own values."""
    train = recipe.train
    found: dict[str, RangeSection | tuple[JsonValue, ...]] = {
        RATE: _around(train.effective_learning_rate)
    }
    if train.head_learning_rate is not None and recipe.student.head != "text":
        found[HEAD_RATE] = _around(train.head_learning_rate)
    if train.alpha > 0:
        found[TEMPERATURE] = RangeSection(low=1, high=10)
        found[ALPHA] = RangeSection(low=0.1, high=1)
    if train.lora is not None:
        found[RANK] = RANKS
    terms = train.terms or ()
    kinds = [term.kind for term in terms]
    for number, term in enumerate(terms):
        name = term.kind if kinds.count(term.kind) == 1 else str(number)
        if term.kind != "response":
            found[f"train.terms.{name}.weight"] = _around(term.weight)
        if isinstance(term, LayeredTerm) and isinstance(term.layers, str) and term.count is None:
            found[f"train.terms.{name}.layers"] = MAPS
    return found


def with_values(recipe: Recipe, values: Mapping[str, JsonValue]) -> Recipe:
    """The recipe with these values in it.

    A LoRA rank brings its alpha along, unless that is searched too: the size of an update goes with
    alpha / r (Hu et al. 2021), and stays as the recipe has it.

    Raises:
        RecipeError: a value that does not fit.
    """
    raw = _raw(recipe)
    for key, value in values.items():
        holder, name = _place(raw, key)
        holder[name] = value
    lora = recipe.train.lora
    if lora is not None and RANK in values and LORA_ALPHA not in values:
        rank = values[RANK]
        if isinstance(rank, int):
            raw["train"]["lora"]["alpha"] = max(1, round(lora.alpha * rank / lora.r))
    return parse_recipe(raw, "tune.search")


def _parameter(
    recipe: Recipe, raw: dict[str, Any], key: str, values: RangeSection | tuple[JsonValue, ...]
) -> Parameter:
    holder, name = _place(raw, key)
    own = holder[name]
    if own is None and key in (RATE, HEAD_RATE):
        own = recipe.train.effective_learning_rate
    if isinstance(values, tuple):
        known = [json.dumps(value) for value in values]
        choices = values if json.dumps(own) in known else (own, *values)
        return Parameter(key, own, choices=tuple(choices))
    if not isinstance(own, int | float) or isinstance(own, bool):
        raise RecipeError(
            f"tune.search.{key}",
            "is a range, and the recipe's own value is no number to begin with",
            value=own,
            action=f"give {key} a number, or search a list of values",
        )
    return Parameter(
        key,
        float(own),
        low=min(values.low, float(own)),
        high=max(values.high, float(own)),
        log=values.by_factors and own > 0,
    )


def _check_alpha(recipe: Recipe, space: tuple[Parameter, ...]) -> None:
    """Students with and without soft targets are judged by other measures, on other examples."""
    for parameter in space:
        alphas = [value for value in parameter.tried if isinstance(value, int | float)]
        if parameter.key == ALPHA and 0 in alphas:
            raise RecipeError(
                f"tune.search.{ALPHA}",
                "0 leaves the soft targets out, and what is left is judged by another measure",
                value=parameter.own if recipe.train.alpha == 0 else 0,
                action="search from 0.05 on, with a train.alpha above 0; train.hard_label_twin "
                "says what soft targets are worth",
            )


def _around(value: float) -> RangeSection:
    return RangeSection(low=value / FACTOR, high=value * FACTOR, log=True)


def _raw(recipe: Recipe) -> dict[str, Any]:
    return dict(recipe.model_dump(mode="json", by_alias=True))


def _place(raw: dict[str, Any], key: str) -> tuple[Any, Any]:
    """The holder of a key and its name there; terms are named by kind or number."""
    parts = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        name: str | int = part
        if isinstance(node, list):
            name = _numbered(node, part, key)
        elif not isinstance(node, dict):
            where = ".".join(parts[:depth])
            raise RecipeError(
                f"tune.search.{key}", f"the recipe has no {where}", action=f"give {where} first"
            )
        elif part not in node:
            known = ", ".join(known_keys(parts[:depth])) or ", ".join(sorted(node))
            raise RecipeError(f"tune.search.{key}", "unknown key", action=f"known keys: {known}")
        if last:
            return node, name
        node = node[name]
    raise AssertionError("a key has parts")


def _numbered(node: list[Any], part: str, key: str) -> int:
    if part.isdigit() and int(part) < len(node):
        return int(part)
    numbers = list(_of_kind(node, part))
    if len(numbers) != 1:
        problem = "names no entry of the recipe" if not numbers else "names several entries"
        raise RecipeError(f"tune.search.{key}", problem, value=part, action="give its number")
    return numbers[0]


def _of_kind(node: list[Any], kind: str) -> Iterator[int]:
    for number, entry in enumerate(node):
        if isinstance(entry, dict) and entry.get("kind") == kind:
            yield number
