"""What providers say of their rate limits in the headers of every answer, and what still fits.

OpenAI and its kin: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, reset as a duration
(`6m0s`, `120ms`). Anthropic: `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-
{limit,remaining,reset}`, reset as an RFC 3339 time. Both are token buckets that fill steadily, and
the reset is when the bucket will be full. Pure: clocks are passed in. Sends nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple, get_args

Resource = Literal["requests", "tokens", "input-tokens", "output-tokens"]
RESOURCES: Final[tuple[Resource, ...]] = get_args(Resource)
_UNITS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|d|h|m|s)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")
# A bare number this big is a time, not a duration: some servers send the epoch.
_EPOCH_S: Final = 1e9
LONGEST_RESET_S: Final = 86400.0


class Seen(NamedTuple):
    """One limit as one answer's headers tell it; `full_in_s` is when it will be whole again."""

    resource: Resource
    remaining: float
    limit: float | None
    full_in_s: float | None


class Cost(NamedTuple):
    """What one request takes of each limit, as estimated before it is sent."""

    prompt_tokens: float = 0.0
    answer_tokens: float = 0.0

    def of(self, resource: Resource) -> float:
        """Units of one resource."""
        if resource == "requests":
            return 1.0
        if resource == "input-tokens":
            return self.prompt_tokens
        # OpenAI counts max_tokens ahead; Anthropic counts output as it is written.
        return 1.0 if resource == "output-tokens" else self.prompt_tokens + self.answer_tokens


def read_limits(headers: Mapping[str, str], wall_now: float) -> tuple[Seen, ...]:
    """The limits that an answer's headers name; what cannot be read is left out.

    Args:
        headers: names in any case; a mapping that folds case, or lower-case names.
        wall_now: seconds since the epoch.
    """
    found: list[Seen] = []
    for resource in RESOURCES:
        for remaining, limit, reset in (
            (
                f"x-ratelimit-remaining-{resource}",
                f"x-ratelimit-limit-{resource}",
                f"x-ratelimit-reset-{resource}",
            ),
            (
                f"anthropic-ratelimit-{resource}-remaining",
                f"anthropic-ratelimit-{resource}-limit",
                f"anthropic-ratelimit-{resource}-reset",
            ),
        ):
            left = _number(headers.get(remaining))
            if left is not None:
                whole = _number(headers.get(limit))
                full_in_s = reset_s(headers.get(reset), wall_now)
                found.append(Seen(resource, left, whole or None, full_in_s))
    return tuple(found)


def reset_s(raw: str | None, wall_now: float) -> float | None:
    """Seconds until a reset: a duration, a number of seconds, an epoch or an RFC 3339 time."""
    if raw is None:
        return None
    text = raw.strip()
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    else:
        number = _number(text)
        if number is not None:
            seconds = number - wall_now if number >= _EPOCH_S else number
        else:
            try:
                at = datetime.fromisoformat(text)
            except ValueError:
                return None
            if at.tzinfo is None:
                return None
            seconds = at.timestamp() - wall_now
    return min(max(seconds, 0.0), LONGEST_RESET_S)


def _number(raw: str | None) -> float | None:
    try:
        number = float(raw) if raw is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit since it was last seen. `sent` is what had been sent in all, by then."""

    seen: Seen
    at: float
    sent: float

    def wait_s(self, now: float, sent: float, cost: float) -> float:
        """Seconds until a request of this cost fits; 0 where it does or nothing is known.

        level(t) = remaining + (limit - remaining) * (t - at) / full_in, less what was sent since.

        Args:
            now: on the clock of `at`.
            sent: what has been sent in all by now.
            cost: of the request; one that is bigger than the limit waits for the whole of it.
        """
        remaining, limit, full_in_s = self.seen[1:]
        passed = now - self.at
        if full_in_s is None or passed >= full_in_s:
            return 0.0  # what was seen says nothing of now
        left = full_in_s - passed
        need = min(cost, limit) if limit is not None else cost
        short = need - (remaining - (sent - self.sent))
        if limit is None or limit <= remaining:
            return left if short > 0 else 0.0
        rate = (limit - remaining) / full_in_s
        short -= rate * passed
        return min(left, short / rate) if short > 0 else 0.0
