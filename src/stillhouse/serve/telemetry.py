"""The metrics in OpenTelemetry's words, and sent by its protocol (OTLP over HTTP, as JSON).

The one module that knows OpenTelemetry's names: those of the GenAI semantic conventions, version
0.1.0 (https://github.com/open-telemetry/semantic-conventions-genai), where they have one, and
`stillhouse.*` elsewhere. To its clients the gateway is a server; the tokens are those that it used
as a client of models. Nothing is sent but where gateway.yaml says so, and nothing of a request's
content is among it. Counts are since the start, so that what could not be sent is in the next.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
from prometheus_client import Metric
from prometheus_client.samples import Sample

from stillhouse.core.errors import UserError
from stillhouse.serve.gateway_sections import TelemetrySection
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.quick_json import json_bytes

# Our metric and, of tokens, their kind -> the conventions' metric.
NAMES: Final[Mapping[tuple[str, str], str]] = {
    ("stillhouse_request_seconds", ""): "gen_ai.server.request.duration",
    ("stillhouse_first_token_seconds", ""): "gen_ai.server.time_to_first_token",
    ("stillhouse_tokens", "input"): "gen_ai.client.inference.usage.input_tokens",
    ("stillhouse_tokens", "output"): "gen_ai.client.inference.usage.output_tokens",
}
LABELS: Final = {
    "task": "gen_ai.request.model",
    "operation": "gen_ai.operation.name",
    "error": "error.type",
    "variant": "stillhouse.variant",
    "upstream": "stillhouse.upstream",
    "modality": "gen_ai.token.modality",
    "reason": "stillhouse.reason",
    "result": "stillhouse.result",
}
OPERATIONS: Final = {"completions": "text_completion", "messages": "chat"}
PROVIDER: Final = "stillhouse"  # who the gateway is to its clients
UNITS: Final = {"seconds": "s", "usd": "{USD}", "tokens": "{token}"}
SEND_S: Final = 10.0
_CUMULATIVE: Final = 2


class Series(NamedTuple):
    """The samples of one metric that differ in nothing but what they count."""

    name: str
    labels: Mapping[str, str]
    samples: Sequence[Sample]


def _attributes(labels: Mapping[str, str], *, of_convention: bool) -> list[dict[str, Any]]:
    named = {LABELS.get(key, f"stillhouse.{key}"): value for key, value in labels.items() if value}
    operation = named.get("gen_ai.operation.name")
    if operation is not None:
        named["gen_ai.operation.name"] = OPERATIONS.get(operation, operation)
    if of_convention:
        named["gen_ai.provider.name"] = PROVIDER
    return [{"key": key, "value": {"stringValue": value}} for key, value in sorted(named.items())]


def _series(metric: Metric) -> Iterable[Series]:
    """A metric's samples by label set, but for the bounds of buckets, and by name of convention."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], list[Sample]] = {}
    for sample in metric.samples:
        labels = {key: value for key, value in sample.labels.items() if key != "le"}
        kind = labels.get("kind", "")
        name = NAMES.get((metric.name, kind)) or NAMES.get((metric.name, ""))
        if name is not None:
            labels.pop("kind", None)
        else:
            name = metric.name.replace("stillhouse_", "stillhouse.", 1)
        if name.startswith("gen_ai.client.inference.usage"):
            labels["modality"] = "unknown"
        found.setdefault((name, tuple(sorted(labels.items()))), []).append(sample)
    return [Series(name, dict(labels), samples) for (name, labels), samples in found.items()]


