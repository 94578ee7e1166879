"""The soft-target loss of a language model without its logits, beside the dense one.

python examples/fused_loss.py
"""

from __future__ import annotations

import torch

from stillhouse.models.divergence import soft_target_loss
from stillhouse.models.fused_divergence import fused_soft_target_loss
from stillhouse.models.head import Head
from stillhouse.models.signals import HiddenSignal

POSITIONS, HIDDEN, TEACHER_HIDDEN, VOCABULARY = 64, 32, 48, 1000

torch.manual_seed(0)
hidden = torch.randn(POSITIONS, HIDDEN, requires_grad=True)
weight = (torch.randn(VOCABULARY, HIDDEN) / 4).requires_grad_()
teacher = HiddenSignal(
    torch.randn(POSITIONS, TEACHER_HIDDEN), Head(torch.randn(VOCABULARY, TEACHER_HIDDEN) / 4)
)
labels = torch.randint(0, VOCABULARY, (POSITIONS,))
labels[: POSITIONS // 2] = -100  # the prompt
count = int((labels != -100).sum())
head = Head(weight)

fused = fused_soft_target_loss(
    hidden, head, labels, teacher, alpha=0.5, distillation_temperature=2.0, num_items=count
)
dense = soft_target_loss(
    head.logits(hidden),
    labels,
    teacher.dense(),
    alpha=0.5,
    distillation_temperature=2.0,
    num_items=count,
)
ours = torch.autograd.grad(fused.loss, (hidden, weight))
theirs = torch.autograd.grad(dense.loss, (hidden, weight))
apart = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
print(f"loss {float(fused.loss.detach()):.6f}, of which the divergence is", end=" ")
print(f"{float(fused.divergence_sum) / count:.6f} nats a token; gradients differ by {apart:.1e}")
