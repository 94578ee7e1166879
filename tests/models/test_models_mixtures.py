"""Ensembles of signals against plain loops over whole distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.models.head import Head
from stillhouse.models.mixtures import Combine, combined
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
    sparsify,
)

V = 11
HOWS: tuple[Combine, ...] = ("mean_logits", "mean_probabilities")


def _logits(n: int, seed: int) -> torch.Tensor:
    return 2 * torch.randn(n, V, generator=torch.manual_seed(seed), dtype=torch.float64)


def _distribution(signal: TeacherSignal, at: int) -> list[float]:
    """The whole distribution at a position; a sparse tail is spread evenly."""
    if isinstance(signal, DenseSignal):
        z = signal.logits[at].tolist()
        total = sum(math.exp(x) for x in z)
        return [math.exp(x) / total for x in z]
    assert isinstance(signal, SparseSignal)
    kept = dict(
        zip(signal.token_ids[at].tolist(), signal.log_probs[at].exp().tolist(), strict=True)
    )
    rest = math.exp(float(signal.tail_log_mass[at]))
    return [kept[i] if i in kept else rest / (V - len(kept)) for i in range(V)]


def _naive(rows: list[list[float]], w: list[float], how: Combine) -> list[float]:
    if how == "mean_probabilities":
        return [sum(a * p[i] for a, p in zip(w, rows, strict=True)) for i in range(V)]
    product = [math.prod(p[i] ** a for a, p in zip(w, rows, strict=True)) for i in range(V)]
    return [x / sum(product) for x in product]


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([0, 1, 3, 5, V]), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_any_mix_of_dense_and_sparse_is_the_definition(
    how: Combine, kinds: list[int], seed: int
) -> None:
    """A kind is the number of kept entries; 0 is dense."""
    n = 3
    signals: list[TeacherSignal] = []
    for i, k in enumerate(kinds):
        dense = DenseSignal(_logits(n, seed + i))
        signals.append(sparsify(dense, k) if k else dense)
    weights = torch.rand(n, len(kinds), generator=torch.manual_seed(seed)) + 0.1
    got = combined(signals, weights, how, V)
    for at in range(n):
        w = (weights[at] / weights[at].sum()).tolist()
        wanted = _naive([_distribution(s, at) for s in signals], w, how)
        if isinstance(got, SparseSignal):
            ids = got.token_ids[at].tolist()
            assert len(set(ids)) == len(ids)
            total = float(got.log_probs[at].exp().sum() + got.tail_log_mass[at].exp())
            assert total == pytest.approx(1.0, abs=1e-5)
            assert set().union(
                *(s.token_ids[at].tolist() for s in signals if isinstance(s, SparseSignal))
            ) <= set(ids)
            found = got.log_probs[at].exp().tolist()
            assert found == pytest.approx([wanted[i] for i in ids], abs=1e-5)
        else:
            assert _distribution(got, at) == pytest.approx(wanted, abs=1e-6)


def test_mean_logits_is_the_mean_of_logits() -> None:
    a, b = _logits(4, 1), _logits(4, 2)
    got = combined([DenseSignal(a), DenseSignal(b)], torch.tensor([1.0, 1.0]), "mean_logits")
    assert isinstance(got, DenseSignal)
    wanted = ((a + b) / 2).log_softmax(-1)
    torch.testing.assert_close(got.logits.log_softmax(-1), wanted, rtol=1e-6, atol=1e-6)


def test_hidden_states_count_as_all_logits() -> None:
    head = Head(torch.randn(V, 3, generator=torch.manual_seed(0)))
    hidden = torch.randn(5, 3, generator=torch.manual_seed(1))
    got = combined([HiddenSignal(hidden, head)], torch.ones(1), "mean_probabilities")
    assert isinstance(got, DenseSignal)
    torch.testing.assert_close(got.logits.log_softmax(-1), (hidden @ head.weight.T).log_softmax(-1))


@pytest.mark.parametrize("how", HOWS)
def test_a_teacher_of_weight_zero_does_not_count(how: Combine) -> None:
    sure = torch.full((2, V), -torch.inf)
    sure[:, 0] = 0.0
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    got = combined([DenseSignal(_logits(2, 1)), DenseSignal(sure)], weights, how)
    assert isinstance(got, DenseSignal)
    assert _distribution(got, 0) == pytest.approx(_distribution(DenseSignal(_logits(2, 1)), 0))


def test_draws_mix_to_the_mixture_in_expectation() -> None:
    one = SampledSignal(torch.tensor([[3, 4]]), torch.tensor([[0.5, 0.5]]))
    two = SampledSignal(torch.tensor([[4]]), torch.tensor([[1.0]]))
    got = combined([one, two], torch.tensor([3.0, 1.0]), "mean_probabilities")
    assert isinstance(got, SampledSignal)
    belief = torch.zeros(V).index_add(0, got.token_ids[0], got.weights[0])
    assert belief[3] == pytest.approx(0.375)
    assert belief[4] == pytest.approx(0.625)


def test_what_cannot_be_combined_is_refused() -> None:
    dense, drawn = DenseSignal(_logits(1, 0)), SampledSignal(torch.tensor([[0]]), torch.ones(1, 1))
    one = torch.ones(1)
    with pytest.raises(ValueError, match="at least one"):
        combined([], one, "mean_logits")
    with pytest.raises(ValueError, match="different positions"):
        combined([dense, DenseSignal(_logits(2, 0))], torch.ones(2), "mean_logits")
    with pytest.raises(ValueError, match="different vocabularies"):
        combined([dense, DenseSignal(torch.zeros(1, 3))], torch.ones(2), "mean_logits")
    with pytest.raises(ValueError, match="must count everywhere"):
        combined([dense], torch.zeros(1), "mean_logits")
    hot = SampledSignal(torch.tensor([[0]]), torch.ones(1, 1), distillation_temperature=2.0)
    with pytest.raises(ValueError, match="tempered"):
        combined([hot, hot], torch.ones(2), "mean_probabilities")
    with pytest.raises(ValueError, match="only be combined with sampled"):
        combined([dense, drawn], torch.ones(2), "mean_probabilities")
    with pytest.raises(ValueError, match="only be mixed"):
        combined([drawn], one, "mean_logits")
    with pytest.raises(ValueError, match="size must be given"):
        combined([sparsify(dense, 2)], one, "mean_logits")
