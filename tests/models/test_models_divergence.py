"""Divergences against naive float64 references, and identities they must obey."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.models.divergence import (
    IGNORE_INDEX,
    cross_entropy,
    divergence,
    forward_kl,
    forward_kl_from_probabilities,
    soft_target_loss,
)
from stillhouse.models.signals import (
    DenseSignal,
    SparseSignal,
    from_class_probabilities,
    sparsify,
)

V = 7


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    masses = [math.exp(x - top) for x in row]
    return [m / sum(masses) for m in masses]


def naive_objective(
    teacher: Tensor, student: Tensor, targets: Tensor, *, alpha: float, t: float, n: int
) -> float:
    """Straight from the definition, in Python floats."""
    total = 0.0
    for p_row, q_row, y in zip(
        teacher.reshape(-1, V).tolist(),
        student.reshape(-1, V).tolist(),
        targets.reshape(-1).tolist(),
        strict=True,
    ):
        if y == IGNORE_INDEX:
            continue
        p, q = softmax([x / t for x in p_row]), softmax([x / t for x in q_row])
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        total += alpha * t * t * kl - (1 - alpha) * math.log(softmax(q_row)[y])
    return total / n


def naive_gradient(
    teacher: Tensor, student: Tensor, targets: Tensor, *, alpha: float, t: float, n: int
) -> Tensor:
    """By hand: dKL/dz = (q_T - p_T) / T and dCE/dz = q - onehot."""
    rows = []
    for p_row, q_row, y in zip(
        teacher.reshape(-1, V).tolist(),
        student.reshape(-1, V).tolist(),
        targets.reshape(-1).tolist(),
        strict=True,
    ):
        if y == IGNORE_INDEX:
            rows.append([0.0] * V)
            continue
        p, q_t = softmax([x / t for x in p_row]), softmax([x / t for x in q_row])
        q = softmax(q_row)
        rows.append(
            [(alpha * t * (q_t[v] - p[v]) + (1 - alpha) * (q[v] - (v == y))) / n for v in range(V)]
        )
    return torch.tensor(rows, dtype=torch.float64).reshape(student.shape)


def data(seed: int = 0, batch: int = 4, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(batch, tokens, V, generator=g, dtype=torch.float64)
    student = 3 * torch.randn(batch, tokens, V, generator=g, dtype=torch.float64)
    targets = torch.randint(0, V, (batch, tokens), generator=g)
    targets[torch.rand(batch, tokens, generator=g) < 0.3] = IGNORE_INDEX
    return teacher, student, targets


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0])
def test_objective_and_gradient_equal_the_definition(alpha: float, t: float) -> None:
    teacher, student, targets = data()
    student.requires_grad_(True)
    n = int((targets != IGNORE_INDEX).sum())
    got = soft_target_loss(
        student,
        targets,
        DenseSignal(teacher) if alpha else None,
        alpha=alpha,
        distillation_temperature=t,
        num_items=n,
    )
    got.loss.backward()
    assert float(got.loss.detach()) == pytest.approx(
        naive_objective(teacher, student, targets, alpha=alpha, t=t, n=n), rel=1e-6
    )
    assert student.grad is not None
    torch.testing.assert_close(
        student.grad,
        naive_gradient(teacher, student, targets, alpha=alpha, t=t, n=n),
        rtol=1e-6,
        atol=1e-12,
    )
    assert int(got.items) == n


def test_gradients_agree_with_finite_differences() -> None:
    teacher, student, targets = data(1, 2, 3)
    student.requires_grad_(True)
    for signal in (DenseSignal(teacher), sparsify(DenseSignal(teacher), 3)):

        def loss(x: Tensor, signal: DenseSignal | SparseSignal = signal) -> Tensor:
            return soft_target_loss(
                x, targets, signal, alpha=0.4, distillation_temperature=2.0, num_items=3
            ).loss

        assert torch.autograd.gradcheck(loss, (student,))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    t=st.floats(0.5, 5.0),
    alpha=st.floats(0, 1),
    cuts=st.sets(st.integers(1, 7)),
)
def test_any_split_into_micro_batches_gives_the_same(
    seed: int, t: float, alpha: float, cuts: set[int]
) -> None:
    teacher, student, targets = data(seed, batch=8)
    n = int((targets != IGNORE_INDEX).sum())

    def loss(rows: slice) -> Tensor:
        return soft_target_loss(
            student[rows],
            targets[rows],
            DenseSignal(teacher[rows]),
            alpha=alpha,
            distillation_temperature=t,
            num_items=max(n, 1),
        ).loss

    edges = [0, *sorted(cuts), 8]
    parts = sum(loss(slice(a, b)) for a, b in pairwise(edges))
    torch.testing.assert_close(parts, loss(slice(0, 8)), rtol=1e-9, atol=1e-12)


def test_padding_and_packing_change_nothing() -> None:
    teacher, student, targets = data(2)
    keep = targets != IGNORE_INDEX
    n = int(keep.sum())
    pad = torch.full((4, 3), IGNORE_INDEX)
    junk = torch.full((4, 3, V), 1e4, dtype=torch.float64)

    def loss(s: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return soft_target_loss(
            s, y, DenseSignal(t), alpha=0.5, distillation_temperature=2.0, num_items=n
        ).loss

    whole = loss(student, targets, teacher)
    padded = loss(
        torch.cat([student, junk], 1), torch.cat([targets, pad], 1), torch.cat([teacher, -junk], 1)
    )
    packed = loss(student[keep], targets[keep], teacher[keep])
    torch.testing.assert_close(padded, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(packed, whole, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), t=st.floats(0.3, 6.0))
def test_kl_is_zero_for_equals_and_positive_else(seed: int, t: float) -> None:
    teacher, student, _ = data(seed)
    shifted = teacher + torch.randn(4, 5, 1, dtype=torch.float64)  # logits up to a constant
    assert float(forward_kl(teacher, shifted, t).total) == pytest.approx(0.0, abs=1e-10)
    assert float(forward_kl(teacher, student, t).total) > 0


def test_probabilities_are_tempered_by_their_power() -> None:
    teacher, student, _ = data(3)
    p = teacher.softmax(-1)
    for t in (0.5, 1.0, 3.0):
        by_logits = forward_kl(teacher, student, t).total
        by_p = forward_kl_from_probabilities(p, student, t).total
        torch.testing.assert_close(by_logits, by_p, rtol=1e-9, atol=0)
        power = p ** (1 / t)
        torch.testing.assert_close(
            (p.log() / t).softmax(-1), power / power.sum(-1, keepdim=True), rtol=1e-9, atol=0
        )


def test_certain_teacher_gives_finite_loss_and_gradient() -> None:
    student = torch.tensor([[0.2, -0.4]], requires_grad=True)
    signal = from_class_probabilities([[1.0, 0.0]])
    got = soft_target_loss(
        student,
        torch.tensor([0]),
        signal,
        alpha=1.0,
        distillation_temperature=2.0,
        num_items=1,
    )
    got.loss.backward()
    expected = -4.0 * (student.detach() / 2).log_softmax(-1)[0, 0]
    torch.testing.assert_close(got.loss, expected)
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_t_squared_keeps_the_gradient_magnitude() -> None:
    """Hinton et al. 2015: for high T the gradient tends to (z - v) / V, whatever T is."""
    teacher, student, targets = data(4)
    targets = targets.clamp_min(0)
    centred = [x - x.mean(-1, keepdim=True) for x in (student, teacher)]
    limit = (centred[0] - centred[1]) / V / targets.numel()
    for t in (200.0, 2000.0):
        x = student.clone().requires_grad_(True)
        soft_target_loss(
            x,
            targets,
            DenseSignal(teacher),
            alpha=1.0,
            distillation_temperature=t,
            num_items=targets.numel(),
        ).loss.backward()
        assert x.grad is not None
        assert float((x.grad - limit).norm() / limit.norm()) < 20 / t


def test_sparse_with_all_entries_is_dense() -> None:
    teacher, student, targets = data(5)
    mask = targets != IGNORE_INDEX
    for t in (0.7, 1.0, 3.0):
        dense = divergence(DenseSignal(teacher), student, t, mask)
        sparse = divergence(sparsify(DenseSignal(teacher), V), student, t, mask)
        torch.testing.assert_close(sparse.total, dense.total, rtol=1e-9, atol=0)


def test_sparse_is_the_kl_of_the_coarse_grained_distributions() -> None:
    teacher, student, _ = data(6)
    k, t = 3, 2.0
    signal = sparsify(DenseSignal(teacher), k)
    total = 0.0
    for row in range(20):
        p = softmax(teacher.reshape(-1, V)[row].tolist())
        q = softmax(student.reshape(-1, V)[row].tolist())
        order = sorted(range(V), key=lambda v: -p[v])
        coarse_p = [p[v] for v in order[:k]] + [sum(p[v] for v in order[k:])]
        coarse_q = [q[v] for v in order[:k]] + [sum(q[v] for v in order[k:])]
        a, b = (
            softmax([math.log(x) / t for x in coarse_p]),
            softmax([math.log(x) / t for x in coarse_q]),
        )
        total += sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
    assert float(divergence(signal, student, t).total) == pytest.approx(total, rel=1e-9)
    coarse = float(divergence(signal, student, 1.0).total)
    assert 0 < coarse <= float(forward_kl(teacher, student).total)


def test_half_precision_is_summed_in_float32() -> None:
    teacher, student, targets = data(7, batch=64)
    low = soft_target_loss(
        student.bfloat16(),
        targets,
        DenseSignal(teacher.bfloat16()),
        alpha=0.5,
        distillation_temperature=2.0,
        num_items=100,
    )
    exact = soft_target_loss(
        student.bfloat16().double(),
        targets,
        DenseSignal(teacher.bfloat16().double()),
        alpha=0.5,
        distillation_temperature=2.0,
        num_items=100,
    )
    assert low.loss.dtype == torch.float32
    assert float(low.loss) == pytest.approx(float(exact.loss), rel=1e-5)


def test_nothing_valid_is_zero_with_a_gradient() -> None:
    teacher, student, targets = data(8)
    student.requires_grad_(True)
    got = soft_target_loss(
        student,
        torch.full_like(targets, IGNORE_INDEX),
        DenseSignal(teacher),
        alpha=0.5,
        distillation_temperature=2.0,
        num_items=9,
    )
    got.loss.backward()
    assert float(got.loss.detach()) == 0.0
    assert int(got.items) == 0
    assert int(cross_entropy(student, torch.full_like(targets, IGNORE_INDEX)).items) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"distillation_temperature": 0.0}, "distillation_temperature"),
        ({"signal": None}, "signal"),
        ({"signal": DenseSignal(torch.zeros(3, V))}, "fit"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "fit"),
    ],
)
def test_misuse_is_named(changes: dict[str, object], words: str) -> None:
    teacher, student, targets = data()
    given_ = {
        "targets": targets,
        "signal": DenseSignal(teacher),
        "alpha": 0.5,
        "distillation_temperature": 2.0,
        "num_items": 1,
        **changes,
    }
    with pytest.raises(ValueError, match=words):
        soft_target_loss(student, **given_)  # type: ignore[arg-type]
