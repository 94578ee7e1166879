"""Feature and sample terms against references written from the papers, and invariances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.train import features, features_samples

B, T, A, D = 3, 5, 2, 4


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.manual_seed(seed))


def _mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)


def _maps(seed: int) -> Tensor:
    """Attention maps as a model gives them: columns of padding are 0."""
    scores = _normal(B, A, T, T, seed=seed).masked_fill(~_mask()[:, None, None, :], -torch.inf)
    return scores.softmax(-1)


def _rotation(width: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(_normal(width, width, seed=seed)).Q


def _dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def _softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def _kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def _huber(x: float) -> float:
    return 0.5 * x * x if abs(x) <= 1 else abs(x) - 0.5


def _less(x: list[float], y: list[float]) -> list[float]:
    return [a - b for a, b in zip(x, y, strict=True)]


def _length(x: list[float]) -> float:
    return math.sqrt(_dot(x, x))


def test_hidden_losses_equal_their_definitions() -> None:
    s, t = _normal(6, 7, seed=1), _normal(6, 7, seed=2)
    squares = cosines = 0.0
    for x, y in zip(s.tolist(), t.tolist(), strict=True):
        squares += _dot(_less(x, y), _less(x, y)) / 7
        cosines += 1 - _dot(x, y) / (_length(x) * _length(y))
    assert features.hidden_mse(s, t).item() == pytest.approx(squares, rel=1e-12)
    assert features.hidden_cosine(s, t).item() == pytest.approx(cosines, rel=1e-12)
    assert features.hidden_cosine(3 * s, 0.2 * t).item() == pytest.approx(cosines, rel=1e-12)
    assert features.hidden_mse(s, s) == 0
    assert features.hidden_cosine(s, s).abs() < 1e-12


def test_attention_losses_equal_their_definitions() -> None:
    s, t = _maps(3), _maps(4)
    kl = squares = 0.0
    for b, i in itertools.product(range(B), range(T)):
        if _mask()[b, i]:
            for a in range(A):
                p, q = t[b, a, i].tolist(), s[b, a, i].tolist()
                kl += _kl(p, q) / A
                squares += _dot(_less(p, q), _less(p, q)) / A
    assert features.attention_kl(s, t, _mask()).item() == pytest.approx(kl, rel=1e-12)
    assert features.attention_mse(s, t, _mask()).item() == pytest.approx(squares, rel=1e-12)
    assert features.attention_kl(s, s, _mask()) == features.attention_mse(s, s, _mask()) == 0


def test_an_attention_of_zero_is_finite_with_its_gradient() -> None:
    """Half precision underflows: the student gives 0 where the teacher does not."""
    s = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], requires_grad=True)
    t = torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]])
    loss = features.attention_kl(s, t, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    assert s.grad.isfinite().all()


def test_activation_attention_equals_its_definition() -> None:
    s, t = _normal(B, T, 6, seed=5), _normal(B, T, 9, seed=6)
    wanted = 0.0
    for b in range(B):
        maps = []
        for x in (s, t):
            q = [_dot(x[b, i].tolist(), x[b, i].tolist()) for i in range(T) if _mask()[b, i]]
            maps.append([value / _length(q) for value in q])
        wanted += _dot(_less(*maps), _less(*maps))
    found = features.activation_attention(s, t, _mask())
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    scaled = features.activation_attention(3 * s, t @ _rotation(9), _mask())
    assert scaled.item() == pytest.approx(wanted, rel=1e-12)
    assert features.activation_attention(s, s, _mask()) == 0


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_equals_its_definition(heads: int) -> None:
    """Unequal widths and head counts: 2 heads of 4 against 3 heads of 4, cut anew."""
    s, t = _normal(B, 2, T, 4, seed=7), _normal(B, 3, T, 4, seed=8)
    wanted = 0.0
    for b in range(B):
        real = [i for i in range(T) if _mask()[b, i]]
        for head in range(heads):
            rows = []
            for x in (s, t):
                width = x.shape[1] * 4 // heads
                joined = x[b].transpose(0, 1).reshape(T, -1)[:, head * width : (head + 1) * width]
                vectors = joined.tolist()
                rows.append(
                    [
                        _softmax([_dot(vectors[i], vectors[j]) / math.sqrt(width) for j in real])
                        for i in real
                    ]
                )
            wanted += sum(_kl(p, q) for q, p in zip(*rows, strict=True)) / heads
    found = features.relation_kl(s, t, _mask(), heads)
    assert found.item() == pytest.approx(wanted, rel=1e-10)


def test_value_relations_do_not_see_rotations() -> None:
    s, t = _normal(B, A, T, D, seed=1), _normal(B, A, T, D, seed=2)
    turned = features.relation_kl(s @ _rotation(D), t @ _rotation(D, 3), _mask(), A)
    assert turned.item() == pytest.approx(features.relation_kl(s, t, _mask(), A).item(), rel=1e-10)
    assert features.relation_kl(s @ _rotation(D), s, _mask(), A).abs() < 1e-12


TOKENS: list[tuple[str, Callable[..., Tensor], tuple[int, ...]]] = [
    ("attention_kl", features.attention_kl, ()),
    ("attention_mse", features.attention_mse, ()),
    ("activation", features.activation_attention, ()),
    ("relation", features.relation_kl, (2,)),
]


def _inputs(name: str) -> tuple[Tensor, Tensor]:
    if name.startswith("attention"):
        return _maps(1), _maps(2)
    if name == "activation":
        return _normal(B, T, 6, seed=1), _normal(B, T, 8, seed=2)
    return _normal(B, A, T, D, seed=1), _normal(B, 1, T, 6, seed=2)


@pytest.mark.parametrize(("name", "function", "more"), TOKENS, ids=[t[0] for t in TOKENS])
def test_padding_and_micro_batches_change_nothing(name: str, function: Any, more: Any) -> None:
    s, t = _inputs(name)
    whole = function(s, t, _mask(), *more)
    apart = sum(function(s[i : i + 1], t[i : i + 1], _mask()[i : i + 1], *more) for i in range(B))
    torch.testing.assert_close(apart, whole, rtol=1e-12, atol=1e-12)
    grow = (0, 2, 0, 2) if name.startswith("attention") else (0, 0, 0, 2)
    padded = [torch.nn.functional.pad(x, grow, value=0.3) for x in (s, t)]
    if name.startswith("attention"):  # a model gives columns of padding no weight
        for x in padded:
            x[..., T:] = 0
    mask = torch.nn.functional.pad(_mask(), (0, 2))
    torch.testing.assert_close(function(*padded, mask, *more), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "function", "more"), TOKENS, ids=[t[0] for t in TOKENS])
def test_gradients_of_token_terms_are_right(name: str, function: Any, more: Any) -> None:
    s, t = _inputs(name)

    def loss(x: Tensor) -> Tensor:
        if name.startswith("attention"):
            x = x.masked_fill(~_mask()[:, None, None, :], -torch.inf).softmax(-1)
        return function(x, t, _mask(), *more)

    if name.startswith("attention"):
        s = _normal(B, A, T, T, seed=5)
    assert torch.autograd.gradcheck(loss, s.requires_grad_())


def test_pools() -> None:
    x = _normal(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(features_samples.pooled(x, mask, "mean")[0], x[0, :2].mean(0))
    torch.testing.assert_close(features_samples.pooled(x, mask, "mean")[1], x[1, 1:].mean(0))
    assert torch.equal(features_samples.pooled(x, mask, "first"), x[[0, 1], [0, 1]])
    assert torch.equal(features_samples.pooled(x, mask, "last"), x[[0, 1], [1, 3]])


def test_rkd_equals_its_definition() -> None:
    s, t = _normal(5, 3, seed=1), _normal(5, 7, seed=2)
    pairs = list(itertools.combinations(range(5), 2))
    psi = []
    for x in (s.tolist(), t.tolist()):
        distances = [_length(_less(x[i], x[j])) for i, j in pairs]
        psi.append([d / (sum(distances) / len(distances)) for d in distances])
    distance = sum(_huber(a - b) for a, b in zip(*psi, strict=True)) / len(pairs)
    assert features_samples.rkd_distance(s, t).item() == pytest.approx(5 * distance, rel=1e-10)

    def cosine(x: list[list[float]], i: int, j: int, k: int) -> float:
        one, other = _less(x[i], x[j]), _less(x[k], x[j])
        return _dot(one, other) / (_length(one) * _length(other))

    triplets = list(itertools.permutations(range(5), 3))
    angle = sum(
        _huber(cosine(s.tolist(), *ijk) - cosine(t.tolist(), *ijk)) for ijk in triplets
    ) / len(triplets)
    assert features_samples.rkd_angle(s, t).item() == pytest.approx(5 * angle, rel=1e-10)


def test_similarity_equals_its_definition() -> None:
    s, t = _normal(4, 3, seed=1), _normal(4, 6, seed=2)
    grams = []
    for x in (s.tolist(), t.tolist()):
        rows = [[_dot(a, b) for b in x] for a in x]
        grams.append([[value / _length(row) for value in row] for row in rows])
    wanted = sum(
        (a - b) ** 2 for p, q in zip(*grams, strict=True) for a, b in zip(p, q, strict=True)
    )
    found = features_samples.similarity_preserving(s, t)
    assert found.item() == pytest.approx(4 * wanted / 4**2, rel=1e-10)


@pytest.mark.parametrize("grouped", [False, True])
def test_contrastive_equals_its_definition(grouped: bool) -> None:
    s, t, tau, population = _normal(5, 4, seed=1), _normal(5, 4, seed=2), 0.3, 50
    groups = [0, 1, 0, 2, 1]
    wanted = 0.0
    for i in range(5):
        others = [j for j in range(5) if (groups[j] != groups[i] if grouped else j != i)]

        def h(j: int, i: int = i, n: int = len(others)) -> float:
            x, y = s[i].tolist(), t[j].tolist()
            e = math.exp(_dot(x, y) / (_length(x) * _length(y)) / tau)
            return e / (e + n / population)

        wanted -= math.log(h(i)) + sum(math.log(1 - h(j)) for j in others)
    found = features_samples.contrastive(
        s,
        t,
        temperature=tau,
        population=population,
        groups=torch.tensor(groups) if grouped else None,
    )
    assert found.item() == pytest.approx(wanted, rel=1e-10)


SAMPLES: list[Callable[[Tensor, Tensor], Tensor]] = [
    features_samples.rkd_distance,
    features_samples.rkd_angle,
    features_samples.similarity_preserving,
]


@pytest.mark.parametrize("function", SAMPLES)
def test_sample_terms_do_not_see_what_they_must_not(function: Any) -> None:
    s, t = _normal(6, 4, seed=1), _normal(6, 5, seed=2)
    value = function(s, t).item()
    assert value > 1e-3
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    for own, other in ((7 * s, t), (s, 0.1 * t), (s @ _rotation(4), t), (s[order], t[order])):
        assert function(own, other).item() == pytest.approx(value, rel=1e-9)
    if function is not features_samples.similarity_preserving:
        assert function(s + 5, t - 2).item() == pytest.approx(value, rel=1e-9)
    assert function(s, s).abs() < 1e-12
    assert torch.autograd.gradcheck(lambda x: function(x, t), s.requires_grad_())


@pytest.mark.parametrize("function", SAMPLES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_or_equal_samples_are_finite(function: Any, count: int) -> None:
    same = torch.ones(count, 3, requires_grad=True)
    loss = function(same, _normal(count, 3).float())
    loss.backward()
    assert loss.isfinite()
    assert same.grad is not None
    assert same.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [0.0, 1e-9])
def test_angles_at_samples_that_coincide_have_a_bounded_gradient(
    apart: float, dtype: torch.dtype
) -> None:
    """A cosine moves by at most 1/|r| + 1/|q| when an end of its rays r and q does, huber by at
    most that, and of the n = B(B - 1)(B - 2) triplets 3 n / B hold a sample: 6 / shortest ray."""
    x = _normal(5, 8, seed=1).to(dtype)
    x[1] = x[0] + apart * x[2]
    x.requires_grad_()
    loss = features_samples.rkd_angle(x, _normal(5, 6, seed=2).to(dtype))
    loss.backward()
    distances = torch.pdist(x.detach())
    shortest = distances[distances > 1e-6].min()
    assert len(distances[distances > 1e-6]) == 9
    assert x.grad is not None
    assert 0 < x.grad.norm(dim=-1).max() <= 6 / shortest


def test_angles_of_near_samples_are_still_compared() -> None:
    x = _normal(4, 8, seed=1)
    x[1] = x[0] + 1e-4 * x[2]
    t = _normal(4, 6, seed=2)
    cosine = features_samples._angles(x)[0, 1, 2]
    r, q = x[1] - x[0], x[2] - x[0]
    assert cosine.item() == pytest.approx(float(r @ q / (r.norm() * q.norm())), rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda y: features_samples.rkd_angle(y, t), x.requires_grad_(), eps=1e-9, atol=1e-2
    )


def test_a_single_sample_contrasts_with_nothing() -> None:
    x = _normal(1, 4).requires_grad_()
    loss = features_samples.contrastive(x, _normal(1, 4, seed=1), temperature=0.1, population=9)
    loss.backward()
    assert loss == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_contrastive_gradient_and_best() -> None:
    t = _normal(4, 6, seed=2)

    def loss(x: Tensor) -> Tensor:
        return features_samples.contrastive(x, t, temperature=0.2, population=20)

    assert torch.autograd.gradcheck(loss, _normal(4, 6, seed=3).requires_grad_())
    t = torch.eye(6, dtype=torch.float64)[:4]
    assert loss(t) < loss(t[[1, 0, 2, 3]]), "its own vectors are told apart"
