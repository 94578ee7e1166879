"""What can be known of `train.selective` before anything is paid for. Imports no torch.

Knows the recipe only; whether the reference's tokens are the student's is checked where it is read.
"""

from __future__ import annotations

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe


def check_selective(recipe: Recipe) -> None:
    """Refuse a selection of tokens where there are none, or nobody to select by.

    Raises:
        RecipeError: names the key and the way out.
    """
    train = recipe.train
    if train.selective is None:
        return
    for beside, problem, action in (
        (
            recipe.student.head == "label",
            "a label student has one target a text, and no tokens to select among",
            "leave selective out, or set student.head: text",
        ),
        (
            train.alpha == 0,
            "tokens are selected by what the teacher believes, which alpha: 0 does not read",
            "set an alpha above 0 (1 is usual), or leave selective out",
        ),
        (
            train.signals == "cache",
            "the teacher and the reference read along, and the cache has the teacher alone",
            "set train.signals: live, or leave selective out",
        ),
        (
            train.terms is not None,
            "tokens are selected for the response alone, not beside train.terms",
            "leave one of the two out",
        ),
        (
            train.teachers is not None and train.teachers.tokenizers == "universal",
            "a teacher of other tokens has no divergence at each of the student's",
            "use a teacher with the student's tokenizer, or leave selective out",
        ),
        (
            train.distributed is not None and train.distributed.world_size > 1,
            "the reference is read in one process",
            "train in one process, or leave selective out",
        ),
    ):
        if beside:
            raise RecipeError("train.selective", problem, action=action)
