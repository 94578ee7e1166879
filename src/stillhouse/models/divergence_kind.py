"""Which divergence between teacher and student a run minimises: names and coefficients only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

from stillhouse.core.divergence_names import DEFAULT_BETA, DivergenceKind


@dataclass(frozen=True, slots=True)
class Divergence:
    """D(p, q) of teacher p and student q, both at the distillation temperature, in nats.

    - forward_kl: KL(p || q)
    - reverse_kl: KL(q || p)
    - jsd: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; beta 0 stands for
      forward and beta 1 for reverse KL, the limits of the quotient by beta (1 - beta)
      (Agarwal et al. 2024, arXiv:2306.13649)
    - skew_forward_kl: KL(p || beta p + (1 - beta) q)  (Ko et al. 2024, arXiv:2402.03898)
    - skew_reverse_kl: KL(q || beta q + (1 - beta) p)
    - total_variation: 1/2 sum |p - q|, without unit
    - cross_entropy: -sum p log q = KL(p || q) + H(p)

    A skewed kind with beta 0 is its plain one. All but cross_entropy are f-divergences: not
    negative, 0 only for p = q, and no larger over merged outcomes (data-processing inequality).

    `beta` is read by `jsd` and the skewed kinds alone.

    Raises:
        ValueError: an unknown kind, beta outside [0, 1], or 1 for a skewed kind.
    """

    kind: DivergenceKind = "forward_kl"
    beta: float = 0.5

    def __post_init__(self) -> None:
        known: tuple[str, ...] = get_args(DivergenceKind)
        if self.kind not in known:
            raise ValueError(f"unknown divergence {self.kind!r}; choose among {', '.join(known)}")
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta must be within [0, 1], got {self.beta}")
        if self.kind.startswith("skew") and self.beta == 1.0:
            raise ValueError("a skewed divergence with beta 1 compares a distribution with itself")


FORWARD_KL: Final = Divergence()

# Linear in the teacher's probabilities (up to what the student does not move): what an unbiased
# sample of the teacher estimates without bias.
SAMPLED_KINDS: Final[frozenset[DivergenceKind]] = frozenset({"forward_kl", "cross_entropy"})


def divergence_of(kind: DivergenceKind, beta: float | None = None) -> Divergence:
    """The divergence a recipe names; beta `None` is the usual one of its kind."""
    return Divergence(kind, DEFAULT_BETA.get(kind, 0.5) if beta is None else beta)


def infinite_at_zero(divergence: Divergence) -> bool:
    """Whether a class that the teacher rules out makes it infinite for any softmax student."""
    kind, beta = divergence.kind, divergence.beta
    if kind == "jsd":
        return beta == 1.0
    return kind == "reverse_kl" or (kind == "skew_reverse_kl" and beta == 0.0)


CROSS_ENTROPY: Final = Divergence("cross_entropy")
