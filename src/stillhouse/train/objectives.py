"""What a training step minimises and what the held-out set measures, for both heads.

Objectives turn a padded batch into student logits at valid positions and hand them, with the
teacher's signal, to `models.divergence`; the arithmetic lives there. They know batches and models;
they know no optimizer and no file.

Legend: B batch, T tokens, N valid positions, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.records import Example
from stillhouse.models.divergence import (
    IGNORE_INDEX,
    cross_entropy,
    divergence,
    soft_target_loss,
)
from stillhouse.models.signals import DenseSignal, accepts, live_token_signal

Batch = Mapping[str, Tensor]


class HeldOutSums(NamedTuple):
    """Sums over valid targets (samples, or completion tokens); divide by `items` once.

    `divergence` is KL(teacher || student) at T = 1, in nats, where the teacher's belief is known,
    and otherwise the KL from its answer as a one-point distribution, which is `cross_entropy`.
    `agreed` counts targets where the student's first choice is the teacher's answer.
    """

    divergence: Tensor
    cross_entropy: Tensor
    agreed: Tensor
    items: Tensor


class Objective(Protocol):
    """alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * CE (Hinton et al. 2015)."""

    @property
    def alpha(self) -> float:
        """Weight of the soft-target term."""

    def loss(self, model: Any, batch: Batch, num_items: Tensor | int) -> Tensor:
        """Loss of a micro-batch: its sum over valid targets, divided by `num_items`, the number of
        valid targets of the whole optimizer step. T^2 is applied in `soft_target_loss`."""

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """What the held-out set measures; without gradient."""


@dataclass(frozen=True, slots=True)
class LabelObjective:
    """For a classifier: one target a sample, the teacher's belief over C classes beside it."""

    alpha: float
    distillation_temperature: float

    def loss(self, model: Any, batch: Batch, num_items: Tensor | int) -> Tensor:
        """See `Objective`."""
        signal = DenseSignal(batch["teacher_logits"]) if self.alpha > 0 else None
        return soft_target_loss(
            _class_logits(model, batch),
            batch["labels"],
            signal,
            alpha=self.alpha,
            distillation_temperature=self.distillation_temperature,
            num_items=num_items,
        ).loss

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """See `Objective`."""
        beliefs = batch.get("teacher_logits")
        signal = None if beliefs is None else DenseSignal(beliefs)
        return _sums(_class_logits(model, batch), batch["labels"], signal)


@dataclass(frozen=True, slots=True)
class TextObjective:
    """For a language model: completion tokens are the targets; the teacher, if any, reads along.

    Models of one tokenizer may pad their heads to different widths (152,064 rows against 151,936
    for 151,665 tokens, say). Both are then cut to the smaller, and each softmax is over the shared
    ids alone: what is cut off belongs to no token.
    """

    alpha: float
    distillation_temperature: float
    teacher: Any = None  # a causal language model with the student's tokenizer, in eval mode

    def loss(self, model: Any, batch: Batch, num_items: Tensor | int) -> Tensor:
        """See `Objective`."""
        positions, targets = next_tokens(batch["labels"])
        signal = self._signal(batch, positions) if self.alpha > 0 else None
        shared = over_shared_ids(token_logits(model, batch, positions), signal)
        return soft_target_loss(
            shared.student_logits,
            targets,
            shared.signal,
            alpha=self.alpha,
            distillation_temperature=self.distillation_temperature,
            num_items=num_items,
        ).loss

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """See `Objective`."""
        positions, targets = next_tokens(batch["labels"])
        signal = self._signal(batch, positions)
        shared = over_shared_ids(token_logits(model, batch, positions), signal)
        return _sums(shared.student_logits, targets, shared.signal)

    def _signal(self, batch: Batch, positions: Tensor) -> DenseSignal | None:
        if self.teacher is None:
            return None
        return live_token_signal(
            self.teacher, batch["input_ids"], batch["attention_mask"], positions
        )


class Shared(NamedTuple):
    """Student and teacher over the same ids."""

    student_logits: Tensor  # [N, V]
    signal: DenseSignal | None  # [N, V]


def over_shared_ids(student_logits: Tensor, signal: DenseSignal | None) -> Shared:
    """Cut the wider of the two heads to the ids that both have."""
    if signal is None or signal.logits.shape[-1] == student_logits.shape[-1]:
        return Shared(student_logits, signal)
    width = min(signal.logits.shape[-1], student_logits.shape[-1])
    return Shared(student_logits[..., :width], DenseSignal(signal.logits[..., :width]))


class NextTokens(NamedTuple):
    """Where a token of the completion is predicted, and which."""

    positions: Tensor  # [B, T] bool
    targets: Tensor  # [N] int64, row-major


def next_tokens(labels: Tensor) -> NextTokens:
    """Position t predicts token t + 1; `labels` [B, T] hold `IGNORE_INDEX` outside completions."""
    ahead = torch.full_like(labels, IGNORE_INDEX)
    ahead[:, :-1] = labels[:, 1:]
    positions = ahead != IGNORE_INDEX
    return NextTokens(positions, ahead[positions])


def token_logits(model: Any, batch: Batch, positions: Tensor) -> Tensor:
    """The student's logits [N, V] at `positions` [B, T], rows in row-major order.

    The head is a fifth of a 135M model's work: it is evaluated only for columns that hold a
    completion token, where the model can be asked for that. No mask is passed: padding is on the
    right and attention is causal, so no real token sees it, and the faster kernel is taken.
    """
    columns = positions.any(0).nonzero().squeeze(-1)
    reads = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
    asked = {reads: batch[reads], "use_cache": False}
    inner = getattr(model, "module", model)  # under data-parallel wrapping
    logits: Tensor
    if "logits_to_keep" in accepts(inner):
        logits = model(**asked, logits_to_keep=columns).logits
    else:
        logits = model(**asked).logits[:, columns]
    return logits[positions[:, columns]]


def _class_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [B, C]."""
    logits: Tensor = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    return logits


def _sums(logits: Tensor, targets: Tensor, signal: DenseSignal | None) -> HeldOutSums:
    hard = cross_entropy(logits, targets)
    soft = hard.total if signal is None else divergence(signal, logits).total
    agreed = (logits.argmax(-1) == targets).sum()
    return HeldOutSums(soft, hard.total, agreed, hard.items)


def check_beliefs(examples: Sequence[Example], alpha: float) -> None:
    """Soft targets of a `label` student need the teacher's belief for every example.

    Raises:
        UserError: some have none and alpha is not 0.
    """
    missing = sum(example.label_probabilities is None for example in examples)
    if alpha > 0 and missing:
        raise UserError(
            "train.alpha",
            f"soft targets need class probabilities, and {missing:,} of {len(examples):,} examples "
            "have none",
            value=alpha,
            action="use teacher.signals: auto (a white-box teacher or one with logprobs) or "
            "samples, or set train.alpha: 0",
        )


def check_one_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Token logits can only be compared over one vocabulary.

    Raises:
        UserError: the two tokenizers differ.
    """
    if student.get_vocab() != teacher.get_vocab():
        raise UserError(
            "train.alpha",
            "soft targets for text need a student with its teacher's tokenizer "
            f"({len(student):,} tokens against {len(teacher):,})",
            action="set train.alpha: 0, or student.from: teacher with vocabulary: full",
        )
