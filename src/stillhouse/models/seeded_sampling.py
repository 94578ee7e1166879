"""Sampling whose draws depend on the query, not on the batch it happens to be in.

A row's token is argmax(logits / sampling_temperature + g) with g standard Gumbel noise from the
row's own generator, which is a draw from softmax(logits / sampling_temperature) (the Gumbel-max
trick; Maddison et al. 2014, "A* Sampling"). Greedy decoding is the case without noise. Also keeps
the log-probabilities of the chosen tokens. Knows logits only.

Shapes: B rows, V vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Step(NamedTuple):
    """One decoding step's log-probabilities in nats, at sampling temperature 1."""

    chosen: Tensor  # [B]
    top_ids: Tensor  # [B, K]
    top: Tensor  # [B, K]


class SeededSampler(LogitsProcessor):
    """Put last in a chain of processors and decode greedily: the argmax is then the draw.

    Args:
        seeds: one per row.
        sampling_temperature: 0 is greedy.
        alternatives: how many top entries to keep a step; `None` keeps no log-probabilities.
    """

    def __init__(
        self, seeds: Sequence[int], sampling_temperature: float, alternatives: int | None
    ) -> None:
        self._temperature = sampling_temperature
        self._alternatives = alternatives
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.steps: list[Step] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturb the scores [B, V] of one step."""
        log_p = scores.float().log_softmax(-1)
        drawn = self.draw(log_p)
        if self._alternatives is not None:
            chosen = drawn.argmax(-1, keepdim=True)
            top = log_p.topk(min(self._alternatives, log_p.shape[-1]), dim=-1)
            self.steps.append(
                Step(log_p.gather(-1, chosen)[:, 0].cpu(), top.indices.cpu(), top.values.cpu())
            )
        return drawn

    def draw(self, log_p: Tensor) -> Tensor:
        """What the argmax is taken of [B, V]."""
        if self._temperature == 0:
            return log_p
        return log_p / self._temperature + self.gumbel(log_p.shape[-1]).to(log_p.device)

    def gumbel(self, size: int) -> Tensor:
        """Noise [B, size], each row's from its own generator."""
        rows = [torch.empty(size).exponential_(generator=g) for g in self._generators]
        return -torch.stack(rows).log()
