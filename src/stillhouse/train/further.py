"""Train a trained student further, held to a shape: on a grid of integers, or thinned out.

The student is opened from its folder, head and all, given its shape, trained as any student is,
and let out of the shape again: what is saved is a plain float model. Three looks at the held-out
set say what the shape cost and what training won back: the student as it was, shaped and not yet
trained, and at the end. Training that made it no better is thrown away. Knows shapes by their
calls; `prune` and `quantize` make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import TrainerCallback

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.train.heads import WAYS, classes_of
from stillhouse.train.layers import depth
from stillhouse.train.students import Student, StudentPlan
from stillhouse.train.trainer import DistillationTrainer


class Shaping(Protocol):
    """What a student is held to while it is trained."""

    def shape(self, student: Student, texts: Sequence[str]) -> Student:
        """Bring it into shape; `texts` are what it reads. The model may be used up."""

    def callbacks(self, model: Any) -> Sequence[TrainerCallback]:
        """What holds it there, step by step."""

    def release(self, model: Any) -> None:
        """Make it a plain float model again, in place."""

    def as_json(self) -> dict[str, object]:
        """What is asked of it, for the report."""


class Begun(NamedTuple):
    """What is known before the first step, and the shaped student's weights, on the CPU."""

    facts: dict[str, Any]
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Further:
    """A trained student's folder, and the shape it is brought into."""

    folder: Path
    shaping: Shaping

    def begin(self, trainer: DistillationTrainer, recipe: Recipe) -> Begun:
        """Look at the student as it was, and as it is now, before the first step."""
        model: Any = open_trained(self.folder, recipe).model
        before = held_out_means(trainer, model.to(trainer.args.device))
        looks = {"before": before, "shaped": held_out_means(trainer)}
        held: Any = trainer.model
        weights = {name: w.detach().cpu().clone() for name, w in held.state_dict().items()}
        return Begun({**self.shaping.as_json(), "held_out": looks}, weights)

    def end(self, trainer: DistillationTrainer, begun: Begun, measure: str) -> dict[str, Any]:
        """Look at the trained student in its shape, and let it out; where training made `measure`
        (divergence, cross_entropy or disagreement) no lower, the student is what it was before the
        first step."""
        looks = begun.facts["held_out"] | {"after": held_out_means(trainer)}
        better = _cost(looks["after"], measure) < _cost(looks["shaped"], measure)
        model: Any = trainer.model
        if not better:
            model.load_state_dict(begun.weights)
            looks["after"] = looks["shaped"]
        self.shaping.release(model)
        return begun.facts | {"held_out": looks, "training_helped": better}


def open_trained(folder: Path, recipe: Recipe) -> Student:
    """A student that was trained, as it lies in its folder, on the CPU in float32.

    Raises:
        UserError: it cannot be loaded, or is a classifier of other labels.
    """
    section, task = recipe.student, recipe.task
    loaded = WAYS[section.head].trained(str(folder), device="cpu", dtype=torch.float32)
    model, tokenizer = loaded.model, loaded.tokenizer
    wanted = classes_of(section.head, task)
    if wanted:
        held = tuple(str(model.config.id2label[n]) for n in range(model.config.num_labels))
        if held != wanted:
            raise UserError(
                str(folder),
                f"is a classifier of {list(held)}, the task's labels are {list(wanted)}",
                action="give the student of this recipe",
            )
    layers = depth(model)
    return Student(
        model,
        tokenizer,
        section.head,
        StudentPlan(
            source=section.source,
            revision=loaded.revision,
            layers_before=layers,
            layers_kept=tuple(range(layers)),
            vocabulary_before=int(model.config.vocab_size),
            vocabulary=int(model.config.vocab_size),
            max_tokens=min(section.max_tokens, int(tokenizer.model_max_length)),
            parameters_before=loaded.parameters,
            parameters=loaded.parameters,
        ),
    )


def held_out_means(trainer: DistillationTrainer, model: Any = None) -> dict[str, float]:
    """Divergence and cross-entropy (nats) and agreement (share) per held-out target; of the student
    as it now computes, or of another model."""
    total = torch.zeros(4, dtype=torch.float64)
    for sums in trainer.measured(model=model):
        total += torch.stack([part.double().cpu() for part in sums[:4] if part is not None])
    divergence, cross_entropy, agreed, items = total.tolist()
    return {
        "divergence": divergence / max(1.0, items),
        "cross_entropy": cross_entropy / max(1.0, items),
        "agreement": agreed / max(1.0, items),
    }


def _cost(look: dict[str, float], measure: str) -> float:
    return 1.0 - look["agreement"] if measure == "disagreement" else look[measure]
