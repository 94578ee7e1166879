"""Recipes as YAML files: reading, overriding from the command line, the JSON Schema for editors.

Every mistake becomes one line that names the key, the nearest known key, and what to do.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_speculate import SpeculateSection
from stillhouse.core.recipe_teacher import TeacherSection

S = TypeVar("S", bound=Section)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; relative data paths in it are relative to the recipe's folder.

    Args:
        path: the YAML file.
        overrides: `section.key=value` items; values are read as YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value that does not fit.
    """
    raw = read_raw(path, overrides)
    check_kind(path, raw, "traffic")
    where = f"{path} or in --set" if overrides else str(path)
    return resolve_paths(parse_recipe(raw, where), path.parent)


# The section that tells a kind of recipe, and the command that runs it.
KINDS: Final = {"traffic": "run", "corpus": "pretrain", "images": "images"}


def check_kind(path: Path, raw: Mapping[str, Any], own: str) -> None:
    """Name the right command for a recipe of another kind.

    Raises:
        RecipeError: it has another kind's section, and not `own`.
    """
    for section, command in KINDS.items():
        if section in raw and own not in raw:
            raise RecipeError(
                str(path),
                f"is a recipe with {section}, not with {own}",
                action=f"use: stillhouse {command}",
            )


def kind_of(path: Path) -> str:
    """The section that tells a recipe's kind: traffic, corpus or images.

    Raises:
        RecipeError: no such file, or not YAML of sections.
    """
    raw = read_raw(path)
    return next((section for section in KINDS if section in raw), "traffic")


