"""What can be known of `train.terms` before anything is paid for. Imports no torch.

Knows the recipe only; which layers and heads there are is checked where the models are read.
"""

from __future__ import annotations

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_features import ContrastiveTerm, LayeredTerm, ResponseTerm, SampleTerm


def check_terms(recipe: Recipe) -> None:
    """Refuse terms whose teacher cannot be read, and balances of nothing.

    Raises:
        RecipeError: names the key and the way out.
    """
    train = recipe.train
    kinds = [term.kind for term in train.terms or ()]
    if kinds.count("response") > 1:
        raise RecipeError("train.terms", "response is listed twice", action="list it once")
    if train.balance != "fixed" and not train.insides:
        raise RecipeError(
            "train.balance",
            "there is only the response, and nothing to balance it with",
            value=train.balance,
            action="use fixed, or add train.terms",
        )
    layered = any(isinstance(term, LayeredTerm) for term in train.terms or ())
    if train.progressive is not None and not layered:
        raise RecipeError(
            "train.progressive",
            "no term compares layers, so there are none to learn one after another",
            action="add a hidden, attention, activation or relation term, or remove it",
        )
    if train.terms is not None:
        _response_is_one(recipe)
        _something_is_on(recipe)
    if train.insides:
        _teacher_can_be_read(recipe)
        _samples_meet(recipe)


def _response_is_one(recipe: Recipe) -> None:
    """Weights and schedules are of one response; other objectives have several parts."""
    train = recipe.train
    for key, beside in (
        ("train.on_policy", train.on_policy is not None),
        (
            "train.teachers with tokenizers: universal",
            train.teachers is not None and train.teachers.tokenizers == "universal",
        ),
    ):
        if beside:
            raise RecipeError(
                "train.terms", f"are not weighed beside {key}", action="leave one of the two out"
            )


def _something_is_on(recipe: Recipe) -> None:
    """A run in which every weight stays 0 trains nothing. Only layers are compared in stages, so
    the other terms count from their end on."""
    train = recipe.train
    terms = train.terms or ()
    if not any(isinstance(term, ResponseTerm) for term in terms):
        return  # it is there at weight 1
    stages = 0.0 if train.progressive is None else train.progressive.until
    for term in terms:
        since = 0.0 if isinstance(term, LayeredTerm) else stages
        if term.schedule is None or term.schedule.ever_on(since):
            return
    raise RecipeError(
        "train.terms",
        "their schedules are 0 throughout, so nothing would be learnt",
        action="give one of them a factor above 0, or leave its schedule out",
    )


def _teacher_can_be_read(recipe: Recipe) -> None:
    teacher, train = recipe.teacher, recipe.train
    for key, beside in (
        ("train.packing", train.packing),
        ("train.on_policy", train.on_policy),
        ("train.teachers", train.teachers),
        ("train.signals: cache", train.signals == "cache"),
    ):
        if beside:
            raise RecipeError(
                "train.terms",
                f"insides are compared text by text, on the data, with one teacher, not with {key}",
                action="leave one of the two out",
            )
    if teacher.members or not teacher.trainable:
        raise RecipeError(
            "train.terms",
            f"insides are read from one local teacher (hf: or embedded), not from {teacher.kind}",
            action="remove the terms, or use such a teacher",
        )
    if recipe.student.head == "text" and recipe.student.vocabulary != "full":
        raise RecipeError(
            "train.terms",
            "insides are compared token by token, which for text needs the whole vocabulary",
            value=recipe.student.vocabulary,
            action="use student.vocabulary: full, or remove the terms",
        )


def _samples_meet(recipe: Recipe) -> None:
    train = recipe.train
    world = 1 if train.distributed is None else train.distributed.world_size
    together = train.micro_batch_size or max(1, train.batch_size // world)
    for number, term in enumerate(train.terms or ()):
        if not isinstance(term, SampleTerm):
            continue
        least = 3 if term.kind == "rkd_angle" else 2
        if together < least:
            raise RecipeError(
                f"train.terms.{number}",
                f"{term.kind} compares the texts of a forward pass with each other, and needs "
                f"{least} of them",
                value=together,
                action="use a larger batch_size or micro_batch_size",
            )
        if term.pool == "first" and recipe.student.head == "text":
            raise RecipeError(
                f"train.terms.{number}.pool",
                "the first token of a text student sees no other, so all texts would be alike",
                value=term.pool,
                action="use mean or last",
            )
        if isinstance(term, ContrastiveTerm) and term.negatives == "other_labels":
            if recipe.student.head != "label":
                raise RecipeError(
                    f"train.terms.{number}.negatives",
                    "texts of head text have no labels",
                    value=term.negatives,
                    action="use others",
                )
