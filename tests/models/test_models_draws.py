"""Draws from a teacher: unbiased by exact enumeration, and by simulation within a derived bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import naive_divergences as naive
from stillhouse.models.divergence import divergence
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.drawing import draw_signal, merged
from stillhouse.models.signals import DenseSignal, SampledSignal, sparsify, without_tail

TEACHER = [1.2, 0.1, -0.7, 0.4]
STUDENT = [0.2, 0.6, -0.1, -1.0]
V = len(TEACHER)


def gradient(signal: object, t: float = 1.0, kind: str = "forward_kl") -> tuple[Tensor, float]:
    student = torch.tensor([STUDENT], dtype=torch.float64, requires_grad=True)
    total = divergence(signal, student, t, of=Divergence(kind)).total  # type: ignore[arg-type]
    total.backward()
    assert student.grad is not None
    return student.grad[0], float(total.detach())


def every_pair(t: float, exponent: float, kind: str) -> tuple[Tensor, float]:
    """Exact expectation of gradient and value over all ordered pairs of draws, weights by hand."""
    p = naive.softmax(TEACHER, t)
    r = naive.power(p, 1 / exponent)
    mean, value = torch.zeros(V, dtype=torch.float64), 0.0
    for ids in itertools.product(range(V), repeat=2):
        weights = [p[v] / r[v] / 2 for v in ids]
        signal = merged(
            SampledSignal(torch.tensor([ids]), torch.tensor([weights], dtype=torch.float64), t)
        )
        found = gradient(signal, t, kind)
        chance = r[ids[0]] * r[ids[1]]
        mean += chance * found[0]
        value += chance * found[1]
    return mean, value


@pytest.mark.parametrize("t", [1.0, 2.0])
@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_expected_gradient_is_the_dense_one(t: float, exponent: float, kind: str) -> None:
    dense = gradient(DenseSignal(torch.tensor([TEACHER], dtype=torch.float64)), t, kind)
    mean, value = every_pair(t, exponent, kind)
    torch.testing.assert_close(mean, dense[0], rtol=0, atol=1e-12)
    if kind == "cross_entropy":
        assert value == pytest.approx(dense[1], abs=1e-12)
    else:
        assert value > dense[1]  # Jensen: the draws' own KL is the larger


def test_top_k_gradients_are_biased_by_what_was_cut() -> None:
    """Renormalised top-k is off by exactly p - p_cut. Coarse-grained top-k hands the tail's pull
    out by the student's shares of the tail, whatever the teacher's were."""
    teacher = DenseSignal(torch.tensor([TEACHER], dtype=torch.float64))
    dense, _ = gradient(teacher)
    p, q = (torch.tensor(naive.softmax(x), dtype=torch.float64) for x in (TEACHER, STUDENT))
    top = sparsify(teacher, 2)
    kept = torch.zeros(V, dtype=torch.float64)
    kept[top.token_ids[0]] = p[top.token_ids[0]]
    cut, _ = gradient(without_tail(top))
    torch.testing.assert_close(dense - cut, kept / kept.sum() - p, rtol=0, atol=1e-12)
    assert float((cut - dense).abs().max()) > 0.1
    coarse, _ = gradient(top)
    tail = kept == 0
    torch.testing.assert_close(coarse[~tail], dense[~tail], rtol=0, atol=1e-12)
    shared = q[tail] - q[tail] / q[tail].sum() * p[tail].sum()
    torch.testing.assert_close(coarse[tail], shared, rtol=0, atol=1e-12)
    assert float((coarse - dense).abs().max()) > 0.005


def test_simulated_draws_meet_the_dense_gradient_and_top_k_does_not() -> None:
    """The gradient's error is sum_v (w_v - p_v) e_v, a mean of n independent vectors onehot - p.

    Its mean square is (1 - sum p^2) / n, and one draw moves its length by at most sqrt(2) / n, so
    (McDiarmid) P(length >= 1 / sqrt(n) + s) <= exp(-n s^2): with s = sqrt(ln(1e9) / n) a right
    sampler fails once in 1e9.
    """
    v, draws, seeds = 50, 12, 4000
    g = torch.Generator().manual_seed(0)
    row = 1.5 * torch.randn(1, v, generator=g, dtype=torch.float64)
    student = torch.randn(1, v, generator=g, dtype=torch.float64)
    uniforms = torch.rand(seeds, draws, generator=g, dtype=torch.float64)
    teacher = DenseSignal(row)

    def mean_gradient(signal: object, rows: int) -> Tensor:
        x = student.expand(rows, v).clone().requires_grad_(True)
        divergence(signal, x).total.backward()  # type: ignore[arg-type]
        assert x.grad is not None
        return x.grad.mean(0)

    dense = mean_gradient(teacher, 1)
    sampled = mean_gradient(draw_signal(DenseSignal(row.expand(seeds, v)), uniforms), seeds)
    n = seeds * draws
    bound = (1 + math.sqrt(math.log(1e9))) / math.sqrt(n)
    assert float((sampled - dense).norm()) < bound
    for biased in (without_tail(sparsify(teacher, draws)), sparsify(teacher, draws)):
        assert float((mean_gradient(biased, 1) - dense).norm()) > bound


@pytest.mark.parametrize("t", [1.0, 3.0])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_uniform_numbers_meet_each_id_by_its_share(t: float, exponent: float) -> None:
    """On an even grid of M numbers, an interval of length r holds M r of them, give or take one."""
    row = [0.3, -math.inf, 2.0, -1.0, -math.inf]
    p = naive.softmax(row, t)
    shares = [x**exponent for x in p]
    shares = [x / sum(shares) for x in shares]
    m = 2000
    uniforms = ((torch.arange(m, dtype=torch.float64) + 0.5) / m)[:, None]
    teacher = DenseSignal(torch.tensor([row], dtype=torch.float64).expand(m, -1))
    got = draw_signal(
        teacher, uniforms, distillation_temperature=t, proposal_temperature=1 / exponent
    )
    for v, share in enumerate(shares):
        met = got.token_ids == v
        assert abs(int(met.sum()) - m * share) <= 1
        if share:
            torch.testing.assert_close(
                got.weights[met], torch.full((int(met.sum()),), p[v] / share, dtype=torch.float64)
            )
    assert (got.distillation_temperature, got.vocabulary_size) == (t, 5)


def test_equal_draws_are_merged() -> None:
    got = merged(
        SampledSignal(
            torch.tensor([[4, 2, 4, 4], [0, 3, 0, 1]]),
            torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]),
        )
    )
    assert got.token_ids.tolist() == [[2, 4, 0, 0], [0, 1, 3, 0]]
    torch.testing.assert_close(
        got.weights, torch.tensor([[0.2, 0.8, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]])
    )


def test_a_certain_teacher_is_drawn_exactly_and_the_edges_of_the_line_are_safe() -> None:
    row = torch.tensor([[-math.inf, 0.0, -math.inf]])
    got = draw_signal(
        DenseSignal(row), torch.tensor([[0.0, 0.5, 1.0 - 2**-53]], dtype=torch.float64)
    )
    assert got.token_ids.tolist() == [[1, 0, 0]]
    assert got.weights.tolist() == [[1.0, 0.0, 0.0]]
    assert float(divergence(got, torch.tensor([[-math.inf, 0.0, -math.inf]])).total) == 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distillation_temperature": 0.0}, "distillation_temperature"),
        ({"proposal_temperature": 0.0}, "proposal_temperature"),
        ({"numbers": torch.zeros(1, 0)}, "at least one draw"),
    ],
)
def test_misuse_is_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw_signal(DenseSignal(torch.zeros(1, 2)), **{"numbers": torch.zeros(1, 1), **changes})  # type: ignore[arg-type]
