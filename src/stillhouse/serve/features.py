"""How sure a student was of an answer, out of the answer's own log-probabilities.

Knows OpenAI's chat answers; no model and no threshold. Natural logarithms, as the API gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def answer_features(answer: Mapping[str, Any]) -> dict[str, float]:
    """Features of the first choice: mean and least token logprob, mean probability and least margin
    over the second candidate. Empty where the answer has no log-probabilities."""
    try:
        content = answer["choices"][0]["logprobs"]["content"]
        if not isinstance(content, list):
            return {}
        found = [float(token["logprob"]) for token in content]
        ranked = [token.get("top_logprobs") or [] for token in content]
        margins = [
            float(top[0]["logprob"]) - float(top[1]["logprob"]) for top in ranked if len(top) > 1
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return {}
    if not found or not all(one <= 0 for one in found):
        return {}
    mean = sum(found) / len(found)
    features = {
        "mean_logprob": mean,
        "min_logprob": min(found),
        "mean_probability": math.exp(mean),
        "tokens": float(len(found)),
    }
    if margins:
        features["min_margin"] = min(margins)
    return features
