"""What terms of an objective read of a model: logits at the targets, hidden states, attention.

A reader runs one forward pass over a batch and hands out what the terms asked for, the same for a
student and for a teacher that reads along. Knows models and batches; knows no loss.

Legend: B batch, T tokens, T' kept columns, N targets, V vocabulary or classes, H hidden, L layers,
A attention heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.head import Head, head_input, head_of, without_head
from stillhouse.models.signals import accepts
from stillhouse.train.insides import Caught, Projections, insides_wanted, watch

Batch = Mapping[str, Tensor]
POSITIONS: Final = "position_ids"  # of a batch with several examples to a row [B, T]
EXAMPLES: Final = "examples"  # of such a batch: their number
ALIGNED: Final = "aligned"  # of a batch: paired rows of targets [P, 2], student and teacher


class StepAt(NamedTuple):
    """Where training stands: optimizer steps done, the micro-batch within the step, the rank."""

    number: int
    micro: int = 0
    rank: int = 0


class Counts(NamedTuple):
    """What sums are divided by, each taken over a whole optimizer step: all micro-batches, all
    ranks. Numbers or scalar tensors."""

    targets: Tensor | float  # valid targets: samples of a classifier, completion tokens of a text
    tokens: Tensor | float  # tokens that are not padding
    samples: Tensor | float  # rows
    aligned: Tensor | float = 0  # pairs of positions, of a teacher with another tokenizer

    def of(self, unit: str) -> Tensor | float:
        """The count called `unit`, at least 1: a sum over nothing is 0, and so is its mean."""
        value: Tensor | float = getattr(self, unit)
        return value.clamp_min(1) if isinstance(value, Tensor) else max(value, 1)


def count(batch: Batch) -> Tensor:
    """`Counts` of one batch, as a tensor [4]. A row without targets is not there: it fills up."""
    labels = batch["labels"]
    targets = (labels if labels.ndim == 1 else labels[:, 1:]).ne(IGNORE_INDEX).sum()
    there = labels != IGNORE_INDEX if labels.ndim == 1 else (labels != IGNORE_INDEX).any(-1)
    mask = batch.get("attention_mask")
    samples = batch[EXAMPLES].to(targets) if EXAMPLES in batch else there.sum()
    pairs = targets.new_tensor(len(batch[ALIGNED]) if ALIGNED in batch else 0)
    return torch.stack([targets, samples if mask is None else mask[there].sum(), samples, pairs])


@dataclass(frozen=True, slots=True)
class Needs:
    """What a term reads."""

    logits: bool = False  # at the targets
    last_hidden: bool = False  # at the targets, with the head; logits where there is no plain one
    hidden_states: bool = False  # of all layers, all tokens
    attentions: bool = False  # probabilities of all layers
    queries_keys_values: bool = False  # projections of all layers

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.logits or other.logits,
            self.last_hidden or other.last_hidden,
            self.hidden_states or other.hidden_states,
            self.attentions or other.attentions,
            self.queries_keys_values or other.queries_keys_values,
        )

    @property
    def anything(self) -> bool:
        """Whether a forward pass is needed at all."""
        return self != Needs()

    @property
    def insides(self) -> Needs:
        """Without what belongs to the head."""
        return replace(self, logits=False, last_hidden=False)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one model said of one batch; `None` where nobody asked."""

    logits: Tensor | None = None  # [N, V], rows in row-major order of the targets
    last_hidden: Tensor | None = None  # [N, H]
    head: Head | None = None
    hidden_states: tuple[Tensor, ...] | None = None  # L + 1 of [B, T, H], embeddings first
    attentions: tuple[Tensor, ...] | None = None  # L of [B, A, T, T]
    projections: tuple[Projections, ...] | None = None  # L
    mask: Tensor | None = None  # [B, T] bool, real tokens; None: all are

    def class_logits(self) -> Tensor:
        """Logits [N, V], through the head where only hidden states were kept."""
        if self.logits is not None:
            return self.logits
        assert self.last_hidden is not None, "nobody asked for logits"
        assert self.head is not None
        return self.head.logits(self.last_hidden)


class Reader(Protocol):
    """Reads models of one kind."""

    def targets(self, batch: Batch) -> Tensor:
        """Target classes or token ids [N]; all are valid."""

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """One forward pass. Gradient flows unless the caller switched it off."""


