"""Which channels, heads, neurons and layers of a model its task's texts use most.

Texts are read once; what flows is summed up on the way, as in Minitron (Muralidharan et al. 2024,
arXiv:2407.14679): a neuron's mean |activation|, a head's mean L2 norm before its output projection,
a hidden channel's mean |output| of each normalisation, and a layer's 1 - cos(input, output)
(Men et al. 2024, arXiv:2403.03853). Padding counts nowhere. Knows a model and its table of axes;
decides nothing.

Legend: B batch, T tokens, N valid tokens of a batch, H hidden, Q heads x head size, I neurons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.train.cut_shapes import Layout, Named
from stillhouse.train.layers import blocks_of
from stillhouse.train.text_sample import TOKENS, sample_batches


@dataclass(slots=True)
class NormSeen:
    """Of a normalisation's input x: E[z] and E[z^2] a channel, z = (x - mean) / spread of a token,
    both over all channels (RMS normalisations: mean 0)."""

    first: Tensor  # [H]
    second: Tensor  # [H]


@dataclass(slots=True)
class Importance:
    """Larger is more important. Lists run over layers."""

    hidden: Tensor  # [H]
    heads: list[Tensor]  # each [heads]
    neurons: list[Tensor]  # each [I]
    layers: list[float]
    norms: dict[str, NormSeen] = field(default_factory=dict)  # by module name
    tokens: int = 0


def measure_importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layout: Layout,
    texts: Sequence[str],
    samples: int,
) -> Importance:
    """Read up to `samples` texts, evenly drawn from `texts`, and sum up what flows.

    Raises:
        UserError: no text.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(
            "student.size",
            "there is no text on which to measure what to keep",
            action="give the task's texts, or use from: scratch:... for random weights",
        )
    seen = _Seen(model, layout)
    device = model.device
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            most = layout.shape.positions or TOKENS
            for batch in sample_batches(tokenizer, texts, samples, most):
                mask = batch["attention_mask"].bool().to(device)  # [B, T]
                if not mask.any():
                    continue
                seen.mask = mask
                seen.tokens += int(mask.sum())
                model.base_model(
                    input_ids=batch["input_ids"].to(device), attention_mask=mask.long()
                )
    finally:
        seen.close()
        model.train(training)
    return seen.result()


class _Seen:
    """Hooks and their sums."""

    def __init__(self, model: PreTrainedModel, layout: Layout) -> None:
        self.mask: Tensor | None = None
        self.tokens = 0
        self._layout = layout
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self._norms: dict[str, NormSeen] = {}
        modules = dict(model.named_modules())
        body = {id(module) for module in model.base_model.modules()}
        self._hooks: list[Any] = []
        for item in layout.table:
            owner, _, kind = item.name.rpartition(".")
            module = modules[owner]
            if kind != "weight" or id(module) not in body:
                continue
            if item.axes in ("HQ", "HI") and item.layer is not None:
                self._watch(module, self._input_of(item))
            elif item.axes == "H":
                self._watch(module, self._norm(owner, isinstance(module, nn.LayerNorm)))
        for number, block in enumerate(blocks_of(model)):
            self._watch(block, self._block(number))

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def result(self) -> Importance:
        """The means."""
        shape, per = self._layout.shape, 1 / max(1, self.tokens)
        layers = range(shape.layers)
        for seen in self._norms.values():
            seen.first, seen.second = seen.first * per, seen.second * per
        return Importance(
            hidden=self._sums["hidden"] * per,
            heads=[self._sums[f"HQ{n}"] * per for n in layers],
            neurons=[self._sums[f"HI{n}"] * per for n in layers],
            layers=[1 - float(self._sums[f"block{n}"]) * per for n in layers],
            norms=self._norms,
            tokens=self.tokens,
        )

    def _watch(self, module: nn.Module, see: Any) -> None:
        hook = module.register_forward_hook(
            lambda _, given, kept, out: see(given[0] if given else kept["hidden_states"], out),
            with_kwargs=True,
        )
        self._hooks.append(hook)

    def _valid(self, values: Tensor) -> Tensor:
        assert self.mask is not None
        if values.shape[:2] == self.mask.shape:
            return values[self.mask].float()  # [N, ...]
        return values.reshape(self.mask.numel(), -1)[self.mask.reshape(-1)].float()

    def _input_of(self, item: Named) -> Any:
        def see(given: Tensor, _: object) -> None:
            rows = self._valid(given)  # [N, Q] or [N, I]
            if item.axes == "HQ":
                rows = rows.view(len(rows), -1, self._layout.shape.head_dim).norm(dim=-1)
            self._sums[f"{item.axes}{item.layer}"] = self._sums[
                f"{item.axes}{item.layer}"
            ] + rows.abs().sum(0)

        return see

    def _norm(self, name: str, centred: bool) -> Any:
        def see(given: Tensor, out: Tensor) -> None:
            rows = self._valid(given)  # [N, H]
            if centred:
                rows = rows - rows.mean(-1, keepdim=True)
            rows = rows / rows.square().mean(-1, keepdim=True).add(1e-12).sqrt()
            first, second = rows.sum(0), rows.square().sum(0)
            held = self._norms.get(name)
            self._norms[name] = (
                NormSeen(first, second)
                if held is None
                else NormSeen(held.first + first, held.second + second)
            )
            self._sums["hidden"] = self._sums["hidden"] + self._valid(out).abs().sum(0)

        return see

    def _block(self, number: int) -> Any:
        def see(given: Tensor, out: Any) -> None:
            after = self._valid(out[0] if isinstance(out, tuple) else out)
            near = torch.nn.functional.cosine_similarity(self._valid(given), after, dim=-1)
            self._sums[f"block{number}"] = self._sums[f"block{number}"] + near.sum()

        return see
