"""Features of one answer that say how sure its model is. Higher is surer, whatever the feature.

Knows class probabilities and token log-probabilities; does not know whether an answer is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

FLOOR = 1e-6


def label_features(probabilities: Sequence[float]) -> dict[str, float]:
    """Of one belief over C >= 2 classes: `logit` of the highest probability, log(p / (1 - p));
    `margin`, log(p_1 / p_2) of the two highest; `certainty`, minus the entropy in nats.

    Probabilities are floored at 1e-6, where stored beliefs are rounded.

    Raises:
        ValueError: fewer than two, not finite, negative, or not of sum 1.
    """
    p = [float(value) for value in probabilities]
    good = len(p) > 1 and all(math.isfinite(v) and v >= 0 for v in p) and abs(sum(p) - 1) < 1e-3
    if not good:
        raise ValueError("class probabilities must be two or more, finite, and sum to 1")
    first, second = (max(value, FLOOR) for value in sorted(p, reverse=True)[:2])
    return {
        "logit": math.log(first / max(1 - first, FLOOR)),
        "margin": math.log(first / second),
        "certainty": sum(value * math.log(value) for value in p if value > 0),
    }


def text_features(token_logprobs: Sequence[float]) -> dict[str, float]:
    """Of one text: `mean_logprob` and `min_logprob` of its tokens, in nats.

    Raises:
        ValueError: no tokens, or a value that is not finite.
    """
    if not token_logprobs or not all(math.isfinite(value) for value in token_logprobs):
        raise ValueError("token log-probabilities must be finite, at least one")
    return {
        "mean_logprob": sum(token_logprobs) / len(token_logprobs),
        "min_logprob": min(token_logprobs),
    }


def agreement(answers: Sequence[str]) -> Mapping[str, float]:
    """Self-consistency: the share of the other samples that say what the first one says."""
    if len(answers) < 2:
        raise ValueError("self-consistency needs two or more samples")
    return {"agreement": sum(a == answers[0] for a in answers[1:]) / (len(answers) - 1)}