@dataclass(frozen=True, slots=True)
class LabelReader:
    """Sequence classifiers: one target a sample."""

    def targets(self, batch: Batch) -> Tensor:
        """The labels [B]."""
        return batch["labels"]

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`. Logits are given whether or not they are asked for."""
        mask = batch["attention_mask"]
        wanted = insides_wanted(needs.hidden_states, needs.attentions)
        with watching(model, needs) as caught:
            out = model(
                input_ids=batch["input_ids"],
                attention_mask=mask,
                **token_types(model, batch),
                **wanted,
            )
        return Outputs(
            logits=out.logits,
            hidden_states=out.hidden_states if needs.hidden_states else None,
            attentions=out.attentions if needs.attentions else None,
            projections=caught.projections(),
            mask=mask.bool(),
        )


@dataclass(frozen=True, slots=True)
class TagReader:
    """Token classifiers: each token whose tag is known is a target."""

    def targets(self, batch: Batch) -> Tensor:
        """The known tags [N], row-major."""
        labels = batch["labels"]
        return labels[labels != IGNORE_INDEX]

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`. Logits are given whether or not they are asked for."""
        mask = batch["attention_mask"]
        wanted = insides_wanted(needs.hidden_states, needs.attentions)
        with watching(model, needs) as caught:
            out = model(input_ids=batch["input_ids"], attention_mask=mask, **wanted)
        return Outputs(
            logits=out.logits[batch["labels"] != IGNORE_INDEX],
            hidden_states=out.hidden_states if needs.hidden_states else None,
            attentions=out.attentions if needs.attentions else None,
            projections=caught.projections(),
            mask=mask.bool(),
        )


def count_tags(batch: Batch) -> Tensor:
    """`Counts` of a batch of tagged tokens, as a tensor [4]: a target is read where it stands."""
    known = batch["labels"] != IGNORE_INDEX
    there = known.any(-1)
    tokens = batch["attention_mask"][there].sum()
    return torch.stack([known.sum(), tokens, there.sum(), known.new_zeros((), dtype=torch.int64)])


def token_types(model: Any, batch: Batch) -> Mapping[str, Tensor]:
    """Which of two texts a token is of, where the batch says so and the model asks."""
    name = "token_type_ids"
    if name not in batch or name not in accepts(getattr(model, "module", model)):
        return {}
    return {name: batch[name]}


@dataclass(frozen=True, slots=True)
class CausalReader:
    """Causal language models: each token of the completion is a target, read one place before.

    The head is a fifth of a 135M model's work: it is evaluated only for columns that hold a target,
    where the model can be asked for that. No mask is passed: padding is on the right and attention
    is causal, so no real token sees it, and the faster kernel is taken.
    """

    def targets(self, batch: Batch) -> Tensor:
        """Tokens of the completions [N], row-major."""
        return next_tokens(batch["labels"]).targets

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`."""
        positions = next_tokens(batch["labels"]).positions
        columns = positions.any(0).nonzero().squeeze(-1)  # [T']
        kept = positions[:, columns]  # [B, T']
        reads = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
        asked: dict[str, Any] = {reads: batch[reads], "use_cache": False}
        inner = getattr(model, "module", model)  # under data-parallel wrapping
        if POSITIONS in batch:
            asked[POSITIONS] = batch[POSITIONS]
        asked |= insides_wanted(needs.hidden_states, needs.attentions)
        narrowed = "logits_to_keep" in accepts(inner)
        if narrowed:
            asked["logits_to_keep"] = columns
        head = head_of(inner) if needs.last_hidden else None
        if head is not None:
            with without_head(inner) as skipped, watching(model, needs) as caught:
                out = model(**asked)
            hidden = head_input(inner, head, skipped, out.logits)
            if hidden is None:  # so from now on: `head_of` gives none
                return self.read(model, batch, needs)
            hidden = hidden if narrowed else hidden[:, columns]
            found: dict[str, Any] = {"last_hidden": hidden[kept], "head": head}
            if needs.logits:
                found["logits"] = head.logits(found["last_hidden"])
        else:
            with watching(model, needs) as caught:
                out = model(**asked)
            found = {"logits": (out.logits if narrowed else out.logits[:, columns])[kept]}
        mask = batch.get("attention_mask")
        return Outputs(
            **found,
            hidden_states=out.hidden_states if needs.hidden_states else None,
            attentions=out.attentions if needs.attentions else None,
            projections=caught.projections(),
            mask=None if mask is None else mask.bool(),
        )


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Any model without its head: what its layers compute for the student's tokens."""

    def targets(self, batch: Batch) -> Tensor:
        """The labels, as they stand."""
        return batch["labels"]

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`; no logits."""
        mask = batch["attention_mask"]
        body = model.base_model
        asked: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask}
        if "use_cache" in accepts(body):
            asked["use_cache"] = False
        asked |= insides_wanted(needs.hidden_states, needs.attentions)
        with watching(model, needs) as caught:
            out = body(**asked)
        return Outputs(
            hidden_states=out.hidden_states if needs.hidden_states else None,
            attentions=out.attentions if needs.attentions else None,
            projections=caught.projections(),
            mask=mask.bool(),
        )


def watching(model: Any, needs: Needs) -> AbstractContextManager[Caught]:
    """Inside, a forward pass of `model` gives what of `needs` is not given by itself."""
    return watch(model, attentions=needs.attentions, projections=needs.queries_keys_values)


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
