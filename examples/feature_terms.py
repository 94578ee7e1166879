"""Stage 4: what two models compute inside, compared: unequal widths, a linear map, padding."""

import torch

from stillhouse.train.features import hidden_cosine, relation_kl
from stillhouse.train.features_samples import pooled, rkd_angle, rkd_distance

draw = torch.manual_seed(0)
mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)  # [B, T]
student = torch.randn(3, 4, 8, generator=draw, requires_grad=True)  # [B, T, Hs]
teacher = torch.randn(3, 4, 12, generator=draw)  # [B, T, Ht]

# Token by token: a learned linear map where widths differ; padding is not there.
projector = torch.nn.Linear(8, 12)
hidden = hidden_cosine(projector(student[mask]), teacher[mask]) / mask.sum()

# MiniLM's value relation needs no map: 2 heads of width 4 against 3 of width 4, cut into 2.
values = (
    student.unflatten(-1, (2, 4)).transpose(1, 2),
    teacher.unflatten(-1, (3, 4)).transpose(1, 2),
)
relation = relation_kl(*values, mask, relation_heads=2) / mask.sum()

# Text by text: distances and angles among the texts of a batch.
vectors = pooled(student, mask, "mean"), pooled(teacher, mask, "mean")
geometry = (rkd_distance(*vectors) + 2 * rkd_angle(*vectors)) / len(mask)

(hidden + relation + geometry).backward()
print(f"hidden {hidden.item():.4f}, relation {relation.item():.4f}, rkd {geometry.item():.4f}")
