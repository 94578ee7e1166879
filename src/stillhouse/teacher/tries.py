"""All tries of one query: wait for leave, set money aside, send, learn, try again or give up.

What a try means is `retry.judge`'s to say, when the next may go `gate`'s, what it may cost
`budget`'s; this module is the order in which they are asked. A try that may have been billed is
counted at its worst, on disk, before the next is sent. Tries that fail while the server is down are
the outage's, not the query's: they use up none of its retries, and neither does a 429 while other
queries are answered. Knows one query at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.api import ApiTeacher, Attempt
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.gate import Gate, StoppedError
from stillhouse.teacher.limiter import Kind, Outcome
from stillhouse.teacher.limits import Cost, read_limits
from stillhouse.teacher.retry import TeacherFailure, Verdict, judge
from stillhouse.teacher.wire import EXPECTED

BYTES_PER_TOKEN: Final = 4  # English prose; only for the limits, which the server has last word on
INTERRUPTED: Final = "interrupted"
_FAILED: Final = frozenset({"server", "connection", "timeout", "unreadable"})

Keep = Callable[[Sequence[Completion], float], Awaitable[float | None]]


class Tries:
    """What all queries of a run share when they are tried.

    Args:
        teacher: who is asked.
        gate: when.
        budget: at what price.
        deadline_s: how long a query may take, over all its tries and waits; `None` for no limit.
    """

    def __init__(
        self, teacher: ApiTeacher, gate: Gate, budget: Budget, deadline_s: float | None
    ) -> None:
        self._teacher = teacher
        self._gate = gate
        self._budget = budget
        self._deadline_s = deadline_s
        self.failed: Counter[str] = Counter()  # tries, by reason
        self._answered = 0

    async def answer(self, query: Query, sampling: Sampling, keep: Keep) -> None:
        """Try until answers to one request are kept.

        Args:
            query: what is asked.
            sampling: how answers are drawn.
            keep: makes answers durable, given their worst cost; returns what they cost in USD.

        Raises:
            TeacherFailure: no try succeeded.
            BudgetError: the next try would cross the budget.
            StoppedError: the run has ended.
        """
        retrying, gate, budget = self._teacher.retrying, self._gate, self._budget
        until = None if self._deadline_s is None else gate.now() + self._deadline_s
        worst = budget.worst_usd(query, sampling)
        cost = _cost(query, sampling)
        said = "it was never sent"
        tried = counted = 0
        answered = self._answered
        while True:
            try:
                let = await gate.enter(cost, until)
            except TimeoutError:
                raise self._too_late(said, tried) from None
            try:
                await budget.reserve(worst)
            except BaseException:
                gate.leave(let, Outcome("dropped"))
                raise
            if gate.stopped:  # while the money was set aside
                gate.leave(let, Outcome("dropped"))
                await budget.settle(worst, 0.0)
                raise StoppedError
            tried += 1
            try:
                attempt = await self._send(query, sampling, until)
            except EXPECTED as error:
                verdict = judge(error, retrying.now())
                said = self._teacher.describe(error, verdict)
                self.failed[verdict.reason] += 1
                hopeless = (verdict.retry_after_s or 0.0) > retrying.longest_wait_s
                gate.leave(let, _outcome(verdict, error, retrying.now(), hopeless))
                if verdict.billable:
                    await budget.lose(worst, verdict.reason)
                else:
                    await budget.settle(worst, 0.0)
            except BaseException:
                gate.leave(let, Outcome("dropped"))
                await budget.lose(worst, INTERRUPTED)
                raise
            else:
                self._answered += 1
                gate.leave(let, Outcome("ok", seen=read_limits(attempt.headers, retrying.now())))
                paid: float | None = None
                try:
                    paid = await keep(attempt.completions, worst)
                finally:
                    await budget.settle(worst, paid)
                return
            if gate.breaker.gives_up(gate.now()):
                raise TeacherFailure(
                    "outage",
                    f"{said}; no answer for minutes: every answer so far is kept, run the same "
                    "command again once the server is back",
                )
            held_back = verdict.reason == "rate_limit"
            others_go_on = held_back and self._answered > answered
            answered = self._answered
            counted += not (gate.breaker.is_open or others_go_on)
            if not verdict.again or hopeless or counted > retrying.retries:
                tries = f" (after {tried} tries)" if tried > 1 and not hopeless else ""
                if hopeless:
                    tries = f" (the server asks to wait {verdict.retry_after_s:.0f} s)"
                raise TeacherFailure(verdict.reason, said + tries)
            # After a 429 the gate holds all requests, for longer each time.
            step = retrying.base_s * (1.0 if held_back else 2.0 ** min(counted, 30))
            wait = retrying.uniform(0.0, min(retrying.cap_s, step))
            if until is not None and gate.now() + wait >= until:
                raise self._too_late(said, tried)
            await gate.rest(wait)

    async def _send(self, query: Query, sampling: Sampling, until: float | None) -> Attempt:
        timeout_s = float("inf") if until is None else max(0.001, until - self._gate.now())
        return await self._teacher.attempt(query, sampling, timeout_s)

    def _too_late(self, said: str, tried: int) -> TeacherFailure:
        return TeacherFailure(
            "deadline",
            f"no answer within teacher.deadline_s ({self._deadline_s:g} s, {tried} tries); the "
            f"last: {said}",
        )


def _cost(query: Query, sampling: Sampling) -> Cost:
    size = sum(len(message.content) for message in query.messages)
    return Cost(size / BYTES_PER_TOKEN, float(sampling.n * sampling.max_tokens))


def _outcome(verdict: Verdict, error: Exception, wall_now: float, hopeless: bool) -> Outcome:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    kind: Kind = "refused"
    if verdict.reason == "rate_limit":
        kind = "rate_limit"
    elif verdict.reason in _FAILED:
        kind = "failed"
    wait = None if hopeless else verdict.retry_after_s
    return Outcome(kind, wait, read_limits(headers, wall_now))
