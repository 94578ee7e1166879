"""Find before the teacher is paid what would stop the training after it.

Looks at the student's folder, layers, adapters and device without loading weights. Knows the recipe
and model configurations; trains nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_readers import OWN
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.loading import locate, pick_device
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.cut_shapes import Shape
from stillhouse.train.cut_student import GUESSED_ROWS, plan_student
from stillhouse.train.features_layers import check_layers
from stillhouse.train.heads import classes_of
from stillhouse.train.layers import cut_layers, depth
from stillhouse.train.lora import target_layers
from stillhouse.train.objectives import check_one_tokenizer
from stillhouse.train.planning_signals import reads_logprobs
from stillhouse.train.schedule import uses_bf16
from stillhouse.train.students import student_source, teacher_source
from stillhouse.train.vocabulary import check_trims, trim_tokenizer


class PlannedCut(NamedTuple):
    """How a student of a size will be cut: for people, and as a shape."""

    lines: tuple[str, ...]
    after: Shape


def planned_cut(recipe: Recipe) -> PlannedCut:
    """How a student of a size will be cut, from its source's config alone.

    Raises:
        UserError: no such source, one that cannot be cut, or a size that no cut meets.
    """
    folder = str(locate(student_source(recipe, None)).folder)
    with quiet_transformers():
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    plan = plan_student(config, recipe.student, len(classes_of(recipe.student.head, recipe.task)))
    lines = tuple(plan.lines())
    if recipe.student.vocabulary == "task":
        lines += (
            f"this takes the task to use {min(GUESSED_ROWS, plan.before.vocabulary):,} rows of the "
            "vocabulary; they are counted, and the cut planned again, when its texts are there",
        )
    return PlannedCut(lines, plan.after)


def check_student(recipe: Recipe) -> None:
    """Refuse a student that could not be built or trained on this machine.

    Raises:
        UserError: no such model, no tokenizer, a vocabulary that cannot be trimmed or would lose a
            label, layers or adapter targets it does not have, terms
            over layers that it or its teacher does not have, a device
            or precision that this machine does not have.
    """
    uses_bf16(recipe.train.precision, pick_device(recipe.train.device))
    source = student_source(recipe, None)
    folder = str(locate(source).folder)
    with quiet_transformers():
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    own = _tokenizer("student.from", source)
    if recipe.student.vocabulary != "full":
        check_trims(own)
        _check_labels(recipe, own)
    model = _shapes(config)
    if recipe.student.head == "tags":
        _check_tagger(source, config, own)
    for teacher in _readers(recipe):
        other = _tokenizer("train.teachers", teacher)
        if recipe.train.teachers is None or recipe.train.teachers.tokenizers == "same":
            check_one_tokenizer(own, other)
    if recipe.student.size is not None:
        plan_student(config, recipe.student, len(classes_of(recipe.student.head, recipe.task)))
    if recipe.student.layers is not None:
        cut_layers(model, recipe.student.layers)
    if recipe.train.lora is not None:
        target_layers(model, recipe.train.lora)
    if recipe.train.insides and recipe.student.size is None:  # else its depth is not known yet
        there = str(locate(teacher_source(recipe)).folder)
        with quiet_transformers():
            known = AutoConfig.from_pretrained(there, local_files_only=True)
        check_layers(recipe.train.terms or (), depth(model), depth(_shapes(known)))


def _check_tagger(source: str, config: Any, own: PreTrainedTokenizerBase) -> None:
    """Refuse a source that sees no following words, or whose tokens have no place in the text."""
    model_type = str(config.model_type)
    writes = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    causal = writes and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    if (
        causal
        or getattr(config, "is_decoder", False)
        or type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    ):
        raise UserError(
            "student.from",
            f"a tag student is an encoder that tags tokens, and {source} is a {model_type}",
            action="use embedded-encoder, or an encoder (BERT, RoBERTa, DeBERTa, ELECTRA)",
        )
    if not own.is_fast:
        raise UserError(
            f"student.from {source}",
            "its tokenizer does not say where in the text a token stands",
            action="give a source with a tokenizer.json",
        )


def _check_labels(recipe: Recipe, own: PreTrainedTokenizerBase) -> None:
    """Refuse a vocabulary that cannot hold the labels which a text student has to write: what its
    texts need comes on top."""
    if recipe.student.head != "text" or not isinstance(recipe.task, ClassificationTask):
        return
    wanted = recipe.student.vocabulary
    labels = recipe.task.labels
    trim_tokenizer(own, labels, wanted if isinstance(wanted, int) else None, labels=labels)


def _readers(recipe: Recipe) -> list[str]:
    """The local models that read along, as `models.loading` reads sources."""
    train = recipe.train
    if train.teachers is not None:
        local = [member.model for member in train.teachers.members if member.local]
        return [teacher_source(recipe) if model == OWN else model for model in local]
    stored = train.signals == "cache" and reads_logprobs(recipe)
    if recipe.student.head != "text" or train.alpha == 0 or stored:
        return []
    return [teacher_source(recipe)] if recipe.teacher.trainable else []


def _tokenizer(field: str, source: str) -> PreTrainedTokenizerBase:
    folder = str(locate(source).folder)
    with quiet_transformers():
        try:
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{field} {source}",
                f"its tokenizer cannot be loaded: {error}",
                action="give a folder with tokenizer.json",
            ) from None
    return loaded


def _shapes(config: Any) -> Any:
    """A model of this configuration without its weights."""
    builder: Any = AutoModel
    with quiet_transformers(), torch.device("meta"):
        return builder.from_config(config)
