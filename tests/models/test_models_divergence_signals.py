"""Every divergence of sparse, sampled and hidden-state beliefs, under masks, splits and padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import naive_divergences as naive
from stillhouse.core.errors import UserError
from stillhouse.models.divergence import divergence, soft_target_loss
from stillhouse.models.divergence_kind import SAMPLED_KINDS, Divergence
from stillhouse.models.drawing import draw_signal
from stillhouse.models.head import Head
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SparseSignal,
    TeacherSignal,
    sparsify,
    without_tail,
)

V, H = 7, 3
INF = float("inf")
KINDS = [Divergence(kind, beta) for kind, beta in naive.CASES]  # type: ignore[arg-type]


def logits(seed: int, *shape: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=g, dtype=torch.float64)


def signals(seed: int, *positions: int, t: float) -> dict[str, TeacherSignal]:
    """One teacher in every form."""
    head = Head(logits(seed, V, H), logits(seed + 1, V), scale=0.5, softcap=4.0)
    hidden = HiddenSignal(logits(seed + 2, *positions, H), head)
    g = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(*positions, 5, generator=g, dtype=torch.float64)
    return {
        "dense": hidden.dense(),
        "sparse": sparsify(hidden.dense(), 3),
        "sampled": draw_signal(hidden, uniforms, distillation_temperature=t),
        "hidden": hidden,
    }


PAIRS = [
    (name, of)
    for of in KINDS
    for name in ("dense", "sparse", "sampled", "hidden")
    if name != "sampled" or of.kind in SAMPLED_KINDS
]


@pytest.mark.parametrize("of", KINDS, ids=str)
@pytest.mark.parametrize("t", [0.7, 1.0, 3.0])
def test_sparse_is_the_divergence_of_the_coarse_grained(of: Divergence, t: float) -> None:
    teacher, student, k = logits(0, 4, V), logits(1, 4, V), 3
    wanted = 0.0
    for p_row, q_row in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = naive.softmax(p_row), naive.softmax(q_row)
        order = sorted(range(V), key=lambda v: -p[v])
        coarse = [[x[v] for v in order[:k]] + [sum(x[v] for v in order[k:])] for x in (p, q)]
        wanted += naive.divergence(of.kind, of.beta, *(naive.power(x, t) for x in coarse))
    got = divergence(sparsify(DenseSignal(teacher), k), student, t, of=of).total
    assert float(got) == pytest.approx(wanted, rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_coarse_graining_bounds_from_below_and_tightens_with_k(seed: int) -> None:
    """Data-processing inequality: what is merged cannot be told apart any better."""
    teacher, student = DenseSignal(logits(seed, 2, V)), logits(seed + 1, 2, V)
    for of in KINDS:
        values = [
            float(divergence(sparsify(teacher, k), student, of=of).total) for k in range(1, 8)
        ]
        dense = float(divergence(teacher, student, of=of).total)
        for few, more in pairwise(values):
            assert few <= more + 1e-12
        assert values[-1] == pytest.approx(dense)


def test_what_a_sparse_kl_leaves_out_is_the_kl_inside_the_tail() -> None:
    """Chain rule: KL = KL over K + 1 outcomes + p(tail) * KL(p | tail || q | tail)."""
    teacher, student = logits(2, 1, V), logits(3, 1, V)
    signal = sparsify(DenseSignal(teacher), 4)
    tail = [v for v in range(V) if v not in signal.token_ids[0].tolist()]
    inside = divergence(DenseSignal(teacher[:, tail]), student[:, tail]).total
    whole = divergence(DenseSignal(teacher), student).total
    rest = signal.tail_log_mass.exp().squeeze() * inside
    torch.testing.assert_close(divergence(signal, student).total + rest, whole)


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_without_its_tail_a_teacher_is_another_teacher(of: Divergence) -> None:
    """Renormalised top-k is, at T = 1, the dense divergence from the cut-off teacher."""
    teacher, student = logits(4, 3, V), logits(5, 3, V)
    signal = sparsify(DenseSignal(teacher), 3)
    cut = torch.full_like(teacher, -INF).scatter(
        -1, signal.token_ids, teacher.gather(-1, signal.token_ids)
    )
    wanted = divergence(DenseSignal(cut), student, of=of).total
    torch.testing.assert_close(divergence(without_tail(signal), student, of=of).total, wanted)


@pytest.mark.parametrize(("name", "of"), PAIRS, ids=str)
def test_gradients_agree_with_finite_differences(name: str, of: Divergence) -> None:
    t = 1.7
    signal, student = signals(6, 4, t=t)[name], logits(9, 4, V).requires_grad_(True)
    mask = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda x: divergence(signal, x, t, mask, of).total, (student,))


@pytest.mark.parametrize(("name", "of"), PAIRS, ids=str)
def test_masks_splits_padding_and_packing_change_nothing(name: str, of: Divergence) -> None:
    t, rows, width = 2.0, 4, 5
    signal, student = signals(10, rows, width, t=t)[name], logits(13, rows, width, V)
    g = torch.Generator().manual_seed(0)
    targets = torch.randint(0, V, (rows, width), generator=g)
    targets[torch.rand(rows, width, generator=g) < 0.4] = -100
    keep = targets != -100

    def loss(s: TeacherSignal, x: Tensor, y: Tensor) -> Tensor:
        return soft_target_loss(
            x, y, s, alpha=0.5, distillation_temperature=t, num_items=int(keep.sum()), of=of
        ).loss

    whole = loss(signal, student, targets)
    split = sum(
        loss(signal.select(torch.arange(a, b)), student[a:b], targets[a:b])
        for a, b in pairwise([0, 1, 3, 4])
    )
    packed = loss(signal.select(keep), student[keep], targets[keep])
    junk = student.clone()
    junk[~keep] = float("nan")  # what is masked is not even looked at
    order = torch.tensor([2, 0, 3, 1])
    moved = loss(signal.select(order), student[order], targets[order])
    for other in (split, packed, loss(signal, junk, targets), moved):
        torch.testing.assert_close(other, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "of"), PAIRS, ids=str)
def test_nothing_valid_is_zero_with_a_zero_gradient(name: str, of: Divergence) -> None:
    student = logits(14, 2, 3, V).requires_grad_(True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    got = divergence(signals(15, 2, 3, t=1.0)[name], student, 1.0, nothing, of)
    got.total.backward()
    assert (float(got.total.detach()), int(got.items)) == (0.0, 0)
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))
    ignored = torch.full((2, 3), -100)
    for number in (0, torch.tensor(0)):  # the whole step has no target
        loss = soft_target_loss(
            student,
            ignored,
            signals(15, 2, 3, t=1.0)[name],
            alpha=0.5,
            distillation_temperature=1.0,
            num_items=number,
            of=of,
        ).loss
        assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_hidden_states_are_their_logits(of: Divergence) -> None:
    found = signals(16, 3, t=2.0)
    student = logits(19, 3, V)
    by = [divergence(found[name], student, 2.0, of=of).total for name in ("hidden", "dense")]
    assert float(by[0]) == float(by[1])


@pytest.mark.parametrize("of", KINDS, ids=str)
def test_sparse_edges(of: Divergence) -> None:
    """A teacher without tail, a kept entry it rules out, and a student with nothing in the tail."""
    signal = SparseSignal(torch.tensor([[1, 0]]), torch.tensor([[0.0, -INF]]), torch.tensor([-INF]))
    for row, q in (([0.0, 1.0, 0.5], None), ([0.0, 1.0, -INF], [0.0, 1.0])):
        student = torch.tensor([row], requires_grad=True)
        total = divergence(signal, student, of=of).total
        p = [0.0, 1.0, 0.0] if q is None else [0.0, 1.0]
        wanted = naive.divergence(of.kind, of.beta, p, naive.softmax(q or row))
        assert float(total.detach()) == pytest.approx(wanted, rel=1e-6)
        if wanted < INF:
            total.backward()
            assert student.grad is not None
            assert bool(student.grad.isfinite().all())


@pytest.mark.parametrize("of", [d for d in KINDS if d.kind not in SAMPLED_KINDS], ids=str)
def test_draws_refuse_what_they_cannot_estimate(of: Divergence) -> None:
    with pytest.raises(UserError, match=r"train\.divergence.*forward_kl and cross_entropy"):
        divergence(signals(20, 2, t=1.0)["sampled"], logits(1, 2, V), of=of)


def test_draws_serve_one_temperature() -> None:
    with pytest.raises(UserError, match=r"teacher at 2 \(got 1\.0\).*draw again"):
        divergence(signals(20, 2, t=2.0)["sampled"], logits(1, 2, V), 1.0)


@pytest.mark.parametrize("name", ["dense", "hidden"])
def test_two_vocabularies_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"has 9 outputs where its teacher has 7"):
        divergence(signals(21, 2, t=1.0)[name], logits(1, 2, 9))


def test_positions_must_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        divergence(signals(22, 3, t=1.0)["sparse"], logits(1, 2, V))
