"""The soft-target objective from hidden states and the head's weight, never positions x vocabulary.

Same value and gradients as `models.divergence.soft_target_loss` over the head's logits. Gradients
are formed in the forward pass, chunk by chunk, and only scaled in the backward pass: neither
logits nor probabilities are kept, and the teacher's are made where the student's are. The method,
its gradients and its memory are in docs/fused.md; Cut Cross-Entropy (Wijmans et al. 2025,
arXiv:2411.09009) and Liger (Hsu et al. 2024, arXiv:2410.10989) do the like for other losses.
Pure torch on every device. Knows no trainer and no reader.

Legend: N positions, H hidden, V vocabulary, L rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import IGNORE_INDEX, SoftTargetLoss
from stillhouse.models.divergence_kind import FORWARD_KL, SAMPLED_KINDS, Divergence
from stillhouse.models.fused_op import fused_divergence
from stillhouse.models.head import Head, whole
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)


class Measured(NamedTuple):
    """Sums over valid positions, in nats, at temperature 1; no gradient. `divergence` is 0 without
    a signal; `agreed` counts positions whose first choice is the target."""

    divergence: Tensor
    cross_entropy: Tensor
    agreed: Tensor
    items: Tensor


def fused_soft_target_loss(
    hidden: Tensor,  # [..., H] what the head reads
    head: Head,
    targets: Tensor,  # [...] int64, `IGNORE_INDEX` where the position does not count
    signal: TeacherSignal | None,  # positions [...]; None only where alpha is 0
    *,
    alpha: float,
    distillation_temperature: float,
    num_items: Tensor | int,
    of: Divergence = FORWARD_KL,
) -> SoftTargetLoss:
    """alpha * T^2 * D(teacher_T, student_T) + (1 - alpha) * CE, over `num_items`: see
    `models.divergence.soft_target_loss`, whose value and gradients this has.

    Positions that do not count are dropped before anything is computed. Heads of unequal width are
    compared over the ids that both have. Gradients of hidden states, weight, bias and low-rank
    parts are formed for those that require one. Sums and gradients are taken in float32 or better,
    also under autocast; the products' operands are then in its precision.

    A second derivative is refused.

    Raises:
        ValueError: alpha outside [0, 1], T not positive, no signal though alpha > 0, or shapes that
            do not fit.
        UserError: a stored signal over more ids than the student has, or draws asked for what they
            do not estimate.
    """
    _check(hidden, targets, signal, alpha, distillation_temperature)
    t = distillation_temperature
    run = _Run(of, t, alpha, 1.0 - alpha, measure=False)
    loss, parts = run(hidden, head, targets, signal if alpha > 0.0 else None)
    items = (targets != IGNORE_INDEX).sum()
    count = num_items.clamp_min(1) if isinstance(num_items, Tensor) else max(num_items, 1)
    return SoftTargetLoss(loss / count, parts[0], parts[1], items)


@torch.no_grad()
def fused_measures(
    hidden: Tensor,  # [..., H]
    head: Head,
    targets: Tensor,  # [...] int64
    signal: TeacherSignal | None,  # positions [...]
    *,
    of: Divergence = FORWARD_KL,
) -> Measured:
    """Divergence, cross-entropy and agreement at temperature 1, without gradient."""
    _check(hidden, targets, signal, 0.0, 1.0)
    _, parts = _Run(of, 1.0, 1.0, 0.0, measure=True)(hidden, head, targets, signal)
    return Measured(parts[0], parts[1], parts[2].long(), (targets != IGNORE_INDEX).sum())


class _Run(NamedTuple):
    """One call of the operator. `soft` and `hard` weigh T^2 D and the cross-entropy."""

    of: Divergence
    distillation_temperature: float
    soft: float
    hard: float
    measure: bool

    def __call__(
        self, hidden: Tensor, head: Head, targets: Tensor, signal: TeacherSignal | None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the three detached sums."""
        student = _operands(_flat(hidden), head)
        belief = _belief(signal)
        width = min(student[1].shape[0], belief.width or student[1].shape[0])
        if isinstance(signal, SparseSignal | SampledSignal):
            self._check_stored(signal, student[1].shape[0])
        grad = torch.is_grad_enabled()
        settings = {
            "belief": belief.kind,
            "teacher_scale": belief.scale,
            "teacher_softcap": belief.softcap,
            "scale": head.scale,
            "softcap": head.softcap or 0.0,
            "kind": self.of.kind,
            "beta": self.of.beta,
            "distillation_temperature": self.distillation_temperature,
            "soft": self.soft,
            "hard": self.hard,
            "width": width,
            "read": _precision(hidden),
            "measure": self.measure,
        }
        teaching = (targets.reshape(-1), [part.detach() for part in belief.parts])
        wanted = [grad and part.requires_grad for part in student]
        factors = (self.soft * self.distillation_temperature**2, self.hard)
        if not any(wanted):
            bare = [part.detach() for part in student]
            parts = fused_divergence(bare, *teaching, **settings, wanted=wanted)[0]
            return _weighed(parts, *factors), parts
        apply = cast(Callable[..., tuple[Tensor, Tensor]], _Fused.apply)
        return apply(*student, *teaching, factors, tuple(settings), *settings.values(), wanted)

    def _check_stored(self, signal: SparseSignal | SampledSignal, width: int) -> None:
        runs_over = signal.vocabulary_size or width
        if runs_over > width:
            raise UserError(
                "student",
                f"its head has {width:,} outputs, and the stored beliefs run over {runs_over:,}: "
                "their mass beyond cannot be told",
                action="capture over the ids of the tokenizer, or use a student as wide",
            )
        if isinstance(signal, SparseSignal):
            return
        if self.of.kind not in SAMPLED_KINDS:
            raise UserError(
                "train.divergence",
                "draws from the teacher estimate forward_kl and cross_entropy alone",
                value=self.of.kind,
                action="use one of these, or train from dense or top-k beliefs",
            )
        if signal.distillation_temperature != self.distillation_temperature:
            raise UserError(
                "train.distillation_temperature",
                f"the draws are of the teacher at {signal.distillation_temperature:g}",
                value=self.distillation_temperature,
                action="draw again at the temperature that is trained at",
            )


