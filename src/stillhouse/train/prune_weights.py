"""Set single weights of a model to 0, and keep them there while it is trained.

Weights are those of the linear layers within the stack of layers; embeddings, normalisations,
biases and heads stay whole. A weight's score is its size, ranked within its matrix (Han et al.
2015, arXiv:1506.02626), or its size times the norm of its input over texts of the task, ranked
within its output (Wanda: Sun et al. 2023, arXiv:2306.11695). N:M keeps the N highest scores of each
M neighbours along the inputs (Mishra et al. 2021, arXiv:2104.08378). A pruned weight is a plain 0:
the mask is read back from the weights, so that checkpoints need no file of their own and the
result is any model of its kind. Knows models in memory.

Legend: O outputs, I inputs of a linear layer, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from stillhouse.core.errors import UserError
from stillhouse.train.layers import blocks_of
from stillhouse.train.text_sample import sample_batches


def prunable(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers within the stack of layers, with their names in the model."""
    names = {id(module): name for name, module in model.named_modules()}
    for block in blocks_of(model):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                yield names[id(module)], module


@torch.no_grad()
def prune_weights(
    model: PreTrainedModel,
    *,
    share: float,
    pattern: tuple[int, int] | None = None,
    norms: Mapping[str, Tensor] | None = None,
) -> None:
    """Set weights to 0, in place.

    Args:
        model: any with one stack of layers.
        share: of each matrix that is set to 0; with a pattern, what it says.
        pattern: N and M of N:M.
        norms: of each layer's inputs [I], as `input_norms` measures them; `None`: by size alone.

    Raises:
        UserError: no linear layers, or inputs that M does not divide.
    """
    layers = list(prunable(model))
    if not layers:
        raise UserError(
            "prune.kind",
            f"a {type(model).__name__} has no linear layers whose weights could be set to 0",
            action="leave prune out, or use a BERT- or Llama-like student",
        )
    for name, layer in layers:
        score = layer.weight.detach().float().abs()
        if norms is not None:
            score = score * norms[name].to(score.device)
        if pattern is not None:
            if layer.in_features % pattern[1]:
                raise UserError(
                    "prune.kind",
                    f"layer {name} has {layer.in_features} inputs, which {pattern[1]} does not "
                    "divide",
                    value=f"{pattern[0]}:{pattern[1]}",
                    action="use another N:M, or unstructured",
                )
            kept = keep_pattern(score, *pattern)
        else:
            kept = keep_highest(score, share, by_output=norms is not None)
        layer.weight.mul_(kept)


def keep_highest(score: Tensor, share: float, *, by_output: bool) -> Tensor:
    """Which weights [O, I] stay when the lowest `share` go: of the matrix, or of each output.

    Ties go to the lower index; exactly round(share * count) go.
    """
    rows = score if by_output else score.reshape(1, -1)
    count = round(share * rows.shape[1])
    order = rows.argsort(dim=1, descending=True, stable=True)
    kept = torch.ones_like(rows, dtype=torch.bool)
    kept.scatter_(1, order[:, rows.shape[1] - count :], False)
    return kept.view_as(score)


def keep_pattern(score: Tensor, keep: int, of: int) -> Tensor:
    """Which weights [O, I] stay when of each `of` neighbours the `keep` highest do."""
    groups = score.reshape(len(score), -1, of)
    order = groups.argsort(dim=2, descending=True, stable=True)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    return kept.scatter_(2, order[..., :keep], True).flatten(1)


@torch.no_grad()
def input_norms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    samples: int,
) -> dict[str, Tensor]:
    """L2 norms of each prunable layer's inputs [I], over the tokens of some texts.

    Raises:
        UserError: there is no text.
    """
    if not texts:
        raise UserError("prune.importance", "there is no text to measure it on")
    squares: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(_watcher(name, squares, seen))
        for name, layer in prunable(model)
    ]
    was_training = model.training
    model.train(False)
    try:
        most = int(tokenizer.model_max_length)
        for batch in sample_batches(tokenizer, texts, samples, most):
            seen["mask"] = batch["attention_mask"].bool().to(model.device)
            if seen["mask"].any():
                model.base_model(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=seen["mask"].long(),
                )
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return {name: total.sqrt().float() for name, total in squares.items()}


def _watcher(name: str, squares: dict[str, Tensor], seen: Mapping[str, Tensor]) -> Any:
    def watch(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        mask = seen["mask"].reshape(-1)
        rows = given[0].detach().reshape(len(mask), -1)[mask].double()  # [N, I]
        total = rows.square().sum(0)
        squares[name] = squares[name] + total if name in squares else total

    return watch


class KeepZeros(TrainerCallback):
    """Weights that are 0 when training begins, or goes on, are 0 after each of its steps."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._masks: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the masks off the weights, which a checkpoint may have brought."""
        self._masks = {name: layer.weight.detach() != 0 for name, layer in prunable(self._model)}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set back what the step moved; nothing of it is seen by a look or a checkpoint."""
        with torch.no_grad():
            for name, layer in prunable(self._model):
                layer.weight.mul_(self._masks[name])
