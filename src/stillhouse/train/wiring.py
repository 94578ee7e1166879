"""From a recipe to the objective its student is trained under.

The one place that knows both the recipe's `train` section and the kinds of readers, teacher sources
and terms there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_on_policy import OnPolicySection
from stillhouse.models.chat import end_ids
from stillhouse.models.loading import load_causal_lm
from stillhouse.train.cached_teacher import CachedSignals, CachedTeacher
from stillhouse.train.objectives import (
    Objective,
    TermsObjective,
    Weighted,
    check_one_tokenizer,
    label_objective,
    text_objective,
)
from stillhouse.train.on_policy import OnPolicy, Writing
from stillhouse.train.outputs import CausalReader, LabelReader
from stillhouse.train.students import Student
from stillhouse.train.terms import Response


class Reading(NamedTuple):
    """How the teacher is read: alpha of this student, its weights as `models.loading` reads
    sources, and on what."""

    alpha: float
    teacher: str
    device: torch.device
    bf16: bool
    signals: CachedSignals | None = None  # in the teacher's place


def build_objective(recipe: Recipe, student: Student, reading: Reading) -> Objective:
    """The objective; a text student with soft targets has its teacher read along.

    Raises:
        UserError: student and teacher do not share what the objective compares.
    """
    temperature = recipe.train.distillation_temperature
    if reading.signals is not None:
        return _from_cache(student, reading, temperature)
    if student.head == "label":
        return label_objective(reading.alpha, temperature)
    if reading.alpha == 0:
        return text_objective(reading.alpha, temperature)
    teacher = load_causal_lm(
        reading.teacher,
        device=str(reading.device),
        dtype=torch.bfloat16 if reading.bf16 else torch.float32,
    )
    check_one_tokenizer(student.tokenizer, teacher.tokenizer)
    given = text_objective(reading.alpha, temperature, teacher.model)
    if recipe.train.on_policy is None:
        return given
    return _on_policy(recipe.train.on_policy, recipe, student, teacher.model, given)


def _from_cache(student: Student, reading: Reading, temperature: float) -> Objective:
    """The same terms, their teacher a cache: no teacher is loaded."""
    assert reading.signals is not None
    reader = LabelReader() if student.head == "label" else CausalReader()
    terms = (Weighted(Response(reading.alpha, temperature)),)
    return TermsObjective(reader, terms, CachedTeacher(reading.signals))


def _on_policy(
    section: OnPolicySection, recipe: Recipe, student: Student, teacher: Any, given: Objective
) -> Objective:
    """`given` on the data, and its soft targets alone on what the student writes."""
    sampled = text_objective(1.0, recipe.train.distillation_temperature, teacher)
    tokenizer = student.tokenizer
    writing = Writing(
        section,
        recipe.seed,
        end_ids(tokenizer)[:1],  # what the data's completions end with
        int(tokenizer.pad_token_id),
        student.plan.max_tokens,
    )
    return OnPolicy(given, sampled, teacher, writing)