class _Fused(torch.autograd.Function):
    """The operator with its gradients, which exist once its value does."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        student, (targets, teacher, factors, names, *values, wanted) = given[:5], given[5:]
        settings = dict(zip(names, values, strict=True))
        parts, *grads = fused_divergence(list(student), targets, teacher, **settings, wanted=wanted)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads)
        ctx.others = len(given) - 5
        ctx.mark_non_differentiable(parts)
        return _weighed(parts, *factors), parts

    @staticmethod
    def backward(ctx: Any, scale: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the fused loss has no second derivative (create_graph=True); "
                "models.divergence.soft_target_loss over the head's logits has"
            )
        grads: list[Tensor | None] = [None] * 5
        if scale is not None:
            once = not _is_kept()
            for number, (grad, wanted) in enumerate(
                zip(ctx.saved_tensors, ctx.needs_input_grad[:5], strict=True)
            ):
                if wanted:
                    factor = scale.to(grad.dtype)
                    grads[number] = grad.mul_(factor) if once else grad * factor
        return (*grads, *(None,) * ctx.others)


def _is_kept() -> bool:
    """Whether the graph may be walked again (`retain_graph`): then saved gradients stay as they
    are. Else the head's gradient, as large as the head, is scaled where it lies."""
    if torch.compiler.is_compiling():
        return True
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _weighed(parts: Tensor, soft: float, hard: float) -> Tensor:
    return parts[0] * soft + parts[1] * hard


class _Belief(NamedTuple):
    """A signal as the operator reads it."""

    kind: str
    parts: Sequence[Tensor]
    width: int | None = None  # ids it runs over, where it says
    scale: float = 1.0
    softcap: float = 0.0


def _belief(signal: TeacherSignal | None) -> _Belief:
    match signal:
        case None:
            return _Belief("none", [])
        case HiddenSignal():
            head = signal.head
            parts = _operands(_flat(signal.hidden), head)
            return _Belief("hidden", parts, head.weight.shape[0], head.scale, head.softcap or 0.0)
        case DenseSignal():
            logits = _flat(signal.logits)
            return _Belief("logits", [logits], logits.shape[-1])
        case SparseSignal():
            return _Belief(
                "kept",
                [
                    _flat(signal.token_ids),
                    _flat(signal.log_probs),
                    signal.tail_log_mass.reshape(-1),
                ],
                signal.vocabulary_size,
            )
        case SampledSignal():
            return _Belief(
                "drawn",
                [_flat(signal.token_ids), _flat(signal.weights)],
                signal.vocabulary_size,
            )


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _operands(hidden: Tensor, head: Head) -> list[Tensor]:
    """Hidden states [N, H], weight, bias, and the low-rank part as [N, L] and [V, L]; empty where
    there is none. Gradients flow to what they are made of."""
    bias = hidden.new_empty(0) if head.bias is None else whole(head.bias)
    inner, outer = hidden.new_empty(0), hidden.new_empty(0)
    if head.low_rank:
        inner = torch.cat([part.inner(hidden) for part in head.low_rank], -1)
        outer = torch.cat([whole(part.up) for part in head.low_rank], -1)
    return [hidden, whole(head.weight), bias, inner, outer]


def _precision(hidden: Tensor) -> torch.dtype:
    """What the head's product would be taken in."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _check(
    hidden: Tensor, targets: Tensor, signal: TeacherSignal | None, alpha: float, t: float
) -> None:
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be within [0, 1], got {alpha}")
    if not 0.0 < t < math.inf:
        raise ValueError(f"distillation_temperature must be positive and finite, got {t}")
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(f"hidden {list(hidden.shape)} does not fit targets {list(targets.shape)}")
    if alpha > 0.0 and signal is None:
        raise ValueError("alpha > 0 needs a teacher signal")
    if signal is not None and signal.positions != targets.shape:
        raise ValueError(
            f"signal {list(signal.positions)} does not fit targets {list(targets.shape)}"
        )
