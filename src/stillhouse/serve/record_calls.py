"""What the traffic log and the metrics are told of a request that has been answered.

Runs after the answer is on its way, but on the event loop: what it takes here, other requests wait.
Knows no log: offers to the one it is given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from prometheus_client import Counter, Histogram

from stillhouse.core.gateway_log import GatewayCall, GatewayUsage
from stillhouse.core.records import Record
from stillhouse.core.token_counts import token_count
from stillhouse.serve.anthropic_shapes import prompt_tokens
from stillhouse.serve.ask import Ask
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.records import Served, Variant
from stillhouse.serve.seams import Log
from stillhouse.serve.upstream import Upstream

R = TypeVar("R", bound=Record)


def pseudonym(tenant: str, user: str) -> str:
    """What stands for a user in the log: the same for one user of one tenant."""
    text = f"{tenant}\n{user}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).hexdigest()


def tokens_of(response: Mapping[str, Any] | None) -> tuple[int, int]:
    """Prompt and completion tokens, as the server counted them; 0 where it did not, or wrote what
    cannot be a count."""
    usage = (response or {}).get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    if "input_tokens" in usage:
        return prompt_tokens(usage), token_count(usage.get("output_tokens")) or 0
    found = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return token_count(found[0]) or 0, token_count(found[1]) or 0


def trusted(kind: type[R], values: dict[str, Any]) -> R:
    """A record of all its fields, none of them validated or copied.

    For values that were checked where they came in: `model_construct` would take as long as passing
    the request on does.
    """
    made = kind.__new__(kind)
    set_ = object.__setattr__
    set_(made, "__dict__", values)
    set_(made, "__pydantic_fields_set__", set(values))
    set_(made, "__pydantic_extra__", None)
    set_(made, "__pydantic_private__", None)
    return made


class Went(NamedTuple):
    """How a request went. `shadow_of`: the id of the request that it was asked beside. `weight`:
    of its answer in memory, in bytes."""

    variant: Variant
    upstream: Upstream
    teacher: Upstream
    status: int
    error: str | None
    shadow_of: str | None
    weight: int


class _Meters(NamedTuple):
    """The metrics of one task, variant, route and status: looked up once."""

    requests: Counter
    seconds: Histogram
    first_token: Histogram
    input: Counter
    output: Counter
    cost: Counter
    saved: Counter


class Recorder:
    """Tells log and metrics."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics
        # As many as the metrics have label sets: names of gateway.yaml and statuses.
        self._meters: dict[tuple[str, str, str, int], _Meters] = {}

    def answered(self, ask: Ask, went: Went, response: Mapping[str, Any] | None) -> None:
        """One request as it went."""
        variant, upstream, teacher, status, error, shadow_of, weight = went
        took = time.perf_counter() - ask.started
        read, written = tokens_of(response)
        sampled = ask.sampled_tokens if variant == "student" else (0, 0)
        cost = upstream.cost_usd(read + sampled[0], written + sampled[1])
        full = teacher.cost_usd(read, written)
        if shadow_of is None:
            self._count(ask, went, took, (read, written), (cost, full))
        if error is None and response is None:
            error = f"status {status}"
        usage: GatewayUsage | None = None
        if read or written:
            usage = trusted(GatewayUsage, {"prompt_tokens": read, "completion_tokens": written})
        place = ask.assignment
        call = trusted(
            GatewayCall,
            {
                "log": "stillhouse",
                "id": ask.id,
                "at": datetime.fromtimestamp(ask.at, UTC).isoformat(),
                "user": ask.user,
                "model": f"{upstream.section.kind}:{upstream.section.model}",
                "request": ask.body,
                "response": None if error else response,
                "usage": usage,
                "latency_ms": took * 1000,
                "cost_usd": cost,
                "cached": False,
                "error": error,
            },
        )
        served = trusted(
            Served,
            {
                "id": ask.id,
                "at": ask.at,
                "task": ask.name,
                "tenant": ask.tenant,
                "unit": place.unit,
                "user": None if ask.user is None else pseudonym(ask.tenant, ask.user),
                "arm": place.arm,
                "variant": variant,
                "stage": place.stage,
                "version": place.version,
                "upstream": upstream.name,
                "fingerprint": _author(ask, went),
                "fell_back": ask.fell_back is not None,
                "confidence": ask.confidence,
                "features": ask.features,
                "prompt_tokens": read,
                "completion_tokens": written,
                "cost_usd": cost,
                "teacher_cost_usd": full,
                "latency_ms": took * 1000,
                "first_token_ms": None if ask.first_byte_s is None else ask.first_byte_s * 1000,
                "status": status,
                "error": error,
                "shadow_of": shadow_of,
            },
        )
        if not self._log.offer(call, served, ask.weight + weight):
            self._metrics.dropped.inc()

    def _count(
        self,
        ask: Ask,
        went: Went,
        took: float,
        tokens: tuple[int, int],
        costs: tuple[float, float],
    ) -> None:
        key = (ask.name, went.variant, ask.route, went.status)
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = self._meters_of(*key)
        meters.requests.inc()
        meters.seconds.observe(took)
        begun = took if ask.first_byte_s is None else ask.first_byte_s
        if ask.upstream_s:
            self._metrics.added.observe(max(0.0, begun - ask.upstream_s))
        if ask.first_byte_s is not None:
            meters.first_token.observe(begun)
        if tokens[0]:
            meters.input.inc(tokens[0])
        if tokens[1]:
            meters.output.inc(tokens[1])
        if costs[0]:
            meters.cost.inc(costs[0])
        if costs[1] > costs[0]:
            meters.saved.inc(costs[1] - costs[0])

    def _meters_of(self, task: str, variant: str, route: str, status: int) -> _Meters:
        metrics = self._metrics
        return _Meters(
            metrics.requests.labels(task, variant, route, str(status)),
            metrics.seconds.labels(task, variant, route, "" if status < 400 else str(status)),
            metrics.first_token.labels(task, variant, route),
            metrics.tokens.labels(task, variant, route, "input"),
            metrics.tokens.labels(task, variant, route, "output"),
            metrics.cost.labels(task, variant),
            metrics.saved.labels(task),
        )


def _author(ask: Ask, went: Went) -> str | None:
    """The fingerprint of who answered: of an adapter's answer as the answer itself has it, for it
    says nothing of the shared student."""
    found = went.upstream.fingerprint
    own = ask.own_adapter if went.variant == "student" else None
    return found if found is None or own is None else f"{found}.{own}"