def read_raw(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's sections as they are written, with overrides.

    Raises:
        RecipeError: no such file, or not YAML of sections.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            str(path), "there is no such recipe", action="write one with: stillhouse init"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read: {error}") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1}" if mark is not None else str(path)
        raise RecipeError(where, f"is not valid YAML: {error}", action="mend the line") from None
    except Exception as error:  # PyYAML lets through what its constructors raise (bad dates, tags)
        raise RecipeError(str(path), f"is not valid YAML: {error!r}") from None
    if not isinstance(raw, dict):
        raise RecipeError(str(path), "is not a mapping of sections", action="see recipes/")
    for item in overrides:
        _override(raw, item)
    return raw


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate a raw mapping.

    Raises:
        RecipeError: the first mistake, as one line.
    """
    return parse_as(Recipe, raw, where)


def parse_as(kind: type[S], raw: Mapping[str, Any], where: str) -> S:
    """Validate a raw mapping as a recipe of a kind.

    Raises:
        RecipeError: the first mistake, as one line.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        location = [
            str(part)
            for index, part in enumerate(first["loc"])
            if not _is_choice(first["loc"], index)
        ]
        field = ".".join(location) or where
        if first["type"] == "extra_forbidden":
            known = known_keys(first["loc"][:-1], kind)
            near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            action = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise RecipeError(field, f"unknown key in {where}", action=action) from None
        message = _plain(first["type"], first["msg"], first.get("ctx", {}))
        value = first.get("input")
        sections = value if isinstance(value, list) else [value]
        if any(isinstance(one, dict) for one in sections) or _may_hold_secret(first["loc"]):
            value = None
        raise RecipeError(field, message, value=value, action=f"mend it in {where}") from None


# A key pasted here by mistake must not be shown again.
_UNSHOWN = ("api_key_env", "key_env", "sha256", "base_url", "judge", "webhook_env", "slack_env")


def _may_hold_secret(location: Sequence[str | int]) -> bool:
    return any(part in _UNSHOWN for part in location)


def _plain(kind: str, message: str, context: Mapping[str, Any]) -> str:
    """pydantic's message, in the words of people who never heard of its types."""
    if kind == "too_short":
        return f"needs at least {context['min_length']} entries"
    if kind == "string_type":
        return "must be a text; put it in quotes where YAML would read it as something else"
    if kind == "missing":
        return "is missing"
    if kind in ("model_type", "dict_type"):
        return "must be a section: keys with values, or {} for its defaults"
    if kind == "union_tag_not_found":
        return f"{context['discriminator']} is missing"
    if kind == "union_tag_invalid":
        return f"{context['discriminator']} must be one of {context['expected_tags']}"
    return message.removeprefix("Value error, ").replace("Input should", "must")


_TASK_KINDS = ("classification", "extraction", "generation")
_UPSTREAM_KINDS = ("openai", "anthropic", "student")


def _is_choice(location: Sequence[str | int], index: int) -> bool:
    """Whether a part of a location is no key: pydantic puts the kind it chose there, of the task,
    a term or a gateway's upstream, or the form that a value was read as."""
    if index >= 1 and location[index - 1] == "task" and location[index] in _TASK_KINDS:
        return True
    if index == 2 and location[0] == "upstreams":
        return location[2] in _UPSTREAM_KINDS
    in_terms = index >= 3 and location[:2] in (("train", "terms"), ("objective", "terms"))
    return in_terms and (index == 3 or "[" in str(location[index]))


def known_keys(location: Sequence[str | int], kind: type[Section] = Recipe) -> list[str]:
    """Keys that the section at `location` of a kind of recipe accepts."""
    schema = kind.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    node: dict[str, Any] = schema
    for part in location:
        node = _step(node, part, definitions)
    return sorted(_resolve(node, definitions).get("properties", {}))


def _resolve(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return dict(definitions[node["$ref"].rsplit("/", 1)[1]])
    for option in node.get("anyOf", ()):
        resolved = _resolve(option, definitions)
        if "properties" in resolved:
            return resolved
    return node


def _step(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> dict[str, Any]:
    for option in (node, *node.get("anyOf", ())):
        mapping = option.get("discriminator", {}).get("mapping", {})
        if part in mapping:
            return dict(definitions[mapping[part].rsplit("/", 1)[1]])
    resolved = _resolve(node, definitions)
    if isinstance(part, int):
        listed = (option for option in (resolved, *resolved.get("anyOf", ())) if "items" in option)
        return dict(next(listed, {"items": {}})["items"])
    found = resolved.get("properties", {}).get(part)
    if found is None:
        found = resolved.get("additionalProperties") or {}
    return found if isinstance(found, dict) else {}


def _override(raw: dict[str, Any], item: str) -> None:
    key, separator, value = item.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError("--set", "needs section.key=value", value=item)
    try:
        parsed = yaml.safe_load(value)
    except Exception:  # PyYAML lets through what its constructors raise (bad dates, tags)
        raise RecipeError(
            f"--set {key}",
            "the value is not valid YAML",
            value=None if _may_hold_secret(parts) else value,
        ) from None
    node = raw
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            shown = None if _may_hold_secret(parts) else child
            raise RecipeError(f"--set {key}", f"{part} is not a section", value=shown)
        node = child
    node[parts[-1]] = parsed


def resolve_paths(recipe: Recipe, base: Path) -> Recipe:
    """Make the paths of data and local models absolute, seen from the recipe's folder."""
    traffic = recipe.traffic.model_copy(
        update={
            field: absolute(base, f"traffic.{field}", getattr(recipe.traffic, field))
            for field in ("path", "labelled", "golden")
        }
    )
    student = recipe.student.model_copy(
        update={"source": weights_from(recipe.student.source, base)}
    )
    updates: dict[str, object] = {
        "traffic": traffic,
        "teacher": _teacher(recipe.teacher, base),
        "student": student,
    }
    if recipe.dataset.judge is not None:
        judge = recipe.dataset.judge
        gold = absolute(base, "dataset.judge.gold", judge.gold)
        judge = judge.model_copy(update={"gold": gold, "model": weights_from(judge.model, base)})
        updates["dataset"] = recipe.dataset.model_copy(update={"judge": judge})
    if recipe.compress is not None:
        calibration = absolute(base, "compress.calibration", recipe.compress.calibration)
        updates["compress"] = recipe.compress.model_copy(update={"calibration": calibration})
    if recipe.speculate is not None:
        updates["speculate"] = _speculate(recipe.speculate, base)
    if recipe.compare is not None:
        teachers = {name: _teacher(one, base) for name, one in recipe.compare.teachers.items()}
        updates["compare"] = recipe.compare.model_copy(update={"teachers": teachers})
    return recipe.model_copy(update=updates)


def absolute(base: Path, field: str, path: str | None) -> str | None:
    """A path as it is seen from a recipe's folder.

    Raises:
        RecipeError: it is none.
    """
    try:
        return None if path is None else str((base / Path(path).expanduser()).resolve())
    except (RuntimeError, ValueError, OSError) as error:
        raise RecipeError(field, f"is no path: {error}", value=path) from None


def _speculate(section: SpeculateSection, base: Path) -> SpeculateSection:
    files = {
        name: absolute(base, f"speculate.{name}", getattr(section, name))
        for name in ("target_gguf", "draft_gguf", "undistilled_gguf")
    }
    models = {name: weights_from(getattr(section, name), base) for name in ("target", "draft")}
    if section.undistilled is not None:
        models["undistilled"] = weights_from(section.undistilled, base)
    others = {name: weights_from(source, base) for name, source in section.others.items()}
    return section.model_copy(update={**files, **models, "others": others})


def _teacher(section: TeacherSection, base: Path) -> TeacherSection:
    members = tuple(
        member.model_copy(update={"model": weights_from(member.model, base)})
        for member in section.members
    )
    return section.model_copy(
        update={"model": weights_from(section.model, base), "members": members}
    )


def weights_from(source: str, base: Path) -> str:
    """A model file or folder that is written as a path, seen from the recipe's folder."""
    kind, _, name = source.partition(":")
    if kind == "gguf" or (kind == "hf" and name.startswith(("./", "../", "~"))):
        return f"{kind}:{(base / Path(name).expanduser()).resolve()}"
    return source


def recipe_json_schema() -> dict[str, Any]:
    """The JSON Schema of recipes, for editors; docs/recipe.schema.json is this."""
    return Recipe.model_json_schema(by_alias=True)


def recipe_schema_text() -> str:
    """The schema as it stands in docs/."""
    return json.dumps(recipe_json_schema(), indent=2) + "\n"
