"""From a recipe to the objective its student is trained under.

The one place that knows both the recipe's `train` section and the kinds of readers, teacher sources
and terms there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_on_policy import OnPolicySection
from stillhouse.core.recipe_readers import ReaderSection, ReadersSection
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.chat import end_ids
from stillhouse.models.divergence_kind import Divergence, divergence_of
from stillhouse.train.cached_teacher import CachedTeacher
from stillhouse.train.features_wiring import Reads, with_terms
from stillhouse.train.heads import WAYS
from stillhouse.train.objectives import (
    Objective,
    TermsObjective,
    Weighted,
    label_objective,
    tags_objective,
    text_objective,
)
from stillhouse.train.on_policy import OnPolicy, Writing
from stillhouse.train.other_tokenizer import UniversalLogits
from stillhouse.train.outputs import CausalReader
from stillhouse.train.reading import Opened, Reading, open_reader, open_readers, open_reference
from stillhouse.train.selective import SelectedResponse
from stillhouse.train.students import Student
from stillhouse.train.terms import Response


def divergence_in(train: TrainSection) -> Divergence:
    """What the soft targets of a recipe minimise."""
    return divergence_of(train.divergence, train.divergence_beta)


def build_objective(recipe: Recipe, student: Student, reading: Reading) -> Objective:
    """The objective; a text student with soft targets, and a student whose insides are compared,
    has its teachers read along.

    Raises:
        UserError: student and teacher do not share what the objective compares.
    """
    base = _response(recipe, student, reading)
    if recipe.train.terms is None:
        return base
    assert isinstance(base, TermsObjective), "planning refuses terms beside what writes"
    reads = Reads(reading.teacher, reading.device, reading.dtype)
    return with_terms(base, recipe, student, reading.learned, reads)


def _response(recipe: Recipe, student: Student, reading: Reading) -> Objective:
    """The response alone."""
    temperature = recipe.train.distillation_temperature
    divergence = divergence_in(recipe.train)
    if reading.signals is not None:
        return _from_cache(student, reading, Response(reading.alpha, temperature, divergence))
    if student.head == "label":
        return label_objective(reading.alpha, temperature, divergence)
    if student.head == "tags":
        return tags_objective()
    if reading.alpha == 0:
        return text_objective(reading.alpha, temperature)
    readers = recipe.train.teachers or ReadersSection(members=(ReaderSection(),))
    if readers.tokenizers == "universal":
        return _universal(readers.members[0], temperature, reading)
    opened = open_readers(readers, student, reading, packing=recipe.train.packing)
    objective = _reading_along(recipe, student, reading, opened)
    given = objective(reading.alpha)
    if recipe.train.on_policy is None:
        return given
    # What the student writes is no truth to be learnt: its soft targets alone.
    return _on_policy(
        recipe.train.on_policy, recipe, student, opened, given=given, sampled=objective(1.0)
    )


def _reading_along(
    recipe: Recipe, student: Student, reading: Reading, opened: Opened
) -> Callable[[float], Objective]:
    """Objectives by alpha: over all targets, or over those that a reference says can be learnt."""
    temperature, divergence = recipe.train.distillation_temperature, divergence_in(recipe.train)
    section = recipe.train.selective
    if section is None or reading.reference is None:
        return lambda alpha: text_objective(alpha, temperature, opened.source, divergence)
    model: Any = open_reference(reading, student).model
    keep = section.keep

    def selected(alpha: float) -> Objective:
        term = SelectedResponse(alpha, model, keep, temperature, divergence)
        return TermsObjective(CausalReader(), (Weighted(term),), opened.source)

    return selected


def _universal(member: ReaderSection, temperature: float, reading: Reading) -> Objective:
    """alpha * L1 between sorted beliefs + (1 - alpha) * CE, for a teacher of other tokens."""
    teacher: Any = open_reader(member, reading).model
    terms = [Weighted(UniversalLogits(teacher, temperature), reading.alpha)]
    if reading.alpha < 1.0:
        terms.append(Weighted(Response(0.0), 1.0 - reading.alpha))
    return TermsObjective(CausalReader(), terms)


def _from_cache(student: Student, reading: Reading, response: Response) -> Objective:
    """The same term, its teacher a cache: no teacher is loaded."""
    assert reading.signals is not None
    reader = WAYS[student.head].reader
    return TermsObjective(reader, (Weighted(response),), CachedTeacher(reading.signals))


def _on_policy(
    section: OnPolicySection,
    recipe: Recipe,
    student: Student,
    opened: Opened,
    *,
    given: Objective,
    sampled: Objective,
) -> Objective:
    """`given` on the data and on what the teacher writes, `sampled` on what the student does."""
    tokenizer = student.tokenizer
    writing = Writing(
        section,
        recipe.seed,
        end_ids(tokenizer)[:1],  # what the data's completions end with
        int(tokenizer.pad_token_id),
        student.plan.max_tokens,
        opened.ids,
    )
    return OnPolicy(given, sampled, opened.writer, writing)
