"""Readers of masked language models, encoder-decoders and modules of any kind.

Each says where the targets of a batch are, reads logits there alone, and counts what sums are
divided by. `outputs.py` has those of sequence classifiers and causal language models. Knows models
and batches; knows no loss and no files.

Legend: B batch, T tokens, N targets, V vocabulary or classes, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.head import Head, head_at, head_input, head_of, without_head
from stillhouse.train.outputs import Batch, Needs, Outputs, token_types, watching
from stillhouse.train.teachers import BELIEFS

INPUTS: Final = "inputs"  # what a plain module is called with
LABELS: Final = "labels"


@dataclass(frozen=True, slots=True)
class MaskedReader:
    """Masked language models (Devlin et al. 2019, arXiv:1810.04805): a token that was hidden is
    the target of its own position.

    `labels` [B, T] hold the hidden tokens and `IGNORE_INDEX` elsewhere. Student and teacher read
    the same batch, so the same tokens are hidden from both. The vocabulary's matrix is multiplied
    at the targets alone.
    """

    def targets(self, batch: Batch) -> Tensor:
        """The hidden tokens [N], row-major."""
        labels = batch[LABELS]
        return labels[labels != IGNORE_INDEX]

    def count(self, batch: Batch) -> Tensor:
        """`Counts` [4] of a batch."""
        targets = batch[LABELS] != IGNORE_INDEX
        there = targets.any(-1)  # a row without targets fills up a batch
        return _counts(targets.sum(), batch["attention_mask"][there].sum(), there.sum())

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`."""
        mask = batch["attention_mask"]
        asked: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": mask}
        asked |= token_types(model, batch)
        with watching(model, needs) as caught:
            out, found = _at_targets(model, asked, batch[LABELS] != IGNORE_INDEX, needs)
        return Outputs(
            **found,
            hidden_states=out.hidden_states if needs.hidden_states else None,
            attentions=out.attentions if needs.attentions else None,
            projections=caught.projections(),
            mask=mask.bool(),
        )


@dataclass(frozen=True, slots=True)
class Seq2SeqReader:
    """Encoder-decoders (T5, BART): each token of the written text is a target.

    The decoder reads `labels` one place to the right, after the start token that the model's own
    config names (teacher forcing), so student and teacher go along the same text. Hidden states
    and attention are the decoder's; its tokens are what sums over tokens are divided by.
    """

    def targets(self, batch: Batch) -> Tensor:
        """Tokens of the written texts [N], row-major."""
        labels = batch[LABELS]
        return labels[labels != IGNORE_INDEX]

    def count(self, batch: Batch) -> Tensor:
        """`Counts` [4] of a batch."""
        targets = batch[LABELS] != IGNORE_INDEX
        return _counts(targets.sum(), targets.sum(), targets.any(-1).sum())

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`."""
        labels = batch[LABELS]
        positions = labels != IGNORE_INDEX
        inner = getattr(model, "module", model)
        asked: dict[str, Any] = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            # Padding to the right of a text is seen by no token of it: attention is causal.
            "decoder_input_ids": inner.prepare_decoder_input_ids_from_labels(labels=labels),
            "use_cache": False,
        }
        out, found = _at_targets(model, asked, positions, needs)
        return Outputs(
            **found,
            hidden_states=out.decoder_hidden_states if needs.hidden_states else None,
            attentions=out.decoder_attentions if needs.attentions else None,
            mask=positions,
        )


@dataclass(frozen=True, slots=True)
class ModuleReader:
    """Any torch module whose forward pass gives logits: a tensor, or an output with `logits`.

    The module is called with `inputs` alone where the batch holds them, else with all that is
    neither `labels` nor a belief, by name. Logits [B, C] go with labels [B]; logits
    [B, ..., C] with labels [B, ...], of which those equal to `IGNORE_INDEX` do not count.
    """

    def targets(self, batch: Batch) -> Tensor:
        """Target classes [N], row-major; of labels [B] all, as a row may only fill up a batch."""
        labels = batch[LABELS]
        return labels if labels.ndim == 1 else labels[labels != IGNORE_INDEX]

    def count(self, batch: Batch) -> Tensor:
        """`Counts` [4] of a batch; a target is a token too."""
        targets = batch[LABELS] != IGNORE_INDEX
        there = targets.reshape(len(targets), -1).any(-1)
        return _counts(targets.sum(), targets.sum(), there.sum())

    def read(self, model: Any, batch: Batch, needs: Needs) -> Outputs:
        """See `Reader`; labels are not needed for logits [B, C]."""
        if needs.hidden_states or needs.attentions or needs.queries_keys_values:
            raise UserError(
                "terms",
                f"compare layers, and a {type(model).__name__} is read by its logits alone",
                action="use a transformers model, or terms that compare logits",
            )
        given = {name: value for name, value in batch.items() if name not in (LABELS, BELIEFS)}
        out = model(given[INPUTS]) if INPUTS in given else model(**given)
        logits = _logits(out, model)
        labels = batch.get(LABELS)
        if labels is None or labels.ndim == 1:
            return Outputs(logits=logits)
        if logits.shape[:-1] != labels.shape:
            raise UserError(
                "labels",
                f"of shape {list(labels.shape)} do not fit logits {list(logits.shape)}",
                action="classes are the last dimension of the logits",
            )
        return Outputs(logits=logits[labels != IGNORE_INDEX])


def _at_targets(
    model: Any, asked: Mapping[str, Any], positions: Tensor, needs: Needs
) -> tuple[Any, dict[str, Any]]:
    """A forward pass, and logits [N, V] or the hidden states [N, H] under the head."""
    inner = getattr(model, "module", model)
    asked = {**asked}
    if needs.hidden_states:
        asked["output_hidden_states"] = True
    if needs.attentions:
        asked["output_attentions"] = True
    head = _linear_head(inner) if needs.last_hidden else None
    if head is not None:
        with without_head(inner) as caught:
            out = model(**asked)
        hidden = head_input(inner, head, caught, out.logits)
        if hidden is not None:
            found: dict[str, Any] = {"last_hidden": hidden[positions], "head": head}
            if needs.logits:
                found["logits"] = head.logits(found["last_hidden"])
            return out, found
    with head_at(inner, positions):
        out = model(**asked)
    logits = out.logits
    return out, {"logits": logits if logits.ndim == 2 else logits[positions]}


def _linear_head(model: Any) -> Head | None:
    """The head where it is one matrix over the vocabulary and nothing is added after it."""
    head = None if hasattr(model, "final_logits_bias") else head_of(model)
    return head if head is not None and len(head.weight) == model.config.vocab_size else None


def _logits(out: Any, model: Any) -> Tensor:
    found = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", out)
    if not isinstance(found, Tensor) or found.ndim < 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(out).__name__
        raise UserError(
            type(model).__name__,
            f"must return logits [B, C], or an output that holds them as `logits`, not {shape}",
        )
    return found


def _counts(targets: Tensor, tokens: Tensor, samples: Tensor) -> Tensor:
    return torch.stack([targets, tokens.to(targets), samples, targets.new_zeros(())])
