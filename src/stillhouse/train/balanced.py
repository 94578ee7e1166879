"""The objective of several terms: scheduled weights, learned ones, stages, and what is logged.

    L = sum_k  weight_k(t) * sum_k / units_k        over terms k

Weights are those of `balance`; with stages, layers learn one after another before all do
(progressive knowledge transfer, MobileBERT, Sun et al. 2020, arXiv:2004.02984, section 3.3): while
a stage lasts, terms over layers compare its layers alone, all other terms wait, and only the
student's layers since the stage before are trained. Knows terms, readers and a student's layers;
knows no trainer's loop and no recipe.

Legend: K terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from stillhouse.core.recipe_features import ScheduleSection
from stillhouse.train.balance import Balance, factor
from stillhouse.train.features_layers import EMBEDDINGS
from stillhouse.train.features_terms import Layered, there
from stillhouse.train.insides import plain
from stillhouse.train.layers import blocks_of
from stillhouse.train.objectives import TermsObjective
from stillhouse.train.outputs import Batch, Counts, Needs
from stillhouse.train.parts import NAME, Parts
from stillhouse.train.terms import Term, TermValue

Reduce = Callable[[Tensor], Tensor]  # the sum over all ranks
TERM: Final = "term/"
WEIGHT: Final = "weight/"
NORM: Final = "gradient_norm/"


class Moment(NamedTuple):
    """Where a run is when an optimizer step begins."""

    step: int  # steps that are done
    of: int
    logged: bool  # whether this one will be


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A term, its weight and the weight's schedule."""

    term: Term
    weight: float = 1.0
    schedule: ScheduleSection | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """One student layer after another, in rising order, up to a share of the steps."""

    layers: tuple[int, ...]
    until: float

    def at(self, progress: float) -> int | None:
        """The stage where a share `progress` of the steps is done; `None` after the last."""
        if progress >= self.until:
            return None
        return min(int(progress / self.until * len(self.layers)), len(self.layers) - 1)


