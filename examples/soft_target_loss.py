"""Stage 4: the soft-target loss, alpha * T^2 * KL + (1 - alpha) * CE, for one batch."""

import torch

from stillhouse.models.divergence import soft_target_loss
from stillhouse.models.signals import from_class_probabilities

student_logits = torch.zeros(2, 3, requires_grad=True)
loss = soft_target_loss(
    student_logits,
    torch.tensor([0, 2]),
    from_class_probabilities([(0.8, 0.15, 0.05), (0.1, 0.3, 0.6)]),
    alpha=0.9,
    distillation_temperature=2.0,
    num_items=2,
)
loss.loss.backward()
print(f"loss {loss.loss.item():.4f} nats")
print(student_logits.grad)
