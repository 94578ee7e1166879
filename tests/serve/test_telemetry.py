"""What is measured, in OpenTelemetry's words: its protocol, its names, only where it is wanted."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiohttp import web
from gateway_servers import ADMIN, FULL, Model, gateway, models, says, status, two
from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from test_gateway_http import ASK, send

from stillhouse.core.errors import UserError
from stillhouse.serve.gateway_sections import TelemetrySection
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.telemetry import headers_of, otlp_body


def metrics_of(body: bytes) -> dict[str, Any]:
    """By name, as the protocol's own reader has them: it refuses what it does not know."""
    request = Parse(body, ExportMetricsServiceRequest())
    [resource] = request.resource_metrics
    assert resource.resource.attributes[0].value.string_value == "stillhouse"
    [scope] = resource.scope_metrics
    found = {metric.name: metric for metric in scope.metrics}
    assert len(found) == len(scope.metrics)
    return found


def attributes(point: Any) -> dict[str, str]:
    return {one.key: one.value.string_value for one in point.attributes}


def test_the_list_of_what_is_measured_is_told_under_the_conventions_names() -> None:
    teacher, student = Model(says("big")), Model(status(500))
    with models(teacher, student), gateway(two(teacher, student, **FULL)) as running:
        assert send(running.url, ASK).status == 200  # falls back
        assert send(running.url, {**ASK, "stream": True}).status == 200
        running.wait_for(2)
        send(
            running.admin, path="/state", method="GET", headers={"authorization": f"Bearer {ADMIN}"}
        )
        found = metrics_of(otlp_body(running.gateway.metrics.collected(), 1, 2, "0.1.0"))
    by_teacher = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "stillhouse",
        "gen_ai.request.model": "t",
        "stillhouse.variant": "teacher",
    }
    # requests and their time, to the first token, added
    [took] = found["gen_ai.server.request.duration"].histogram.data_points
    assert attributes(took) == by_teacher
    assert (took.count, sum(took.bucket_counts)) == (2, 2)
    assert len(took.bucket_counts) == len(took.explicit_bounds) + 1
    assert found["gen_ai.server.request.duration"].unit == "s"
    [first] = found["gen_ai.server.time_to_first_token"].histogram.data_points
    assert (attributes(first), first.count) == (by_teacher, 1)
    [added] = found["stillhouse.added_seconds"].histogram.data_points
    assert added.count == 2
    [requests] = found["stillhouse.requests"].sum.data_points
    assert requests.as_double == 2
    assert attributes(requests)["stillhouse.status"] == "200"
    # tokens, cost and what was saved
    for kind, tokens in (("input", 20), ("output", 4)):
        [point] = found[f"gen_ai.client.inference.usage.{kind}_tokens"].sum.data_points
        assert point.as_double == tokens
        assert attributes(point) == {**by_teacher, "gen_ai.token.modality": "unknown"}
    [cost] = found["stillhouse.cost_usd"].sum.data_points
    assert cost.as_double == pytest.approx((20 * 10 + 4 * 20) / 1e6)
    assert "stillhouse.saved_usd" in found
    # fallback and breaker
    [fallbacks] = found["stillhouse.fallbacks"].sum.data_points
    assert attributes(fallbacks)["stillhouse.reason"] == "student-down"
    breakers = found["stillhouse.breaker"].gauge.data_points
    assert {attributes(one)["stillhouse.upstream"] for one in breakers} == {"big", "small"}
    assert all(metric.WhichOneof("data") for metric in found.values())


def test_every_metric_has_a_name_and_none_is_left_out() -> None:
    metrics = Metrics()
    named = {one.name for one in metrics.collected()}
    told = metrics_of(otlp_body(metrics.collected(), 1, 2, "0"))
    plain = {one.name for one in metrics.collected() if one.samples}
    assert {f"stillhouse.{name.removeprefix('stillhouse_')}" for name in plain} == set(told)
    assert len(named) > 12


def test_metrics_are_sent_where_the_file_says_and_a_failure_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADERS", "authorization=Bearer x, x-team = a")
    got: list[tuple[str, dict[str, str], bytes]] = []
    answers = [503, 200]

    async def take(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        got.append((request.path, headers, await request.read()))
        return web.Response(status=answers.pop(0) if answers else 200)

    collector, teacher = Model(take), Model(says("good"))
    with models(collector, teacher):
        address = collector.url.removesuffix("/v1")
        section = {"otlp": address, "headers_env": "HEADERS", "every_s": 1}
        with gateway({**two(teacher, None), "telemetry": section}) as running:
            assert send(running.url, ASK).status == 200
            ends = time.monotonic() + 20
            while len(got) < 2 and time.monotonic() < ends:
                time.sleep(0.05)
        # and once more at the end
    path, headers, _ = got[0]
    assert path == "/v1/metrics"
    assert headers["content-type"] == "application/json"
    assert (headers["authorization"], headers["x-team"]) == ("Bearer x", "a")
    assert metrics_of(got[0][2])["stillhouse.otlp_failures"].sum.data_points[0].as_double == 0
    last = metrics_of(got[-1][2])
    assert last["stillhouse.otlp_failures"].sum.data_points[0].as_double == 1
    assert last["stillhouse.requests"].sum.data_points[0].as_double == 1


def test_headers_come_from_the_environment_or_are_one_line() -> None:
    section = TelemetrySection(otlp="http://127.0.0.1:4318", headers_env="H")
    assert headers_of(section, {"H": "a=b=c"})["a"] == "b=c"
    for text in ("", "a", "=b", "a=b\r\nc: d", "a=é"):
        with pytest.raises(UserError, match="variable H must hold name=value"):
            headers_of(section, {"H": text})
    with pytest.raises(ValueError, match="keys go in a variable"):
        TelemetrySection(otlp="http://me:secret@host:4318")
