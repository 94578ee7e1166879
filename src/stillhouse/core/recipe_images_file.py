"""Image recipes as YAML files. Knows files and the recipe; what a mistake reads like is in
`recipe_file`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stillhouse.core.recipe_file import absolute, check_kind, parse_as, read_raw, weights_from
from stillhouse.core.recipe_images import ImageRecipe


def load_image_recipe(path: Path, overrides: Sequence[str] = ()) -> ImageRecipe:
    """Read an image recipe; paths in it are relative to its folder.

    Raises:
        RecipeError: no such file, not YAML, a recipe of another kind, an unknown key, a value that
            does not fit.
    """
    raw = read_raw(path, overrides)
    check_kind(path, raw, "images")
    recipe = parse_as(ImageRecipe, raw, f"{path} or in --set" if overrides else str(path))
    base = path.parent
    images = recipe.images.model_copy(
        update={
            part: absolute(base, f"images.{part}", getattr(recipe.images, part))
            for part in ("train", "test")
        }
    )
    nets = {
        name: net.model_copy(update={"source": weights_from(net.source, base)})
        for name, net in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    return recipe.model_copy(update={"images": images, **nets})


def image_schema_text() -> str:
    """The JSON Schema of image recipes; docs/image_recipe.schema.json is this."""
    return json.dumps(ImageRecipe.model_json_schema(by_alias=True), indent=2) + "\n"
