"""Stage 4: one student under every divergence, and what top-k and sampled beliefs see of it."""

import torch

from stillhouse.core.divergence_names import DivergenceKind
from stillhouse.models.divergence import divergence
from stillhouse.models.divergence_kind import Divergence, divergence_of
from stillhouse.models.drawing import draw_signal
from stillhouse.models.signals import DenseSignal, sparsify, without_tail

generator = torch.Generator().manual_seed(0)
teacher = DenseSignal(2 * torch.randn(64, 500, generator=generator))  # 64 positions, 500 ids
student = torch.randn(64, 500, generator=generator)

kinds: list[DivergenceKind] = [
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "cross_entropy",
]
print("mean over positions   dense   top-32 and tail (a lower bound)")
for kind in kinds:
    of = divergence_of(kind)
    dense, sparse = (
        divergence(signal, student, of=of) for signal in (teacher, sparsify(teacher, 32))
    )
    print(f"{kind:20} {dense.total / dense.items:7.3f} {sparse.total / sparse.items:7.3f}")


def mean_gradient(signal: object, times: int) -> torch.Tensor:
    """Of forward KL, by the logits of one position, over `times` signals."""
    logits = student[:1].expand(times, -1).clone().requires_grad_(True)
    divergence(signal, logits, of=Divergence()).total.backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    return logits.grad.mean(0)


one, many = DenseSignal(teacher.logits[:1]), DenseSignal(teacher.logits[:1].expand(5000, -1))
exact = mean_gradient(one, 1)
uniforms = torch.rand(5000, 12, generator=generator, dtype=torch.float64)
print("\nforward KL's gradient at one position: distance from the dense one, relative")
for name, found in {
    "5,000 times 12 draws, averaged": mean_gradient(draw_signal(many, uniforms), 5000),
    "top-12 and tail": mean_gradient(sparsify(one, 12), 1),
    "top-12, renormalised": mean_gradient(without_tail(sparsify(one, 12)), 1),
}.items():
    print(f"{name:31} {float((found - exact).norm() / exact.norm()):.3f}")
