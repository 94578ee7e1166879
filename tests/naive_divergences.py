"""Divergences written from their definitions in Python floats: slow, and nobody else's code.

A distribution is a list of probabilities; nothing here takes a logarithm of a softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]

# Every kind, with the coefficients that are tested.
CASES: list[tuple[str, float]] = [
    ("forward_kl", 0.5),
    ("reverse_kl", 0.5),
    ("jsd", 0.0),
    ("jsd", 0.1),
    ("jsd", 0.5),
    ("jsd", 0.8),
    ("jsd", 1.0),
    ("skew_forward_kl", 0.0),
    ("skew_forward_kl", 0.1),
    ("skew_forward_kl", 0.7),
    ("skew_reverse_kl", 0.0),
    ("skew_reverse_kl", 0.1),
    ("skew_reverse_kl", 0.7),
    ("total_variation", 0.5),
    ("cross_entropy", 0.5),
]


def softmax(logits: Floats, t: float = 1.0) -> list[float]:
    top = max(logits)
    masses = [math.exp((x - top) / t) for x in logits]
    return [m / math.fsum(masses) for m in masses]


def power(p: Floats, t: float) -> list[float]:
    """p^(1/T), renormalised."""
    masses = [x ** (1 / t) for x in p]
    return [m / math.fsum(masses) for m in masses]


def kl(a: Floats, b: Floats) -> float:
    total = []
    for x, y in zip(a, b, strict=True):
        if x > 0:
            total.append(x * math.log(x / y) if y > 0 else math.inf)
    return math.fsum(total)


def mix(weight: float, a: Floats, b: Floats) -> list[float]:
    return [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]


def divergence(kind: str, beta: float, p: Floats, q: Floats) -> float:
    """D(p, q) of teacher p and student q."""
    if kind == "forward_kl" or (kind == "jsd" and beta == 0):
        return kl(p, q)
    if kind == "reverse_kl" or (kind == "jsd" and beta == 1):
        return kl(q, p)
    if kind == "jsd":
        m = mix(beta, p, q)
        return beta * kl(p, m) + (1 - beta) * kl(q, m)
    if kind == "skew_forward_kl":
        return kl(p, mix(beta, p, q))
    if kind == "skew_reverse_kl":
        return kl(q, mix(beta, q, p))
    if kind == "total_variation":
        return max(  # the largest disagreement about any event: the sum over where p is larger
            math.fsum(x - y for x, y in zip(p, q, strict=True) if x > y),
            math.fsum(y - x for x, y in zip(p, q, strict=True) if y > x),
        )
    assert kind == "cross_entropy"
    return math.fsum(
        -x * math.log(y) if y > 0 else math.inf for x, y in zip(p, q, strict=True) if x > 0
    )


def gradient(kind: str, beta: float, p: Floats, student: Floats, t: float) -> list[float]:
    """dD/dz of a student's logits z by central differences."""
    step = 1e-5

    def at(v: int, shift: float) -> float:
        moved = [x + shift * (i == v) for i, x in enumerate(student)]
        return divergence(kind, beta, p, softmax(moved, t))

    return [(at(v, step) - at(v, -step)) / (2 * step) for v in range(len(student))]
