"""Small steps of a classifier's last layer on frozen features, held to the weights that are live.

Pure: arrays in, weights out. The loss, over batches B drawn by `retrain.online_buffer.draw`:

    mean_i w_i CE(y_i, p_i) + k mean_i w_i KL(live_i || p_i) + l sum (W - W_live)^2 / C

in nats; y_i is a label or a teacher's belief (then CE is the teacher's KL and its entropy, at
distillation temperature 1, so that T^2 = 1). Features are scaled to mean square 1 inside, so that a
rate fits every encoder. Knows no traffic, no guard and no file.

Shapes: N rows, K rows of one batch, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillhouse.models.head_weights import Floats, HeadWeights

Drawn = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class HeadRates(NamedTuple):
    """How it is learned."""

    steps: int
    learning_rate: float
    anchor_kl: float
    anchor_l2: float


def refine(
    live: HeadWeights,
    features: Floats,  # [N, H]
    targets: Floats,  # [N, C]
    rates: HeadRates,
    draw: Callable[[], Drawn],
) -> HeadWeights:
    """The live weights after some steps of Adam. Equal input and draws give equal bits.

    Args:
        draw: rows of the next batch [K] and their weights [K].
    """
    scale = float(np.sqrt(np.mean(np.square(features, dtype=np.float64)))) or 1.0
    x_nh = torch.from_numpy(np.asarray(features / scale, dtype=np.float32))
    y_nc = torch.from_numpy(np.asarray(targets, dtype=np.float32))
    start_w = torch.from_numpy(np.asarray(live.weight * scale, dtype=np.float32))
    start_b = torch.from_numpy(np.array(live.bias, dtype=np.float32))
    weight, bias = start_w.clone().requires_grad_(), start_b.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=rates.learning_rate)
    classes = len(start_b)
    for _ in range(rates.steps):
        rows, counts = draw()
        at = torch.from_numpy(rows)
        w_k = torch.from_numpy(np.asarray(counts, dtype=np.float32))
        x_kh, y_kc = x_nh[at], y_nc[at]
        log_p = torch.nn.functional.linear(x_kh, weight, bias).log_softmax(-1)
        live_log = torch.nn.functional.linear(x_kh, start_w, start_b).log_softmax(-1)
        loss = _losses(log_p, y_kc, live_log, rates.anchor_kl) @ w_k / len(w_k)
        apart = (weight - start_w).square().sum() + (bias - start_b).square().sum()
        loss = loss + rates.anchor_l2 * apart / classes
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return HeadWeights(
        np.array(weight.detach().numpy() / scale, dtype=np.float32),
        np.array(bias.detach().numpy(), dtype=np.float32),
    )


def _losses(
    log_p: Tensor,  # [K, C]
    targets: Tensor,  # [K, C]
    live: Tensor,  # [K, C] log-probabilities
    anchor_kl: float,
) -> Tensor:  # [K]
    cross_entropy = -(targets * log_p).sum(-1)
    kl = (live.exp() * (live - log_p)).sum(-1)
    return cross_entropy + anchor_kl * kl


def fit_delta(
    shared: HeadWeights,
    features: Floats,  # [N, H]
    targets: Floats,  # [N, C]
    rates: HeadRates,
    *,
    rank: int,
    seed: int = 0,
) -> HeadWeights:
    """What an adapter adds to the shared weights: up @ down [C, H], of a rank, and a bias [C].

    All rows at once, held to 0 by `anchor_l2`; at rank 0 the bias alone is learned. Starts at 0.
    """
    scale = float(np.sqrt(np.mean(np.square(features, dtype=np.float64)))) or 1.0
    x_nh = torch.from_numpy(np.asarray(features / scale, dtype=np.float32))
    y_nc = torch.from_numpy(np.asarray(targets, dtype=np.float32))
    base = torch.from_numpy(shared.logits(features))
    classes, width = shared.weight.shape
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, generator=draw).div_(width**0.5).requires_grad_()
    up = torch.zeros(classes, rank).requires_grad_()
    bias = torch.zeros(classes).requires_grad_()
    optimizer = torch.optim.Adam([down, up, bias] if rank else [bias], lr=rates.learning_rate)
    for _ in range(rates.steps):
        added = x_nh @ down.T @ up.T + bias
        log_p = (base + added).log_softmax(-1)
        loss = -(y_nc * log_p).sum(-1).mean()
        loss = loss + rates.anchor_l2 * ((up @ down).square().sum() + bias.square().sum())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        weight = (up @ down).numpy() / scale
    return HeadWeights(np.array(weight, dtype=np.float32), np.array(bias.detach().numpy()))
