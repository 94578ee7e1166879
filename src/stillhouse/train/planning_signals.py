"""What can be known of a signal cache before anything is paid for. Imports no torch.

Refuses captures and trainings from a cache that could not work. Knows the recipe only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_signals import CaptureFormat, CaptureSection
from stillhouse.models.divergence_kind import SAMPLED_KINDS, divergence_of, infinite_at_zero

_KEYS_OF: Final[Mapping[str, CaptureFormat]] = {
    "samples": "sampled",
    "held_out_samples": "sampled",
    "draws": "sampled",
    "proposal_temperature": "sampled",
    "distillation_temperature": "sampled",
    "k": "top_k",
}


def captures(recipe: Recipe) -> bool:
    """Whether the recipe has a capture stage."""
    return recipe.capture is not None or recipe.train.signals == "cache"


def reads_logprobs(recipe: Recipe) -> bool:
    """Whether a text teacher's signals are those that it gave with its answers."""
    section = recipe.capture or CaptureSection()
    if recipe.student.head != "text" or section.read_from == "teacher":
        return False
    return section.read_from == "logprobs" or not recipe.teacher.trainable


def trimmed(recipe: Recipe) -> bool:
    """Whether a text student learns from its teacher's belief over the pieces that it kept."""
    return recipe.student.head == "text" and recipe.student.vocabulary != "full"


def capture_format(recipe: Recipe) -> CaptureFormat:
    """The format that `auto` stands for, or the one that is named. Where a trimmed student's
    teacher turns out to have no linear head, `auto` is top_k after all."""
    section = recipe.capture or CaptureSection()
    if section.format != "auto":
        return section.format
    if recipe.student.head == "label":
        return "dense"
    if reads_logprobs(recipe):
        return "top_k"
    return "hidden" if trimmed(recipe) and recipe.train.signals == "cache" else "sampled"


def check_signals(recipe: Recipe) -> None:
    """Refuse a capture, or a training from it, that cannot be.

    Raises:
        RecipeError: names the key and what to do.
    """
    if recipe.train.signals == "cache":
        _check_training(recipe)
    if captures(recipe):
        _check_capture(recipe)


def _check_training(recipe: Recipe) -> None:
    if recipe.train.alpha == 0:
        raise RecipeError(
            "train.signals",
            "with train.alpha: 0 nothing is read from the cache",
            value="cache",
            action="set an alpha above 0, or signals: live",
        )
    if recipe.train.on_policy is not None:
        raise RecipeError(
            "train.on_policy",
            "what the student writes on the way is in no cache",
            action="set train.signals: live, or leave on_policy out",
        )
    if recipe.train.teachers is not None:
        raise RecipeError(
            "train.teachers",
            "with train.signals: cache no teacher reads along",
            action="set train.signals: live, or leave teachers out",
        )
    chosen = capture_format(recipe)
    if trimmed(recipe):
        _check_trimmed(recipe, chosen)
    of = divergence_of(recipe.train.divergence, recipe.train.divergence_beta)
    if reads_logprobs(recipe) and infinite_at_zero(of):
        raise RecipeError(
            "train.divergence",
            "is infinite at the hard labels that stand for answers without logprobs",
            value=recipe.train.divergence,
            action="use forward_kl, jsd or total_variation",
        )
    if chosen == "sampled" and recipe.train.divergence not in SAMPLED_KINDS:
        raise RecipeError(
            "train.divergence",
            "draws of a belief say nothing without bias of any but "
            f"{' and '.join(sorted(SAMPLED_KINDS))}",
            value=recipe.train.divergence,
            action="use capture.format: hidden or top_k, or one of these",
        )


def _check_trimmed(recipe: Recipe, chosen: CaptureFormat) -> None:
    """What a belief restricted to some pieces cannot be had from."""
    if reads_logprobs(recipe):
        raise RecipeError(
            "student.vocabulary",
            "logprobs that came with the answers are over the teacher's whole vocabulary",
            value=recipe.student.vocabulary,
            action="set vocabulary: full, or train from a teacher whose weights are here",
        )
    if chosen == "sampled":
        raise RecipeError(
            "capture.format",
            "draws that fall on other pieces say nothing of those that student.vocabulary keeps",
            value=chosen,
            action="use format: hidden or top_k, or auto",
        )


def _check_capture(recipe: Recipe) -> None:
    section, chosen = recipe.capture or CaptureSection(), capture_format(recipe)
    _check_keys(section, chosen)
    if recipe.student.head == "label":
        if chosen != "dense" or section.read_from == "logprobs":
            raise RecipeError(
                "capture.format",
                "a label student learns from beliefs over classes, which are stored whole",
                value=chosen,
                action="use format: dense, or auto, and leave read_from out",
            )
        return
    if reads_logprobs(recipe):
        _check_logprobs(recipe, chosen)
    elif not recipe.teacher.trainable:
        raise RecipeError(
            "capture.read_from",
            f"{recipe.teacher.kind} is no teacher whose weights can read along here",
            value="teacher",
            action="use read_from: logprobs with teacher.token_logprobs: 20",
        )
    elif chosen == "sampled":
        _check_temperature(recipe, section)


def _check_keys(section: CaptureSection, chosen: CaptureFormat) -> None:
    """A key of another format would do nothing."""
    plain = CaptureSection()
    for name, of in _KEYS_OF.items():
        value = getattr(section, name)
        if of != chosen and value != getattr(plain, name):
            raise RecipeError(
                f"capture.{name}",
                f"does nothing for format {chosen}",
                value=value,
                action=f"leave it out, or use format: {of}",
            )


def _check_logprobs(recipe: Recipe, chosen: CaptureFormat) -> None:
    teacher = recipe.teacher
    if teacher.token_logprobs == 0 or teacher.members or teacher.kind == "anthropic":
        shows = "shows no logprobs of tokens" if teacher.token_logprobs else "stores none"
        raise RecipeError(
            "teacher.token_logprobs",
            f"signals of a teacher whose weights are not here are its tokens' logprobs, and "
            f"{teacher.kind} {shows}",
            value=teacher.token_logprobs,
            action="set teacher.token_logprobs: 20 where the teacher is one that gives them, or "
            "train.alpha: 0 and signals: live",
        )
    if chosen != "top_k":
        raise RecipeError(
            "capture.format",
            "logprobs that came with the answers are the likeliest tokens and no more",
            value=chosen,
            action="use format: top_k, or auto",
        )


def _check_temperature(recipe: Recipe, section: CaptureSection) -> None:
    drawn, wanted = section.distillation_temperature, recipe.train.distillation_temperature
    if recipe.train.signals == "cache" and drawn is not None and drawn != wanted:
        raise RecipeError(
            "capture.distillation_temperature",
            f"targets drawn at T = {drawn:g} cannot stand for train.distillation_temperature: "
            f"{wanted:g}",
            value=drawn,
            action="set both alike, or leave it out",
        )
