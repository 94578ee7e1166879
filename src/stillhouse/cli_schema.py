"""`stillhouse schema`: the JSON Schema of recipes. Thin."""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_corpus_file import corpus_schema_text
from stillhouse.core.recipe_file import recipe_schema_text
from stillhouse.core.recipe_images_file import image_schema_text


def schema(
    *,
    corpus: Annotated[bool, typer.Option("--corpus", help="Of corpus recipes.")] = False,
    of_images: Annotated[bool, typer.Option("--images", help="Of image recipes.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    if corpus and of_images:
        raise UserError("--images", "goes not with --corpus: one schema at a time")
    text = corpus_schema_text if corpus else image_schema_text if of_images else recipe_schema_text
    typer.echo(text(), nl=False)
