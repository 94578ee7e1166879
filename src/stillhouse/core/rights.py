"""Whether a teacher may be asked and trained on, by what the recipe says of its terms.

Refuses before anything is sent. Knows the recipe; knows no provider's terms, and gives no legal
advice.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import TeacherSection

EMBEDDED_LICENCE: Final = "apache-2.0"
ASKING: Final = frozenset({"check", "expand", "ask"})
TRAINING: Final = frozenset({"train"})


def check_rights(recipe: Recipe, stages: Collection[str]) -> None:
    """Refuse stages that ask a teacher of unknown terms, or train on one whose terms forbid it.

    Args:
        recipe: its `teacher.terms`.
        stages: those that would be run.

    Raises:
        RecipeError: one line that names the key.
    """
    if ASKING & set(stages):
        require_terms(recipe.teacher)
    if TRAINING & set(stages):
        require_may_train(recipe.teacher)


def check_compared_rights(recipe: Recipe) -> None:
    """Refuse a comparison with a teacher of unknown terms; with probe students, one who forbids it.

    A probe student is trained on what the teacher says, if only for its score.

    Raises:
        RecipeError: one line that names the key.
    """
    compare = recipe.compare
    compared = {} if compare is None else compare.teachers
    everyone = {f"compare.teachers.{name}": section for name, section in compared.items()}
    for field, teacher in {"teacher": recipe.teacher, **everyone}.items():
        require_terms(teacher, field)
        if compare is not None and compare.probe is not None:
            require_may_train(teacher, field)


def require_terms(teacher: TeacherSection, field: str = "teacher") -> None:
    """Refuse to ask a teacher whose terms are neither set nor waived; `embedded` needs none.

    Raises:
        RecipeError: `teacher.terms` is missing.
    """
    if teacher.kind == "embedded" or teacher.terms is not None:
        return
    raise RecipeError(
        f"{field}.terms",
        f"is not set: may the outputs of {teacher.model} train a model",
        action="read its licence or terms (docs/rights.md says where) and write terms: "
        "{may_train: true, says: WHO_OR_CLAUSE, on: DATE}, or {waived_by: NAME, reason: WHY}",
    )


def require_may_train(teacher: TeacherSection, field: str = "teacher") -> None:
    """Refuse to train on the answers of a teacher whose terms forbid it.

    Raises:
        RecipeError: `teacher.terms.may_train` is false.
    """
    terms = teacher.terms
    if terms is not None and terms.may_train is False:
        raise RecipeError(
            f"{field}.terms.may_train",
            f"is false (says {terms.says}, {terms.on}): no student is trained on the answers of "
            f"{teacher.model}",
            action="choose another teacher; the stages up to dataset can be run one by one",
        )


def terms_sentence(teacher: TeacherSection) -> str:
    """What the recipe says of its teacher's terms, for cards."""
    if teacher.terms is not None:
        return teacher.terms.sentence()
    if teacher.kind == "embedded":
        return f"SmolLM2-135M-Instruct, whose weights are under {EMBEDDED_LICENCE}."
    return "Not stated."
