"""Every divergence of dense beliefs: definitions, identities, limits, and the simplex's edge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive_divergences as naive
from stillhouse.models.divergence import divergence, soft_target_loss
from stillhouse.models.divergence_kind import Divergence, divergence_of, infinite_at_zero
from stillhouse.models.signals import DenseSignal

V = 6
INF = math.inf
KINDS = [Divergence(kind, beta) for kind, beta in naive.CASES]  # type: ignore[arg-type]
TRUE = [d for d in KINDS if d.kind != "cross_entropy"]  # 0 where p = q


def logits(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def measured(of: Divergence, teacher: Tensor, student: Tensor, t: float = 1.0) -> float:
    return float(divergence(DenseSignal(teacher), student, t, of=of).total)


@pytest.mark.parametrize("of", KINDS, ids=str)
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_value_and_gradient_equal_the_definition(of: Divergence, t: float) -> None:
    teacher, student = logits(0, 4, V), logits(1, 4, V).requires_grad_(True)
    got = divergence(DenseSignal(teacher), student, t, of=of).total
    got.backward()
    assert student.grad is not None
    wanted = 0.0
    for p_row, q_row, g_row in zip(
        teacher.tolist(), student.tolist(), student.grad.tolist(), strict=True
    ):
        p = naive.softmax(p_row, t)
        wanted += naive.divergence(of.kind, of.beta, p, naive.softmax(q_row, t))
        assert g_row == pytest.approx(naive.gradient(of.kind, of.beta, p, q_row, t), abs=1e-8)
    assert float(got.detach()) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_autograd_passes_finite_differences_in_float64(of: Divergence) -> None:
    teacher, student = logits(2, 3, V), logits(3, 3, V).requires_grad_(True)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(
        lambda x: divergence(DenseSignal(teacher), x, 1.7, mask, of).total, (student,)
    )


# Rows of (teacher logits, student logits) where some probability is 0.
EDGES = {
    "teacher rules out a class": ([0.3, -INF, 1.0], [0.2, -0.4, 0.9]),
    "teacher is a point": ([-INF, 0.0, -INF], [0.2, -0.4, 0.9]),
    "both rule it out": ([0.3, -INF, 1.0], [0.2, -INF, 0.9]),
    "both are the same point": ([-INF, 2.0, -INF], [-INF, 1.0, -INF]),
    "student rules it out": ([0.3, 0.1, 1.0], [0.2, -INF, 0.9]),
    "points apart": ([0.0, -INF, -INF], [-INF, 0.0, -INF]),
}


@pytest.mark.parametrize("of", KINDS, ids=str)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_probabilities(of: Divergence, edge: str, dtype: torch.dtype) -> None:
    """The value is the definition's, infinity included; where it is finite, so is the gradient, and
    it is the definition's too."""
    t = 2.0
    p_row, q_row = EDGES[edge]
    p, q = naive.softmax(p_row, t), naive.softmax(q_row, t)
    wanted = naive.divergence(of.kind, of.beta, p, q)
    student = torch.tensor([q_row], dtype=dtype, requires_grad=True)
    got = divergence(DenseSignal(torch.tensor([p_row], dtype=dtype)), student, t, of=of).total
    assert float(got.detach()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert not math.isnan(float(got.detach()))
    if math.isinf(wanted):
        return
    got.backward()
    assert student.grad is not None
    free = [v for v, x in enumerate(q_row) if x > -INF]  # a ruled-out logit has nowhere to go
    right = naive.gradient(of.kind, of.beta, [p[v] for v in free], [q_row[v] for v in free], t)
    if all(p[v] == 0 for v in range(3) if v not in free):
        assert [float(student.grad[0, v]) for v in free] == pytest.approx(right, abs=1e-6)
    assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_which_divergences_are_infinite_where_the_teacher_rules_out_a_class(of: Divergence) -> None:
    value = measured(of, torch.tensor([[0.0, -INF]]), torch.tensor([[0.0, 0.0]]))
    assert math.isinf(value) == infinite_at_zero(of)


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_far_apart_in_float32_is_finite_with_a_finite_gradient(of: Divergence) -> None:
    """Probabilities that underflow count as 0, in the value and on the way back."""
    teacher, student = torch.tensor([[0.0, 500.0, -INF]]), torch.tensor([[400.0, -300.0, -800.0]])
    student.requires_grad_(True)
    total = divergence(DenseSignal(teacher), student, of=of).total
    total.backward()
    assert student.grad is not None
    assert bool(total.isfinite())
    assert bool(student.grad.isfinite().all())


SEEDS = st.integers(0, 10_000)
TEMPERATURES = st.floats(0.3, 6.0)


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, t=TEMPERATURES)
def test_zero_for_equals_and_positive_else(seed: int, t: float) -> None:
    teacher, student = logits(seed, 3, V), logits(seed + 1, 3, V)
    shifted = teacher + logits(seed + 2, 3, 1)  # logits are known up to a constant
    for of in TRUE:
        assert measured(of, teacher, shifted, t) == pytest.approx(0.0, abs=1e-10)
        assert measured(of, teacher, student, t) > 0


