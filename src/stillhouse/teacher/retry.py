"""The one place where a request to a teacher is tried again.

Exponential back-off with full jitter (Brooker, AWS Architecture Blog 2015): the k-th wait is
uniform in [0, min(cap, base * 2^k)] seconds. A server's own Retry-After goes before it. Tried again
are 408, 409, 429, 5xx, broken connections and time-outs; never what the caller must mend (400, 401,
403, 404) and never an exhausted account. Knows HTTP statuses and headers; no provider, no clock:
sleep, time and randomness are passed in.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple, TypeVar

from stillhouse.core.errors import TeacherError

T = TypeVar("T")

AGAIN: Final = frozenset({408, 409, 429})
STATUS_REASONS: Final[Mapping[int, str]] = {
    400: "bad_request",
    401: "auth",
    402: "quota",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "too_long",
    422: "bad_request",
    429: "rate_limit",
}
# No other query can fare better: the whole run stops at once.
FATAL_REASONS: Final = frozenset({"auth", "quota", "not_found"})
# Of those, what the user wrote is at fault.
USER_REASONS: Final = frozenset({"auth", "not_found"})
# One query's own fault: no other query need fare alike, so they say nothing of the teacher.
INPUT_REASONS: Final = frozenset({"too_long", "content"})
_TOO_LONG: Final = (
    "context_length_exceeded",
    "context length",
    "context window",
    "prompt is too long",
    "exceed_context_size",
)
_CONTENT: Final = ("content_filter", "content_policy", "content management policy")
_EMPTY_ACCOUNT: Final = ("insufficient_quota", "credit balance is too low", "billing_not_active")


class TeacherFailure(TeacherError):
    """A teacher gave no answer to a query, after all retries.

    `reason` is a short stable word (`rate_limit`, `server`, `connection`, ...); `fatal` says that
    asking anything else is futile.
    """

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        self.fatal = reason in FATAL_REASONS
        super().__init__(" ".join(text.split()))


class UnreadableAnswerError(Exception):
    """A server answered 200 with something that is no completion; worth another try."""


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often and how long, and the clock to do it by.

    `longest_wait_s` bounds what a server may ask for in Retry-After; a longer one is a failure.
    """

    retries: int
    base_s: float = 0.5
    cap_s: float = 60.0
    longest_wait_s: float = 600.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform
    now: Callable[[], float] = time.time


class Verdict(NamedTuple):
    """What one failed try means."""

    again: bool
    reason: str
    retry_after_s: float | None
    status: int | None


def judge(error: Exception, now: float) -> Verdict:
    """Read a failed try: the API clients' status errors by their status, all else by its type."""
    status = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    if isinstance(status, int) and status >= 400 and response is not None:
        if status in {429, 400}:
            said = f"{error} {getattr(error, 'body', '')}"
            if any(word in said for word in _EMPTY_ACCOUNT):
                return Verdict(False, "quota", None, status)
            folded = said.casefold()
            if status == 400 and any(word in folded for word in _TOO_LONG):
                return Verdict(False, "too_long", None, status)
            if status == 400 and any(word in folded for word in _CONTENT):
                return Verdict(False, "content", None, status)
        headers: Mapping[str, str] = getattr(response, "headers", {})
        reason = STATUS_REASONS.get(status, "server" if status >= 500 else "bad_request")
        again = (status in AGAIN or status >= 500) and headers.get("x-should-retry") != "false"
        return Verdict(again, reason, retry_after_s(headers, now), status)
    causes = chain(error)
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return Verdict(True, "timeout", None, None)
    # Clients wrap a refused or dropped connection in an error of their own that may speak of time.
    if any(isinstance(cause, OSError) or "Disconnect" in type(cause).__name__ for cause in causes):
        return Verdict(True, "connection", None, None)
    if "Timeout" in type(error).__name__:
        return Verdict(True, "timeout", None, None)
    if isinstance(error, UnreadableAnswerError | ValueError) or isinstance(status, int):
        return Verdict(True, "unreadable", None, None)
    return Verdict(True, "connection", None, None)


def chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, outermost first."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, else Retry-After as seconds or date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        raw = headers.get(name)
        if raw is None:
            continue
        try:
            seconds = float(raw) * unit
        except ValueError:
            if name != "retry-after":
                continue
            try:
                seconds = parsedate_to_datetime(raw).timestamp() - now
            except (TypeError, ValueError):
                continue
        if seconds >= 0 and seconds != float("inf"):
            return seconds
    return None


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    retrying: Retrying,
    expected: tuple[type[Exception], ...],
    describe: Callable[[Exception, Verdict], str],
) -> T:
    """Await `attempt()` until it succeeds, must not be tried again, or `retries` are used up.

    Args:
        attempt: one try.
        retrying: how often, how long.
        expected: error types that count as a failed try; all others pass through.
        describe: one line for people about the last failed try.

    Raises:
        TeacherFailure: no try succeeded.
    """
    for tried in range(retrying.retries + 1):
        try:
            return await attempt()
        except expected as error:
            verdict = judge(error, retrying.now())
            wait = verdict.retry_after_s
            hopeless = wait is not None and wait > retrying.longest_wait_s
            if not verdict.again or hopeless or tried == retrying.retries:
                text = describe(error, verdict)
                if tried and not hopeless:
                    text += f" (after {tried + 1} tries)"
                if hopeless:
                    text += f" (the server asks to wait {wait:.0f} s)"
                raise TeacherFailure(verdict.reason, text) from None
        spread = retrying.uniform(0.0, min(retrying.cap_s, retrying.base_s * 2.0**tried))
        # Callers told the same Retry-After would come back at once: the first step of the
        # jitter goes on top of it.
        await retrying.sleep(spread if wait is None else wait + min(spread, retrying.base_s))
    raise AssertionError("the loop always returns or raises")
