"""What can be known of a training run before anything is paid for. Imports no torch.

Called when a run is planned: a recipe whose training would fail after the teacher was asked is
refused before. Knows the recipe only.
"""

from __future__ import annotations

from stillhouse.core.divergence_names import DEFAULT_BETA
from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_readers import OWN
from stillhouse.models.divergence_kind import divergence_of, infinite_at_zero
from stillhouse.train.planning_selective import check_selective
from stillhouse.train.planning_signals import check_signals
from stillhouse.train.planning_tags import check_tags
from stillhouse.train.planning_terms import check_terms


def check_recipe(recipe: Recipe) -> None:
    """Refuse soft targets that the recipe's teacher cannot give, a divergence that means nothing,
    and a twin of nothing.

    Raises:
        RecipeError: names the key and the two ways out.
    """
    check_tags(recipe)
    _check_divergence(recipe)
    _check_on_policy(recipe)
    check_selective(recipe)
    _check_readers(recipe)
    _check_packing(recipe)
    _check_distributed(recipe)
    check_signals(recipe)
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
    live = recipe.train.teachers is None and recipe.train.signals == "live"
    if live and not recipe.teacher.trainable:
        raise RecipeError(
            "train.alpha",
            f"soft targets for text need the teacher's logits, which {recipe.teacher.kind} "
            "does not give",
            value=recipe.train.alpha,
            action="set train.alpha: 0 (fine-tuning on the teacher's answers), name models that "
            "can read along in train.teachers, or, where it gives logprobs, set "
            "teacher.token_logprobs: 20 and train.signals: cache",
        )
    readers = recipe.train.teachers
    if readers is not None and readers.tokenizers == "universal":
        return
    if recipe.student.vocabulary != "full" and readers is not None:
        if any(not member.local for member in readers.members):
            raise RecipeError(
                "student.vocabulary",
                "a server's prompt logprobs are over its whole vocabulary",
                value=recipe.student.vocabulary,
                action="set vocabulary: full, or name local teachers alone",
            )


def _check_divergence(recipe: Recipe) -> None:
    """Refuse a beta that nothing reads or that makes the divergence 0, and votes under a divergence
    that a class without a vote makes infinite."""
    kind, beta = recipe.train.divergence, recipe.train.divergence_beta
    if beta is not None and kind not in DEFAULT_BETA:
        raise RecipeError(
            "train.divergence_beta",
            f"is not read by train.divergence: {kind}",
            value=beta,
            action=f"leave it out, or choose one of {', '.join(sorted(DEFAULT_BETA))}",
        )
    readers = recipe.train.teachers
    if kind != "forward_kl" and readers is not None and readers.tokenizers == "universal":
        raise RecipeError(
            "train.divergence",
            "beliefs over different tokens are compared by sorted probabilities alone",
            value=kind,
            action="leave divergence out, or use a teacher with the student's tokenizer",
        )
    if beta == 1 and kind.startswith("skew"):
        raise RecipeError(
            "train.divergence_beta",
            f"makes {kind} compare a distribution with itself",
            value=beta,
            action="use 0.1",
        )
    infinite = infinite_at_zero(divergence_of(kind, beta))
    votes = recipe.student.head == "label" and recipe.teacher.signals == "samples"
    if infinite and votes and recipe.train.alpha > 0:
        raise RecipeError(
            "train.divergence",
            "is infinite where a class got no vote, and this teacher's beliefs are votes",
            value=kind,
            action="use jsd or skew_reverse_kl with a beta between 0 and 1",
        )


def _check_on_policy(recipe: Recipe) -> None:
    """On-policy training compares beliefs at tokens that no answer holds: something reads along."""
    if recipe.train.on_policy is None:
        return
    if recipe.student.head == "label":
        raise RecipeError(
            "train.on_policy",
            "a label student writes no text to be trained on",
            action="leave on_policy out, or set student.head: text",
        )
    if recipe.train.alpha == 0:
        raise RecipeError(
            "train.on_policy",
            "with train.alpha: 0 nothing is learnt from what the student writes",
            action="set an alpha above 0 (1 is usual), or leave on_policy out",
        )


def _check_readers(recipe: Recipe) -> None:
    """Teachers that read along need something to read, and weights or a server."""
    readers = recipe.train.teachers
    if readers is None:
        return
    if recipe.student.head == "label":
        raise RecipeError(
            "train.teachers",
            "a label student learns from the beliefs in the examples, where no teacher reads along",
            action="combine teachers in teacher.members, or set student.head: text",
        )
    if recipe.train.alpha == 0:
        raise RecipeError(
            "train.teachers",
            "with train.alpha: 0 no teacher is read",
            action="set an alpha above 0, or leave teachers out",
        )
    if any(m.model == OWN for m in readers.members) and not recipe.teacher.trainable:
        raise RecipeError(
            "train.teachers",
            f"model: teacher is {recipe.teacher.kind}, whose weights are not here",
            action="name an hf:ID_OR_PATH, or an openai-compatible:NAME server that returns prompt "
            "logprobs",
        )
    policy = recipe.train.on_policy
    if policy is None:
        return
    if readers.tokenizers == "universal":
        raise RecipeError(
            "train.on_policy",
            "what a student writes has no positions paired with another tokenizer's",
            action="leave on_policy out, or use a teacher with the student's tokenizer",
        )
    if policy.teacher_fraction > 0 and not readers.members[0].local:
        raise RecipeError(
            "train.on_policy.teacher_fraction",
            "the first of train.teachers writes, and a server only reads along",
            value=policy.teacher_fraction,
            action="name a local teacher first, or set teacher_fraction: 0",
        )


def _check_distributed(recipe: Recipe) -> None:
    """What several processes cannot share, before anything is paid."""
    train = recipe.train
    section = train.distributed
    if section is None or section.world_size == 1:
        return
    world = section.world_size
    micro = train.micro_batch_size or max(1, train.batch_size // world)
    if train.batch_size % (micro * world):
        raise RecipeError(
            "train.batch_size",
            f"cannot be dealt out to {world} processes in micro-batches of {micro}",
            value=train.batch_size,
            action=f"use a multiple of {micro * world}",
        )
    problem = ""
    if section.strategy == "fsdp2" and train.terms is not None:
        problem = "train.terms are not trained with weights spread over processes"
    elif section.strategy == "fsdp2" and train.lora is not None:
        problem = "adapters are small enough for every process, and are not spread"
    if problem:
        raise RecipeError(
            "train.distributed.strategy", problem, value="fsdp2", action="use strategy: ddp"
        )
    if section.nodes > 1 and train.hard_label_twin:
        raise RecipeError(
            "train.hard_label_twin",
            "the other machines are started for one student",
            action="set hard_label_twin: false, or train on one machine",
        )


def _check_packing(recipe: Recipe) -> None:
    """Packed rows hold several examples: what reads rows one by one cannot use them."""
    train = recipe.train
    if not train.packing:
        return
    problem = action = None
    if recipe.student.head == "label":
        problem, action = "a label student reads one text a row", "leave packing out"
    elif train.on_policy is not None:
        problem, action = "on_policy writes row by row", "leave one of the two out"
    elif any(m.domains or not m.local for m in (train.teachers.members if train.teachers else ())):
        problem = "teachers with domains, and servers, read row by row"
        action = "leave packing out, or name local teachers for all examples"
    if problem is not None:
        raise RecipeError("train.packing", problem, action=action or "")


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
