"""From a recipe to the objective its student is trained under.

The one place that knows both the recipe's `train` section and the kinds of readers, teacher sources
and terms there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from stillhouse.core.recipe import Recipe
from stillhouse.models.loading import load_causal_lm
from stillhouse.train.features_wiring import Learned, Reads, with_terms
from stillhouse.train.objectives import (
    Objective,
    TermsObjective,
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
    learned: Learned

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the teacher's weights."""
        return torch.bfloat16 if self.bf16 else torch.float32


def build_objective(recipe: Recipe, student: Student, reading: Reading) -> Objective:
    """The objective; a text student with soft targets, and a student whose insides are compared,
    has its teacher read along.

    Raises:
        UserError: student and teacher do not share what the objective compares.
    """
    base = _response(recipe, student, reading)
    if recipe.train.terms is None:
        return base
    reads = Reads(reading.teacher, reading.device, reading.dtype)
    return with_terms(base, recipe, student, reading.learned, reads)


def _response(recipe: Recipe, student: Student, reading: Reading) -> TermsObjective:
    """The response alone."""
    temperature = recipe.train.distillation_temperature
    if student.head == "label":
        return label_objective(reading.alpha, temperature)
    if reading.alpha == 0:
        return text_objective(reading.alpha, temperature)
    teacher = load_causal_lm(
        reading.teacher,
        device=str(reading.device),
        dtype=reading.dtype,
    )
    check_one_tokenizer(student.tokenizer, teacher.tokenizer)
    return text_objective(reading.alpha, temperature, teacher.model)
