"""What the traffic log and the metrics are told of a request that has been answered.

Runs after the answer is on its way. Knows no log: offers to the one it is given.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

from stillhouse.core.gateway_log import GatewayCall, GatewayUsage
from stillhouse.serve.anthropic_shapes import prompt_tokens
from stillhouse.serve.ask import Ask
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.records import Served, Variant
from stillhouse.serve.seams import Log
from stillhouse.serve.upstream import Upstream


def pseudonym(tenant: str, user: str) -> str:
    """What stands for a user in the log: the same for one user of one tenant."""
    return blake2b(f"{tenant}\n{user}".encode(), digest_size=16).hexdigest()


def tokens_of(response: Mapping[str, Any] | None) -> tuple[int, int]:
    """Prompt and completion tokens, as the server counted them; 0 where it did not."""
    usage = (response or {}).get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    if "input_tokens" in usage:
        found = [prompt_tokens(usage), usage.get("output_tokens")]
    else:
        found = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    read, written = (one if isinstance(one, int) and one >= 0 else 0 for one in found)
    return read, written


class Went(NamedTuple):
    """How a request went. `shadow_of`: the id of the request that it was asked beside."""

    variant: Variant
    upstream: Upstream
    teacher: Upstream
    status: int
    error: str | None
    shadow_of: str | None


class Recorder:
    """Tells log and metrics."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def answered(self, ask: Ask, went: Went, response: Mapping[str, Any] | None) -> None:
        """One request as it went."""
        variant, upstream, teacher, status, error, shadow_of = went
        took = time.perf_counter() - ask.started
        read, written = tokens_of(response)
        sampled = ask.sampled_tokens if variant == "student" else (0, 0)
        cost = upstream.cost_usd(read + sampled[0], written + sampled[1])
        full = teacher.cost_usd(read, written)
        if shadow_of is None:
            self._count(ask, went, took, (read, written), (cost, full))
        if error is None and response is None:
            error = f"status {status}"
        place = ask.assignment
        # Built from checked parts: validating each once more would cost more than the proxying.
        usage = GatewayUsage.model_construct(prompt_tokens=read, completion_tokens=written)
        call = GatewayCall.model_construct(
            log="stillhouse",
            id=ask.id,
            at=datetime.fromtimestamp(ask.at, UTC).isoformat(),
            user=ask.user,
            model=f"{upstream.section.kind}:{upstream.section.model}",
            request=ask.body,
            response=None if error else response,
            usage=usage if read or written else None,
            latency_ms=took * 1000,
            cost_usd=cost,
            cached=False,
            error=error,
        )
        served = Served.model_construct(
            id=ask.id,
            at=ask.at,
            task=ask.name,
            tenant=ask.tenant,
            unit=place.unit,
            user=None if ask.user is None else pseudonym(ask.tenant, ask.user),
            arm=place.arm,
            variant=variant,
            stage=place.stage,
            version=place.version,
            upstream=upstream.name,
            fell_back=ask.fell_back is not None,
            confidence=ask.confidence,
            features=ask.features,
            prompt_tokens=read,
            completion_tokens=written,
            cost_usd=cost,
            teacher_cost_usd=full,
            latency_ms=took * 1000,
            first_token_ms=None if ask.first_byte_s is None else ask.first_byte_s * 1000,
            status=status,
            error=error,
            shadow_of=shadow_of,
        )
        if not self._log.offer(call, served):
            self._metrics.dropped.inc()

    def _count(
        self,
        ask: Ask,
        went: Went,
        took: float,
        tokens: tuple[int, int],
        costs: tuple[float, float],
    ) -> None:
        metrics, task, variant = self._metrics, ask.name, went.variant
        metrics.requests.labels(task, variant, ask.route, str(went.status)).inc()
        metrics.seconds.labels(task, variant, ask.route).observe(took)
        if ask.upstream_s:
            metrics.added.observe(max(0.0, took - ask.upstream_s))
        if ask.first_byte_s is not None:
            metrics.first_token.labels(task, variant).observe(ask.first_byte_s)
        if tokens[0]:
            metrics.tokens.labels(task, variant, "input").inc(tokens[0])
        if tokens[1]:
            metrics.tokens.labels(task, variant, "output").inc(tokens[1])
        metrics.cost.labels(task, variant).inc(costs[0])
        metrics.saved.labels(task).inc(max(0.0, costs[1] - costs[0]))
