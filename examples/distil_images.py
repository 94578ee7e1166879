"""Stage 4 as a library: any module that returns logits; here images, and a larger net teaches."""

import torch
from torch import nn

from stillhouse import Distiller


def net(width: int) -> nn.Module:
    """Images [B, 1, 8, 8] to logits [B, 4]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))


torch.manual_seed(0)
labels = torch.arange(400) % 4
patterns = torch.randn(4, 1, 8, 8)
images = patterns[labels] + 1.5 * torch.randn(400, 1, 8, 8)
train, held_out = (images[:300], labels[:300]), (images[300:], labels[300:])

teacher, student = net(64), net(4)
Distiller(teacher, alpha=0, epochs=15).fit(train)  # nobody teaches it: plain labels
distiller = Distiller(student, teacher, alpha=0.9, distillation_temperature=4.0, epochs=15)
done = distiller.fit(train, held_out)

print(f"{done.steps} steps, best after {done.best_step}")
print(f"agrees with the labels: {done.curve[-1].held_out_agreement:.0%}")
print(f"divergence from the teacher: {done.curve[-1].held_out_divergence:.3f} nats")
