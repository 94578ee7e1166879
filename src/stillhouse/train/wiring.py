"""From a recipe to the objective its student is trained under.

The one place that knows both the recipe's `train` section and the kinds of readers, teacher sources
and terms there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.divergence_kind import Divergence, divergence_of
from stillhouse.models.loading import load_causal_lm
from stillhouse.train.objectives import (
    Objective,
    check_one_tokenizer,
    label_objective,
    text_objective,
)
from stillhouse.train.students import Student


class Reading(NamedTuple):
    """How the teacher is read: alpha of this student, its weights as `models.loading` reads
    sources, and on what."""

    alpha: float
    teacher: str
    device: torch.device
    bf16: bool


def divergence_in(train: TrainSection) -> Divergence:
    """What the soft targets of a recipe minimise."""
    return divergence_of(train.divergence, train.divergence_beta)


def build_objective(recipe: Recipe, student: Student, reading: Reading) -> Objective:
    """The objective; a text student with soft targets has its teacher read along.

    Raises:
        UserError: student and teacher do not share what the objective compares.
    """
    temperature = recipe.train.distillation_temperature
    divergence = divergence_in(recipe.train)
    if student.head == "label":
        return label_objective(reading.alpha, temperature, divergence)
    if reading.alpha == 0:
        return text_objective(reading.alpha, temperature)
    teacher = load_causal_lm(
        reading.teacher,
        device=str(reading.device),
        dtype=torch.bfloat16 if reading.bf16 else torch.float32,
    )
    check_one_tokenizer(student.tokenizer, teacher.tokenizer)
    return text_objective(reading.alpha, temperature, teacher.model, divergence)
