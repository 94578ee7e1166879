"""What a provider's headers say of its rate limits, per minute.

OpenAI and most compatible servers send x-ratelimit-limit-requests and -tokens, Anthropic
anthropic-ratelimit-requests-limit and input, output or all tokens. Knows headers; waits for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class RateLimits(NamedTuple):
    """Limits per minute; `None` where the server says nothing."""

    requests: float | None = None
    tokens: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None

    def least_seconds(
        self, requests: float, input_tokens: float, output_tokens: float
    ) -> tuple[float, str]:
        """The least time for so much work, and the limit that makes it: 0 and '' without any."""
        needs = (
            (requests, self.requests, "requests per minute"),
            (input_tokens + output_tokens, self.tokens, "tokens per minute"),
            (input_tokens, self.input_tokens, "input tokens per minute"),
            (output_tokens, self.output_tokens, "output tokens per minute"),
        )
        found = [(60.0 * need / limit, name) for need, limit, name in needs if limit]
        return max(found, default=(0.0, ""))


def rate_limits(headers: Mapping[str, str]) -> RateLimits:
    """Read the limits of one response; what is no positive number says nothing."""
    folded = {name.lower(): value for name, value in headers.items()}

    def first(*names: str) -> float | None:
        for name in names:
            try:
                value = float(folded[name])
            except (KeyError, ValueError):
                continue
            if 0 < value < float("inf"):
                return value
        return None

    return RateLimits(
        requests=first("x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit"),
        tokens=first("x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
        input_tokens=first("anthropic-ratelimit-input-tokens-limit"),
        output_tokens=first("anthropic-ratelimit-output-tokens-limit"),
    )