@settings(deadline=None, max_examples=25)
@given(seed=SEEDS, t=TEMPERATURES, beta=st.floats(0.01, 0.99))
def test_identities_and_bounds(seed: int, t: float, beta: float) -> None:
    p, q = logits(seed, 1, V, scale=4.0), logits(seed + 1, 1, V, scale=4.0)
    forward = measured(Divergence("forward_kl"), p, q, t)
    tv = measured(Divergence("total_variation"), p, q, t)
    # KL(q || p) is KL with the roles exchanged; JSD at 1/2 does not know the roles.
    assert measured(Divergence("reverse_kl"), p, q, t) == pytest.approx(
        measured(Divergence("forward_kl"), q, p, t)
    )
    half = measured(Divergence("jsd", 0.5), p, q, t)
    assert half == pytest.approx(measured(Divergence("jsd", 0.5), q, p, t))
    assert half <= math.log(2) + 1e-12
    # In general the bound is the entropy of a coin with bias beta, and the roles swap with it.
    jsd = measured(Divergence("jsd", beta), p, q, t)
    assert jsd <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12
    assert jsd == pytest.approx(measured(Divergence("jsd", 1 - beta), q, p, t), abs=1e-12)
    # JSD is made of the two skewed ones.
    skew = measured(Divergence("skew_forward_kl", beta), p, q, t)
    back = measured(Divergence("skew_reverse_kl", 1 - beta), p, q, t)
    assert jsd == pytest.approx(beta * skew + (1 - beta) * back, abs=1e-12)
    assert skew <= min((1 - beta) * forward, -math.log(beta)) + 1e-12  # convexity; m >= beta p
    assert 0 <= tv <= 1
    assert 2 * tv**2 <= forward + 1e-12  # Pinsker
    assert half <= math.log(2) * tv + 1e-12  # Lin 1991
    # Cross-entropy is KL and the teacher's entropy, in value; in gradient it is KL.
    p_t = (p / t).softmax(-1)
    entropy = float(-(p_t * p_t.log()).sum())
    assert measured(Divergence("cross_entropy"), p, q, t) == pytest.approx(forward + entropy)


