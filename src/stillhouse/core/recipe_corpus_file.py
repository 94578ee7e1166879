"""Corpus recipes as YAML files. Knows files and the recipe; what a mistake reads like is in
`recipe_file`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.recipe_file import absolute, check_kind, parse_as, read_raw, weights_from


def load_corpus_recipe(path: Path, overrides: Sequence[str] = ()) -> CorpusRecipe:
    """Read a corpus recipe; paths in it are relative to its folder.

    Raises:
        RecipeError: no such file, not YAML, a recipe of another kind, an unknown key, a value that
            does not fit.
    """
    raw = read_raw(path, overrides)
    check_kind(path, raw, "corpus")
    recipe = parse_corpus_recipe(raw, f"{path} or in --set" if overrides else str(path))
    base = path.parent
    corpus = recipe.corpus.model_copy(
        update={"path": absolute(base, "corpus.path", recipe.corpus.path)}
    )
    evaluate = recipe.evaluate.model_copy(
        update={"zero_shot": absolute(base, "evaluate.zero_shot", recipe.evaluate.zero_shot)}
    )
    teacher = recipe.teacher.model_copy(update={"model": weights_from(recipe.teacher.model, base)})
    student = recipe.student.model_copy(
        update={"source": weights_from(recipe.student.source, base)}
    )
    return recipe.model_copy(
        update={"corpus": corpus, "evaluate": evaluate, "teacher": teacher, "student": student}
    )


def parse_corpus_recipe(raw: Mapping[str, Any], where: str = "recipe") -> CorpusRecipe:
    """Validate a raw mapping.

    Raises:
        RecipeError: the first mistake, as one line.
    """
    return parse_as(CorpusRecipe, raw, where)


def corpus_schema_text() -> str:
    """The JSON Schema of corpus recipes; docs/corpus_recipe.schema.json is this."""
    return json.dumps(CorpusRecipe.model_json_schema(by_alias=True), indent=2) + "\n"
