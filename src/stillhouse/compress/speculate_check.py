"""Find before the teacher is paid that a draft's tokenizer does not go with its target's.

Loads tokenizers, no weights. Knows the recipe; measures nothing.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from stillhouse.compress.speculate_ids import map_ids
from stillhouse.core.recipe import Recipe
from stillhouse.models.loading import locate
from stillhouse.models.quiet import quiet_transformers


def check_drafts(recipe: Recipe) -> None:
    """Look at the tokenizers of the target and of every draft that the recipe names.

    A trimmed student's pieces are among those of its source, whose tokenizer stands for it here.

    Raises:
        UserError: no such model, or tokenizers that cut text in unlike ways.
    """
    section = recipe.speculate
    assert section is not None, "the stage runs where the recipe has the section"
    own = recipe.student.source
    sources = {
        "teacher": recipe.teacher.model,
        "student": recipe.teacher.model if own == "teacher" else own,
    }
    target = _tokenizer(sources.get(section.target, section.target))
    drafts = [section.draft, *section.others.values()]
    if section.undistilled not in (None, "untrained"):
        drafts.append(str(section.undistilled))
    for source in dict.fromkeys(sources.get(one, one) for one in drafts):
        draft = _tokenizer(source)
        map_ids(draft, target, len(draft.get_vocab()), len(target.get_vocab()))


def _tokenizer(source: str) -> Any:
    with quiet_transformers():
        return AutoTokenizer.from_pretrained(locate(source).folder, local_files_only=True)