def test_limits_of_beta() -> None:
    """KL(p || q) - KL(p || beta p + (1 - beta) q) = sum p log(1 + beta (p/q - 1)) <= beta chi^2,
    and the JSD's quotient is off by no more than a few of that."""
    p, q = logits(5, 4, V), logits(6, 4, V)
    forward = measured(Divergence("forward_kl"), p, q)
    reverse = measured(Divergence("reverse_kl"), p, q)
    a, b = p.softmax(-1), q.softmax(-1)
    chi = float(((a - b) ** 2 / b + (a - b) ** 2 / a).sum())
    for small in (1e-4, 1e-6):
        scale, near = small * (1 - small), 4 * small * (chi + forward + reverse)
        for kind, beta, limit, by in (
            ("jsd", small, forward, scale),
            ("jsd", 1 - small, reverse, scale),
            ("skew_forward_kl", small, forward, 1.0),
            ("skew_reverse_kl", small, reverse, 1.0),
        ):
            value = measured(Divergence(kind, beta), p, q) / by  # type: ignore[arg-type]
            assert value == pytest.approx(limit, abs=near)
    assert measured(Divergence("jsd", 0.0), p, q) == forward
    assert measured(Divergence("jsd", 1.0), p, q) == reverse


@pytest.mark.parametrize("of", TRUE, ids=str)
def test_high_temperature(of: Divergence) -> None:
    """For p near q a smooth D is f''(1)/2 * sum (p - q)^2 / q, so that T^2 D tends to
    f''(1) / (2 V) * sum (z - v)^2 over centred logits; total variation is of first order: T D tends
    to 1/(2 V) * sum |z - v|."""
    p, q = logits(7, 5, V), logits(8, 5, V)
    apart = (p - p.mean(-1, keepdim=True)) - (q - q.mean(-1, keepdim=True))
    b, t = of.beta, 1e4
    if of.kind == "total_variation":
        assert t * measured(of, p, q, t) == pytest.approx(
            float(apart.abs().sum()) / 2 / V, rel=1e-2
        )
        return
    inner = {"jsd": b * (1 - b) or 1.0, "skew_forward_kl": (1 - b) ** 2}
    inner["skew_reverse_kl"] = inner["skew_forward_kl"]
    wanted = inner.get(of.kind, 1.0) * float((apart**2).sum()) / 2 / V
    assert t * t * measured(of, p, q, t) == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_half_precision_is_summed_in_float32(of: Divergence) -> None:
    p, q = logits(9, 64, V).bfloat16(), logits(10, 64, V).bfloat16()
    low = divergence(DenseSignal(p), q, 2.0, of=of).total
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(measured(of, p.double(), q.double(), 2.0), rel=1e-4)


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_the_objective_weighs_it_with_t_squared_once(of: Divergence) -> None:
    p, q = logits(11, 4, V), logits(12, 4, V)
    targets = torch.tensor([1, -100, 0, 5])
    got = soft_target_loss(
        q, targets, DenseSignal(p), alpha=0.3, distillation_temperature=3.0, num_items=7, of=of
    )
    soft, hard = 0.0, 0.0
    for row in (0, 2, 3):
        p_t, q_t = (naive.softmax(x[row].tolist(), 3.0) for x in (p, q))
        soft += naive.divergence(of.kind, of.beta, p_t, q_t)
        hard -= math.log(naive.softmax(q[row].tolist())[int(targets[row])])
    assert float(got.divergence_sum) == pytest.approx(soft)
    assert float(got.cross_entropy_sum) == pytest.approx(hard)
    assert float(got.loss) == pytest.approx((0.3 * 9 * soft + 0.7 * hard) / 7)


def test_coefficients() -> None:
    assert divergence_of("jsd") == Divergence("jsd", 0.5)
    assert divergence_of("skew_reverse_kl") == Divergence("skew_reverse_kl", 0.1)
    assert divergence_of("jsd", 0.2) == Divergence("jsd", 0.2)
    for kind, beta in (("jsd", 1.5), ("jsd", -0.1), ("skew_forward_kl", 1.0), ("jsd", math.nan)):
        with pytest.raises(ValueError, match="beta"):
            Divergence(kind, beta)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown divergence 'kl'; choose among forward_kl, "):
        Divergence("kl")  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [0.0, -1.0, math.nan])
def test_temperatures_that_are_not_positive(t: float) -> None:
    with pytest.raises(ValueError, match="distillation_temperature must be positive"):
        measured(Divergence(), torch.zeros(1, 2), torch.zeros(1, 2), t)