@dataclass(slots=True)
class BalancedObjective(TermsObjective):
    """See the module. `terms` stay as they are; `scheduled` adds weights and schedules.

    The gradient norm of a term is that of its weighted loss over the step, over the weights of
    `norms_over`: the highest layer that every term depends on whole, or all of the student's.
    """

    scheduled: Sequence[Scheduled] = ()
    parts: Parts = field(default_factory=Parts)
    balance: Balance = field(default_factory=Balance)
    norms_over: Literal["last_shared", "all"] = "last_shared"
    stages: Stages | None = None
    _at: Moment = field(default_factory=lambda: Moment(0, 1, False))
    _given: tuple[float, ...] = ()
    _now: tuple[Term | None, ...] = ()  # the terms of this step
    _step: Tensor | None = None  # losses of this step [K]
    _gradients: list[list[Tensor]] | None = None  # a list a term, a tensor a weight
    _norms: Tensor | None = None  # of this step [K]
    _weights: Tensor | None = None  # of this step [K]
    _sums: Tensor | None = None  # losses since the last log [K]
    _counted: Tensor | None = None  # steps in which each term counted since then [K]

    @property
    def names(self) -> list[str]:
        """The terms' names."""
        return [one.term.name for one in self.scheduled]

    @property
    def reads_norms(self) -> bool:
        """Whether weights are learned from gradient norms."""
        return self.balance.reads_norms

    def begin_step(self, at: Moment) -> None:
        """Called before the micro-batches of an optimizer step."""
        progress = at.step / max(at.of, 1)
        stage = None if self.stages is None else self.stages.at(progress)
        given, now = [], []
        for one in self.scheduled:
            weight = one.weight * factor(one.schedule, progress)
            term: Term | None = one.term
            if stage is not None and self.stages is not None:
                now_on = {self.stages.layers[stage]} | (
                    {EMBEDDINGS.student} if stage == 0 else set()
                )
                term = term.only(now_on) if isinstance(term, Layered) else None
            if weight == 0 or term is None:
                weight, term = 0.0, None
            given.append(weight)
            now.append(term)
        self._at, self._given, self._now = at, tuple(given), tuple(now)
        self._step = self._gradients = self._norms = None

    def loss(self, model: Any, batch: Batch, counts: Counts) -> Tensor:
        """See `Objective`."""
        if not self._now:
            self.begin_step(self._at)
        terms = [term for term in self._now if term is not None]
        student = reduce(or_, (term.student_needs for term in terms), Needs())
        teacher = reduce(or_, (term.teacher_needs for term in terms), Needs())
        view = self._view(model, batch, student, teacher)
        self.logged.clear()
        losses: list[Tensor | None] = []
        for term in self._now:
            if term is None:
                losses.append(None)
                continue
            value: TermValue = term(view)
            losses.append(value.total / counts.of(term.unit))
            self.logged |= {f"{term.name}/{k}": v for k, v in value.parts.items()}
        device = view.targets.device
        found = torch.stack([torch.zeros((), device=device) if x is None else x for x in losses])
        self._step = found.detach() if self._step is None else self._step + found.detach()
        if self._at.logged or self.balance.reads_norms:
            self._add_gradients(model, losses)
        given = found.new_tensor(self._given)
        weights = self.balance.weights(given)
        self._weights = weights.detach()
        loss = (weights * found).sum() + self.parts.touch().to(device)
        extra = self.balance.regulariser(given)
        if extra is not None:  # once a step: by the micro-batch's share of the samples
            loss = loss + extra * (there(batch["labels"]).sum() / counts.of("samples"))
        # a pass without terms has a gradient too, of zeros, and with ranks one for every weight
        if not terms or (None in self._now and torch.distributed.is_initialized()):
            loss = loss + torch.stack([(w * 0).sum() for w in own_weights(model)]).sum()
        self._check(loss, view)
        return loss

    def end_micro(self, model: Any) -> None:
        """Called after each backward pass: what is not trained in this stage gets no gradient."""
        if self.stages is None:
            return
        stage = self.stages.at(self._at.step / max(self._at.of, 1))
        if stage is None:
            return
        open_ = {id(weight) for weight in self._unlocked(model, stage)}
        for weight in own_weights(model):
            if id(weight) not in open_:
                weight.grad = None

    def end_step(self, summed: Reduce) -> None:
        """Called once all gradients of a step are there, before the optimizer moves.

        Args:
            summed: the sum of a tensor over all ranks.
        """
        assert self._step is not None
        assert self._weights is not None
        losses = summed(self._step)
        given = losses.new_tensor(self._given)
        raw = None
        if self._gradients is not None:
            raw = torch.stack(
                [
                    torch.stack([summed(g).square().sum() for g in one]).sum().sqrt()
                    if one
                    else losses.new_zeros(())
                    for one in self._gradients
                ]
            )
            self._norms = raw * self._weights
        counted = (given > 0).to(losses.dtype)
        self._sums = losses if self._sums is None else self._sums + losses
        self._counted = counted if self._counted is None else self._counted + counted
        self.balance.learn(given, losses, raw)

    def take_log(self) -> dict[str, float]:
        """Each term's mean loss since the last log, and its weight and gradient norm at this step;
        a term that did not count is left out."""
        if self._sums is None or self._counted is None or self._weights is None:
            return {}
        rows = {TERM: self._sums / self._counted, WEIGHT: self._weights}
        if self._norms is not None:
            rows[NORM] = self._norms
        values = {kind: row.tolist() for kind, row in rows.items()}
        counted = self._counted.tolist()
        on = {TERM: counted, WEIGHT: self._given, NORM: self._given}
        self._sums = self._counted = None
        return {
            kind + name: value
            for kind, row in values.items()
            for name, value, seen in zip(self.names, row, on[kind], strict=True)
            if seen
        }

    def _add_gradients(self, model: Any, losses: Sequence[Tensor | None]) -> None:
        """Each term's gradient over the chosen weights, without touching theirs."""
        chosen = self._norm_weights(model)
        if self._gradients is None:
            self._gradients = [[] for _ in losses]
        for kept, loss in zip(self._gradients, losses, strict=True):
            if loss is None or not loss.requires_grad:
                continue
            found = torch.autograd.grad(loss, chosen, retain_graph=True, allow_unused=True)
            new = [
                torch.zeros_like(w) if g is None else g for w, g in zip(chosen, found, strict=True)
            ]
            kept[:] = [a + b for a, b in zip(kept, new, strict=True)] if kept else new

    def _norm_weights(self, model: Any) -> list[nn.Parameter]:
        if self.norms_over == "last_shared":
            blocks = blocks_of(plain(model))
            reach = [
                one.term.reach if isinstance(one.term, Layered) else _reach(one.term, len(blocks))
                for one in self.scheduled
            ]
            lowest = min(reach)
            found = [] if lowest < 1 else _trained(blocks[lowest - 1])
            if found:
                return found
        return own_weights(model)

    def _unlocked(self, model: Any, stage: int) -> list[nn.Parameter]:
        """What a stage trains: the layers above the last stage's, and in the first what is below
        all layers too."""
        assert self.stages is not None
        blocks, layers = blocks_of(plain(model)), self.stages.layers
        first = layers[stage - 1] + 1 if stage else 0
        chosen = [w for block in blocks[first : layers[stage] + 1] for w in _trained(block)]
        if stage == 0:
            body = plain(model).get_input_embeddings()
            within = {id(w) for block in blocks for w in block.parameters()}
            below = getattr(plain(model).base_model, "embeddings", body)
            chosen += [w for w in _trained(below) if id(w) not in within]
        return chosen


def own_weights(model: Any) -> list[nn.Parameter]:
    """What is trained of a student, without the parts beside it."""
    inner = getattr(model, "module", model)
    return [
        weight
        for name, weight in inner.named_parameters()
        if weight.requires_grad and not name.startswith(f"{NAME}.")
    ]


def log_of(entry: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    """`loss`, `weight` and `gradient_norm` of each term in a row of the trainer's log."""
    found: dict[str, dict[str, float]] = {}
    for kind, name in ((TERM, "loss"), (WEIGHT, "weight"), (NORM, "gradient_norm")):
        for key, value in sorted(entry.items()):
            if key.startswith(kind):
                found.setdefault(key.removeprefix(kind), {})[name] = value
    return dict(sorted(found.items())) or None


def _reach(term: Term, layers: int) -> int:
    """How many layers a term that is no `Layered` depends on: all, or up to its pair's."""
    pair = getattr(term, "pair", None)
    return layers if pair is None else int(pair.student) + 1


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.requires_grad]
