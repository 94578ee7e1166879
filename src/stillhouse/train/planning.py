"""What can be known of a training run before anything is paid for. Imports no torch.

Called when a run is planned: a recipe whose training would fail after the teacher was asked is
refused before. Knows the recipe only.
"""

from __future__ import annotations

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.train.planning_terms import check_terms


def check_recipe(recipe: Recipe) -> None:
    """Refuse soft targets that the recipe's teacher cannot give, and a twin of nothing.

    Raises:
        RecipeError: names the key and the two ways out.
    """
    check_terms(recipe)
    if recipe.train.alpha == 0:
        if recipe.train.insides:
            return
        if recipe.train.hard_label_twin:
            raise RecipeError(
                "train.hard_label_twin",
                "with train.alpha: 0 the student is trained on hard labels already",
                action="set hard_label_twin: false, or an alpha above 0",
            )
        return
    if recipe.student.head == "label":
        if _reads_nothing(recipe):
            raise RecipeError(
                "teacher.signals",
                f"the likelihoods of a local teacher are read at sampling_temperature: 0 and "
                f"samples: 1, not with teacher.signals: {recipe.teacher.signals} at "
                f"{recipe.teacher.sampling_temperature:g} and {recipe.teacher.samples}",
                action="leave teacher.samples and teacher.sampling_temperature out, or count "
                "votes: signals: samples with samples: 5 and sampling_temperature: 1",
            )
        if _blind(recipe):
            raise RecipeError(
                "train.alpha",
                f"soft targets need class probabilities, and {recipe.teacher.kind} with "
                f"teacher.signals: {recipe.teacher.signals} gives none",
                value=recipe.train.alpha,
                action="set teacher.signals: samples with samples: 5 and sampling_temperature: 1, "
                "or train.alpha: 0",
            )
        return
    if not recipe.teacher.trainable:
        raise RecipeError(
            "train.alpha",
            f"soft targets for text need the teacher's logits, which {recipe.teacher.kind} "
            "does not give",
            value=recipe.train.alpha,
            action="set train.alpha: 0 (fine-tuning on the teacher's answers)",
        )
    if recipe.student.vocabulary != "full":
        raise RecipeError(
            "train.alpha",
            "soft targets for text need the teacher's whole vocabulary",
            value=recipe.train.alpha,
            action="set train.alpha: 0, or student.vocabulary: full",
        )


def _blind(recipe: Recipe) -> bool:
    """Whether the teacher shows no belief over labels."""
    teacher = recipe.teacher
    if teacher.kind != "anthropic":
        return teacher.signals == "none"
    votes = teacher.samples >= 2 and teacher.sampling_temperature > 0
    return not (votes and teacher.signals in ("auto", "samples"))


def _reads_nothing(recipe: Recipe) -> bool:
    """Whether a local teacher would be sampled where its likelihoods are wanted."""
    teacher = recipe.teacher
    sampled = teacher.samples > 1 or teacher.sampling_temperature > 0
    single = not teacher.members  # an ensemble's own beliefs are in its answers
    return single and teacher.local and teacher.signals in ("auto", "logprobs") and sampled