def _point(series: Series, kind: str, start_ns: int, now_ns: int) -> dict[str, Any] | None:
    convention = series.name.startswith("gen_ai.")
    point: dict[str, Any] = {
        "attributes": _attributes(series.labels, of_convention=convention),
        "startTimeUnixNano": str(start_ns),
        "timeUnixNano": str(now_ns),
    }
    values = {sample.name.rpartition("_")[2]: sample.value for sample in series.samples}
    if kind != "histogram":
        counted = [one.value for one in series.samples if not one.name.endswith("_created")]
        return {**point, "asDouble": counted[0]} if counted else None
    buckets = sorted(
        (float(one.labels["le"]), int(one.value)) for one in series.samples if "le" in one.labels
    )
    before = [0, *(count for _, count in buckets)]
    counts = [after - earlier for after, earlier in zip(before[1:], before, strict=False)]
    return {
        **point,
        "count": str(buckets[-1][1]),
        "sum": values["sum"],
        "bucketCounts": [str(count) for count in counts],
        "explicitBounds": [bound for bound, _ in buckets[:-1]],
    }


def otlp_body(collected: Iterable[Metric], start_ns: int, now_ns: int, version: str) -> bytes:
    """A request of OTLP: everything that was collected, in its JSON form.

    Args:
        start_ns, now_ns: Unix nanoseconds: since when it is counted, and until when.
    """
    metrics: list[dict[str, Any]] = []
    for metric in collected:
        by_name: dict[str, list[dict[str, Any]]] = {}
        for series in _series(metric):
            point = _point(series, metric.type, start_ns, now_ns)
            if point is not None:
                by_name.setdefault(series.name, []).append(point)
        for name, points in by_name.items():
            data: dict[str, Any] = {"dataPoints": points}
            if metric.type == "histogram":
                shape = {"histogram": {**data, "aggregationTemporality": _CUMULATIVE}}
            elif metric.type == "counter":
                summed = {**data, "aggregationTemporality": _CUMULATIVE, "isMonotonic": True}
                shape = {"sum": summed}
            else:
                shape = {"gauge": data}
            unit = UNITS.get(metric.name.rpartition("_")[2], "1")
            told = {"name": name, "description": metric.documentation, "unit": unit}
            metrics.append({**told, **shape})
    resource = [{"key": "service.name", "value": {"stringValue": "stillhouse"}}]
    scope = {"scope": {"name": "stillhouse", "version": version}, "metrics": metrics}
    return json_bytes(
        {"resourceMetrics": [{"resource": {"attributes": resource}, "scopeMetrics": [scope]}]}
    )


def headers_of(section: TelemetrySection, environment: Mapping[str, str]) -> dict[str, str]:
    """The headers that a variable holds.

    Raises:
        UserError: it is not set, or holds no headers.
    """
    found = {"content-type": "application/json"}
    if section.headers_env is None:
        return found
    text = environment.get(section.headers_env, "")
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not name or not equals or not value.isascii() or not value.isprintable():
            raise UserError(
                "telemetry.headers_env",
                f"the variable {section.headers_env} must hold name=value,name=value",
                action="export it",
            )
        found[name.lower()] = value
    return found


class Sender:
    """Sends one process' metrics, or those of all workers, every so often."""

    def __init__(
        self,
        section: TelemetrySection,
        metrics: Metrics,
        session: aiohttp.ClientSession,
        version: str,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._every_s = section.every_s
        self._url = f"{section.otlp}/v1/metrics"
        self._headers = headers_of(section, environment)
        self._metrics = metrics
        self._session = session
        self._version = version
        self._start_ns = time.time_ns()

    async def run(self) -> None:
        """Until cancelled; then once more."""
        try:
            while True:
                await asyncio.sleep(self._every_s)
                await self.send()
        finally:
            await self.send()

    def _body(self) -> bytes:
        collected = self._metrics.collected()
        return otlp_body(collected, self._start_ns, time.time_ns(), self._version)

    async def send(self) -> None:
        """Send everything; what fails is counted, and is in what is sent next."""
        body = await asyncio.to_thread(self._body)
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=SEND_S),
            ) as reply:
                if reply.status >= 300:
                    self._metrics.otlp_failures.inc()
        except (aiohttp.ClientError, OSError, TimeoutError):
            self._metrics.otlp_failures.inc()
