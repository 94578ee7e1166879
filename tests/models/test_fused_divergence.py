"""The fused loss against a naive float64 reference: every divergence, signal and head."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models import fused_op
from stillhouse.models.divergence import IGNORE_INDEX, soft_target_loss
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.fused_divergence import fused_measures, fused_soft_target_loss
from stillhouse.models.head import Head, LowRank
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
    sparsify,
)

N, H, V = 9, 6, 13
KINDS = [
    Divergence("forward_kl"),
    Divergence("reverse_kl"),
    Divergence("jsd", 0.3),
    Divergence("jsd", 0.0),
    Divergence("jsd", 1.0),
    Divergence("skew_forward_kl", 0.2),
    Divergence("skew_forward_kl", 0.0),
    Divergence("skew_reverse_kl", 0.2),
    Divergence("skew_reverse_kl", 0.0),
    Divergence("total_variation"),
    Divergence("cross_entropy"),
]
IDS = [f"{d.kind}-{d.beta}" for d in KINDS]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and blocks also at this size."""
    monkeypatch.setattr(fused_op, "LEAST_ROWS", 4)
    monkeypatch.setattr(fused_op, "BLOCK", 2 * V)


def _naive_rows(of: Divergence, p: Tensor, q: Tensor) -> Tensor:
    """From the definitions, on probabilities; terms of mass 0 are 0."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        some = a > 0
        return (a * (torch.where(some, a, 1.0) / torch.where(some, b, 1.0)).log()).sum(-1)

    beta = of.beta
    match of.kind:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jsd":
            if beta in (0.0, 1.0):
                return kl(p, q) if beta == 0.0 else kl(q, p)
            m = beta * p + (1 - beta) * q
            return beta * kl(p, m) + (1 - beta) * kl(q, m)
        case "skew_forward_kl":
            return kl(p, beta * p + (1 - beta) * q)
        case "skew_reverse_kl":
            return kl(q, beta * q + (1 - beta) * p)
        case "total_variation":
            return 0.5 * (p - q).abs().sum(-1)
        case _:
            return -torch.where(p > 0, p * q.log(), 0.0).sum(-1)


def _naive_logits(hidden: Tensor, head: Head) -> Tensor:
    weight = head.weight
    for part in head.low_rank:
        weight = weight + part.scale * part.up @ part.down
    out = hidden @ weight.T
    out = (out if head.bias is None else out + head.bias) * head.scale
    return out if head.softcap is None else head.softcap * torch.tanh(out / head.softcap)


def _naive(  # noqa: PLR0917
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    signal: TeacherSignal | None,
    of: Divergence,
    alpha: float,
    t: float,
) -> Tensor:
    """Summed over valid positions, one at a time, all logits whole."""
    logits = _naive_logits(hidden, head)
    total = logits.new_zeros(())
    for i in range(len(targets)):
        if targets[i] == IGNORE_INDEX:
            continue
        row, soft = logits[i], logits.new_zeros(())
        match signal:
            case HiddenSignal() | DenseSignal():
                theirs = (
                    signal.logits[i]
                    if isinstance(signal, DenseSignal)
                    else _naive_logits(signal.hidden[i], signal.head)
                )
                width = min(len(theirs), len(row))
                row, theirs = row[:width], theirs[:width].to(row.dtype)
                soft = _naive_rows(of, torch.softmax(theirs / t, -1), torch.softmax(row / t, -1))
            case SparseSignal():
                q = torch.softmax(row, -1)
                ids = signal.token_ids[i]
                p, kept = signal.log_probs[i].exp(), q[ids]
                if len(ids) < len(row):
                    rest = torch.ones(len(row), dtype=torch.bool)
                    rest[ids] = False
                    p = torch.cat([p, signal.tail_log_mass[i].exp()[None]])
                    kept = torch.cat([kept, q[rest].sum()[None]])
                p, kept = p ** (1 / t), kept ** (1 / t)
                soft = _naive_rows(of, p / p.sum(), kept / kept.sum())
            case SampledSignal():
                w = torch.zeros(len(row), dtype=row.dtype)
                for token, weight in zip(signal.token_ids[i], signal.weights[i], strict=True):
                    w[token] += weight
                soft = -(w * torch.log_softmax(row / t, -1)).sum()
                if of.kind == "forward_kl":
                    soft = soft + torch.xlogy(w, w).sum() - w.sum() + 1
        hard = -torch.log_softmax(row, -1)[targets[i]]
        total = total + alpha * t**2 * soft + (1 - alpha) * hard
    return total


def _targets(masked: bool = True) -> Tensor:
    targets = torch.randint(0, V - 2, (N,))
    if masked:
        targets[torch.tensor([0, 3, 4])] = IGNORE_INDEX
    return targets


def _head(width: int = V, *, grad: bool = True, bias: bool = True, **more: Any) -> Head:
    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)

    return Head(made(width, H), made(width) if bias else None, **more)


def _hidden(grad: bool = True) -> Tensor:
    return torch.randn(N, H, dtype=torch.float64, requires_grad=grad)


def _signal(name: str, width: int = V) -> TeacherSignal:
    hidden = HiddenSignal(torch.randn(N, H + 2, dtype=torch.float64), _head(width, grad=False))
    hidden = HiddenSignal(
        hidden.hidden, Head(torch.randn(width, H + 2, dtype=torch.float64), None, 0.7, 5.0)
    )
    match name:
        case "hidden":
            return hidden
        case "dense":
            return hidden.dense()
        case "sparse":
            return sparsify(hidden.dense(), 4)
        case "all":
            return sparsify(hidden.dense(), width)
        case _:
            ids = torch.stack([torch.randperm(width)[:3] for _ in range(N)])
            return SampledSignal(ids, torch.rand(N, 3, dtype=torch.float64))


def _leaves(hidden: Tensor, head: Head) -> list[Tensor]:
    parts = [hidden, head.weight, head.bias, *(x for p in head.low_rank for x in (p.down, p.up))]
    return [part for part in parts if part is not None and part.requires_grad]


def _agree(  # noqa: PLR0917
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    signal: TeacherSignal | None,
    of: Divergence,
    alpha: float,
    t: float,
) -> None:
    got = fused_soft_target_loss(
        hidden,
        head,
        targets,
        signal,
        alpha=alpha,
        distillation_temperature=t,
        num_items=3,
        of=of,
    )
    wanted = _naive(hidden, head, targets, signal, of, alpha, t) / 3
    torch.testing.assert_close(got.loss, wanted, rtol=1e-11, atol=1e-11)
    assert got.items == (targets != IGNORE_INDEX).sum()
    leaves = _leaves(hidden, head)
    if leaves:
        ours = torch.autograd.grad(got.loss * 1.7, leaves)
        theirs = torch.autograd.grad(wanted * 1.7, leaves)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("of", KINDS, ids=IDS)
def test_every_divergence_and_signal_equals_the_definition(of: Divergence) -> None:
    torch.manual_seed(1)
    for name, (alpha, t), masked in itertools.product(
        ("hidden", "dense", "sparse", "all"),
        ((1.0, 1.0), (0.4, 1.0), (0.4, 2.5), (1.0, 2.5)),
        (True, False),
    ):
        _agree(_hidden(), _head(), _targets(masked), _signal(name), of, alpha, t)


@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_draws_give_the_gradients_of_what_they_estimate(kind: Any) -> None:
    torch.manual_seed(2)
    for alpha in (1.0, 0.3):
        _agree(_hidden(), _head(), _targets(), _signal("sampled"), Divergence(kind), alpha, 1.0)


def test_other_draws_are_refused() -> None:
    with pytest.raises(UserError, match="draws"):
        _agree(_hidden(), _head(), _targets(), _signal("sampled"), Divergence("jsd"), 1.0, 1.0)
    with pytest.raises(UserError, match="temperature"):
        _agree(_hidden(), _head(), _targets(), _signal("sampled"), Divergence(), 1.0, 2.0)


def test_stored_beliefs_over_more_ids_than_the_student_has_are_refused() -> None:
    for name in ("sparse", "sampled"):
        signal = replace(_signal(name), vocabulary_size=V + 1)  # type: ignore[type-var]
        with pytest.raises(UserError, match="beyond"):
            _agree(_hidden(), _head(), _targets(), signal, Divergence(), 1.0, 1.0)


def test_a_narrowed_head_gives_the_first_logits() -> None:
    part = LowRank(torch.randn(2, H), torch.randn(V, 2), 0.5)
    head, hidden = Head(torch.randn(V, H), torch.randn(V), low_rank=(part,)), torch.randn(N, H)
    torch.testing.assert_close(head.narrowed(5).logits(hidden), head.logits(hidden)[:, :5])


@pytest.mark.parametrize(
    ("student", "teacher"), [(V, V - 2), (V - 2, V), (V, V)], ids=["wider", "narrower", "equal"]
)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_head(
    student: int, teacher: int, softcap: float | None, scale: float, bias: bool
) -> None:
    torch.manual_seed(3)
    head = _head(student, bias=bias, scale=scale, softcap=softcap)
    for name in ("hidden", "dense"):
        _agree(_hidden(), head, _targets(), _signal(name, teacher), Divergence("jsd"), 0.6, 1.5)


def test_low_rank_parts_of_the_head() -> None:
    torch.manual_seed(4)

    def part(rank: int) -> LowRank:
        down = torch.randn(rank, H, dtype=torch.float64, requires_grad=True)
        up = torch.randn(V, rank, dtype=torch.float64, requires_grad=True)
        return LowRank(down, up, 0.5)

    for frozen, count in ((True, 1), (False, 2)):
        head = _head(grad=not frozen, low_rank=(part(2), part(3))[:count], softcap=4.0)
        _agree(_hidden(), head, _targets(), _signal("hidden"), Divergence(), 0.6, 1.5)
        torch.testing.assert_close(head.logits(_hidden()).shape, (N, V))


@pytest.mark.parametrize("of", KINDS, ids=IDS)
def test_gradients_by_finite_differences(of: Divergence) -> None:
    torch.manual_seed(5)
    targets, signal = _targets(), _signal("hidden")

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused_soft_target_loss(
            hidden,
            Head(weight, bias, 0.7, 3.0),
            targets,
            signal,
            alpha=0.7,
            distillation_temperature=1.5,
            num_items=2,
            of=of,
        ).loss

    head = _head()
    assert head.bias is not None
    assert torch.autograd.gradcheck(loss, (_hidden(), head.weight, head.bias))


def test_only_wanted_gradients_are_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    seen: list[list[bool]] = []
    start = fused_op._Gradients.start

    def watched(product: Any, wanted: Any, rows: int) -> Any:
        seen.append(list(wanted))
        return start(product, wanted, rows)

    monkeypatch.setattr(fused_op._Gradients, "start", watched)
    _agree(_hidden(), _head(grad=False), _targets(), _signal("hidden"), KINDS[0], 0.5, 2.0)
    _agree(_hidden(False), _head(bias=False), _targets(), _signal("dense"), KINDS[0], 0.5, 2.0)
    with torch.no_grad():
        fused_measures(_hidden(), _head(), _targets(), _signal("dense"))
    nothing = [False] * 5
    assert seen == [[True, *nothing[1:]], [False, True, *nothing[2:]], nothing]


def test_a_split_into_micro_batches_adds_up() -> None:
    torch.manual_seed(7)
    hidden, head, targets, signal = _hidden(), _head(), _targets(), _signal("sparse")

    def gradients(parts: list[slice]) -> list[Tensor]:
        losses = [
            fused_soft_target_loss(
                hidden[part],
                head,
                targets[part],
                signal.select(torch.arange(N)[part]),
                alpha=0.5,
                distillation_temperature=2.0,
                num_items=5,
            ).loss
            for part in parts
        ]
        return list(torch.autograd.grad(torch.stack(losses).sum(), _leaves(hidden, head)))

    whole = gradients([slice(0, N)])
    torch.testing.assert_close(gradients([slice(0, 2), slice(2, 5), slice(5, N)]), whole)
    torch.testing.assert_close(gradients([slice(i, i + 1) for i in range(N)]), whole)


def test_nothing_valid_is_zero_with_zero_gradients() -> None:
    hidden, head = _hidden(), _head()
    for count in (N, 0):
        loss = fused_soft_target_loss(
            hidden[:count],
            head,
            torch.full((count,), IGNORE_INDEX),
            HiddenSignal(torch.zeros(count, H, dtype=torch.float64), _head(grad=False)),
            alpha=0.5,
            distillation_temperature=2.0,
            num_items=0 if count else torch.tensor(0),
        ).loss
        assert loss == 0
        grads = torch.autograd.grad(loss, _leaves(hidden, head))
        assert all(float(grad.abs().sum()) == 0.0 for grad in grads)


@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_an_id_that_both_rule_out(kind: Any) -> None:
    hidden, teacher = _hidden(), torch.randn(N, V, dtype=torch.float64)
    bias = torch.zeros(V, dtype=torch.float64)
    bias[3] = teacher[:, 3] = -math.inf
    head = Head(_head(grad=False).weight, bias)
    targets = torch.zeros(N, dtype=torch.int64)
    numbers: dict[str, Any] = {
        "alpha": 0.5,
        "distillation_temperature": 1.0,
        "num_items": N,
        "of": Divergence(kind),
    }
    signal = DenseSignal(teacher)
    fused = fused_soft_target_loss(hidden, head, targets, signal, **numbers).loss
    dense = soft_target_loss(head.logits(hidden), targets, signal, **numbers).loss
    assert torch.isfinite(fused)
    torch.testing.assert_close(fused, dense)
    for one, two in zip(
        torch.autograd.grad(fused, hidden), torch.autograd.grad(dense, hidden), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_an_id_the_teacher_rules_out() -> None:
    torch.manual_seed(8)
    teacher = torch.randn(N, V, dtype=torch.float64)
    teacher[:, 5] = -math.inf
    signal = DenseSignal(teacher)
    for of in KINDS:
        infinite = of.kind in ("reverse_kl",) or (of.kind, of.beta) in {
            ("jsd", 1.0),
            ("skew_reverse_kl", 0.0),
        }
        if infinite:
            got = fused_soft_target_loss(
                _hidden(),
                _head(),
                _targets(),
                signal,
                alpha=1.0,
                distillation_temperature=1.0,
                num_items=1,
                of=of,
            )
            assert got.loss == math.inf
        else:
            _agree(_hidden(), _head(), _targets(), signal, of, 0.5, 1.0)


def test_leading_dimensions_and_measures() -> None:
    torch.manual_seed(9)
    hidden, head, targets, signal = _hidden(), _head(), _targets(), _signal("hidden")
    assert isinstance(signal, HiddenSignal)
    found = fused_measures(hidden, head, targets, signal)
    logits, valid = _naive_logits(hidden, head), targets != IGNORE_INDEX
    assert found.agreed == (logits.argmax(-1) == targets)[valid].sum()
    assert found.items == valid.sum()
    for value, alpha in ((found.divergence, 1.0), (found.cross_entropy, 0.0)):
        wanted = _naive(hidden, head, targets, signal, Divergence(), alpha, 1.0)
        torch.testing.assert_close(value, wanted)
    shaped = fused_measures(
        hidden.view(3, 3, H),
        head,
        targets.view(3, 3),
        HiddenSignal(signal.hidden.view(3, 3, -1), signal.head),
    )
    assert shaped == found
    alone = fused_measures(hidden, head, targets, None)
    assert alone.divergence == 0
    assert alone.cross_entropy == found.cross_entropy


def test_a_second_derivative_is_refused_and_a_kept_graph_is_not() -> None:
    hidden, head = _hidden(), _head()
    args = (_targets(), _signal("dense"))
    numbers = {"alpha": 0.5, "distillation_temperature": 2.0, "num_items": 1}
    loss = fused_soft_target_loss(hidden, head, *args, **numbers).loss  # type: ignore[arg-type]
    first = torch.autograd.grad(loss * 2, _leaves(hidden, head), retain_graph=True)
    kept = [grad.clone() for grad in first]
    torch.testing.assert_close(torch.autograd.grad(loss * 2, _leaves(hidden, head)), tuple(kept))
    torch.testing.assert_close(first, tuple(kept))
    loss = fused_soft_target_loss(hidden, head, *args, **numbers).loss  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_summed_in_float32(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.models.wide_matmul.BAND", 5)
    torch.manual_seed(10)
    rows, dtype = 64, torch.bfloat16
    hidden, weight = torch.randn(rows, H).to(dtype), torch.randn(V, H).to(dtype)
    teacher = HiddenSignal(torch.randn(rows, H).to(dtype), Head(torch.randn(V, H).to(dtype)))
    targets = torch.randint(0, V, (rows,))

    def run(h: Tensor, w: Tensor, signal: HiddenSignal) -> tuple[Tensor, Tensor, Tensor]:
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        loss = fused_soft_target_loss(
            h, Head(w), targets, signal, alpha=0.5, distillation_temperature=2.0, num_items=rows
        ).loss
        return loss.detach(), *torch.autograd.grad(loss, (h, w))

    exact = run(
        hidden.double(),
        weight.double(),
        HiddenSignal(teacher.hidden.double(), Head(teacher.head.weight.double())),
    )
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            got = run(
                hidden.float(),
                weight.float(),
                HiddenSignal(teacher.hidden.float(), Head(teacher.head.weight.float())),
            )
        assert got[2].dtype == torch.float32
        bound = 1e-5
    else:
        got = run(hidden, weight, teacher)
        assert got[2].dtype == dtype
        bound = 2**-8  # one rounding, at the end
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=0)
    for mine, theirs in zip(got[1:], exact[1:], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=bound, atol=bound * 1e-2)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_passes_it_by_whole() -> None:
    torch.manual_seed(11)
    targets, signal = _targets(), _signal("hidden")
    assert isinstance(signal, HiddenSignal)

    def loss(hidden: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
        found = fused_soft_target_loss(
            hidden * 2,
            Head(weight, None, 0.7, 3.0),
            targets,
            HiddenSignal(teacher, signal.head),
            alpha=0.7,
            distillation_temperature=1.5,
            num_items=2,
        )
        return found.loss * 3

    hidden, head = _hidden(), _head()
    wanted = torch.autograd.grad(loss(hidden, head.weight, signal.hidden), (hidden, head.weight))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    value = compiled(hidden, head.weight, signal.hidden)
    torch.testing.assert_close(torch.autograd.grad(value, (hidden, head.weight)), wanted)


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
def test_misuse_is_named(changes: dict[str, Any], words: str) -> None:
    given = {
        "targets": _targets(),
        "signal": _signal("dense"),
        "alpha": 0.5,
        "distillation_temperature": 2.0,
        "num_items": 1,
        **changes,
    }
    with pytest.raises(ValueError, match=words):
        fused_soft_target_loss(_hidden(), _head(), **given)
