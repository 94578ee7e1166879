"""Weights of terms over a run: schedules, and weights that are learned beside the student.

    fixed          L = sum_k w_k(t) L_k
    uncertainty    L = sum_k e^(-s_k) w_k(t) L_k + s_k / 2        (s_k = log sigma_k^2, learned)
    gradient_norm  L = sum_k g_k w_k(t) L_k                      (g_k learned, sum g_k = terms)

where w_k(t) is a term's weight times its schedule, and a term whose w_k(t) is 0 is left out.
Uncertainty weighting is Kendall, Gal & Cipolla 2018 (arXiv:1705.07115, eq. 10), GradNorm is Chen et
al. 2018 (arXiv:1711.02257, algorithm 1). Knows numbers and tensors; knows no term and no model.

Legend: K terms.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from stillhouse.core.recipe_features import ScheduleSection

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of the Adam that learns GradNorm's weights
SMALLEST: Final = 1e-3  # GradNorm's weights stay above this before they are made to sum up


def factor(schedule: ScheduleSection | None, progress: float) -> float:
    """A schedule's factor where a share `progress` of the optimizer steps is done."""
    if schedule is None:
        return 1.0
    if schedule.shape == "steps":
        return next(value for share, value in reversed(schedule.at) if share <= progress)
    done = (progress - schedule.start) / (schedule.end - schedule.start)
    done = min(max(done, 0.0), 1.0)
    if schedule.shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return schedule.before + (schedule.after - schedule.before) * done


class Balance(nn.Module):
    """How much each term counts: as it is given."""

    reads_norms = False  # whether `learn` needs gradient norms at every step

    def weights(self, given: Tensor) -> Tensor:
        """Weights [K] of the terms' losses, with gradient where they are learned by it.

        Args:
            given: w_k(t) [K].
        """
        return given

    def regulariser(self, given: Tensor) -> Tensor | None:
        """What is added once a step."""
        return None

    def learn(self, given: Tensor, values: Tensor, norms: Tensor | None) -> None:
        """Called once a step, before the optimizer's.

        Args:
            given: w_k(t) [K].
            values: L_k of the step [K].
            norms: |gradient of L_k| [K].
        """


class Uncertainty(Balance):
    """Each term's log-variance is learned with the student's weights, by the same optimizer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(count))

    def weights(self, given: Tensor) -> Tensor:
        """See `Balance`."""
        return torch.exp(-self.log_variances) * given

    def regulariser(self, given: Tensor) -> Tensor | None:
        """See `Balance`; of the terms that count now."""
        return 0.5 * (self.log_variances * (given > 0)).sum()


class GradientNorm(Balance):
    """Each term's gradient is brought to a common size, larger where its loss has fallen less.

    With G_k = g_k |grad w_k L_k| and r_k = (L_k / L_k(0)) / mean of the same, the g_k take an Adam
    step on sum_k |G_k - mean(G) r_k^alpha|, in which the target is a constant, and are then scaled
    to sum to the number of terms. For L_k(0) stands the largest L_k so far: the two are one where
    losses fall, and a student cut from its teacher begins with some that are almost 0.
    """

    reads_norms = True

    def __init__(self, count: int, alpha: float, learning_rate: float) -> None:
        super().__init__()
        self.alpha, self.learning_rate = alpha, learning_rate
        self.register_buffer("gains", torch.ones(count))
        self.register_buffer("most", torch.zeros(count))  # the largest L_k so far
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("square", torch.zeros(count))
        self.register_buffer("steps", torch.zeros(count))
        self.gains: Tensor
        self.most: Tensor
        self.mean: Tensor
        self.square: Tensor
        self.steps: Tensor

    def weights(self, given: Tensor) -> Tensor:
        """See `Balance`."""
        return self.gains * given

    @torch.no_grad()
    def learn(self, given: Tensor, values: Tensor, norms: Tensor | None) -> None:
        """See `Balance`."""
        assert norms is not None
        on = given > 0
        count = on.sum().clamp_min(1)
        values, norms = values.to(self.gains.dtype), norms.to(self.gains.dtype)
        self.most.copy_(torch.where(on, torch.maximum(self.most, values), self.most))
        sizes = norms * given  # of each term without its gain
        scaled = self.gains * sizes
        ratio = on * values / self.most.clamp_min(EPSILON)
        rate = ratio / (ratio.sum() / count).clamp_min(EPSILON)
        target = (scaled * on).sum() / count * rate**self.alpha
        slope = torch.sign(scaled - target) * sizes
        self.steps += on
        self.mean.copy_(torch.where(on, self.mean.lerp(slope, 1 - BETA1), self.mean))
        self.square.copy_(torch.where(on, self.square.lerp(slope.square(), 1 - BETA2), self.square))
        first = self.mean / (1 - BETA1 ** self.steps.clamp_min(1))
        second = self.square / (1 - BETA2 ** self.steps.clamp_min(1))
        moved = self.gains - self.learning_rate * first / (second.sqrt() + EPSILON)
        moved = moved.clamp_min(SMALLEST)
        self.gains.copy_(torch.where(on, moved * count / (moved * on).sum(), self.gains))
