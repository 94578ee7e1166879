"""How sure a student was of an answer, out of the answer's own log-probabilities.

Knows OpenAI's chat answers; no model and no threshold. Natural logarithms, as the API gives them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from stillhouse.core.token_counts import token_count
from stillhouse.models.confidence import FLOOR, label_features

# Classes that the alternatives of one token must cover to be a belief over all of them.
WHOLE: Final = 0.999


def answer_features(answer: Mapping[str, Any], first: int | None = None) -> dict[str, float]:
    """Features of the first choice: mean and least token logprob, mean probability and its log-odds
    (`logit`), least margin over the second candidate. Of a label, whose one token has all classes
    beside it: its log-odds, the margin of the two highest, and minus the entropy. Empty where the
    answer has no log-probabilities.

    Args:
        first: tokens from the head that are looked at; `None`: all.
    """
    try:
        content = answer["choices"][0]["logprobs"]["content"]
        if not isinstance(content, list):
            return {}
        content = content[:first]
        found = [float(token["logprob"]) for token in content]
        ranked = [
            [float(other["logprob"]) for other in token.get("top_logprobs") or ()]
            for token in content
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return {}
    if not found or not all(one <= 0 for one in found):
        return {}
    mean = sum(found) / len(found)
    p = max(math.exp(mean), FLOOR)
    features = {
        "mean_logprob": mean,
        "min_logprob": min(found),
        "mean_probability": math.exp(mean),
        "tokens": float(len(found)),
        "logit": math.log(p / max(1 - p, FLOOR)),
    }
    margins = [top[0] - top[1] for top in ranked if len(top) > 1]
    if margins:
        features["min_margin"] = min(margins)
    if len(found) == 1 and len(ranked[0]) > 1:
        belief = [math.exp(one) for one in ranked[0]]
        total = sum(belief)
        if WHOLE <= total <= 2 - WHOLE:
            features |= label_features([one / total for one in belief])
    return features


def first_text(answer: Mapping[str, Any]) -> str:
    """The text of an answer's first choice."""
    return _texts(answer)[0]


def texts_of(body: bytes) -> tuple[list[str], tuple[int, int]]:
    """The texts of all choices of an answer, and its tokens, read and written; none where it is no
    answer."""
    try:
        answer = json.loads(body)
        usage = answer.get("usage") or {}
        counts = [token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        return _texts(answer), (counts[0] or 0, counts[1] or 0)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return [], (0, 0)


def _texts(answer: Mapping[str, Any]) -> list[str]:
    messages = [choice.get("message") or {} for choice in answer.get("choices") or ()]
    return [str(message.get("content") or "") for message in messages] or [""]
