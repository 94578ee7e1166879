"""Requests and answers of every shape: an answer or an error, never a failure inside."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from aiohttp import web
from gateway_servers import FULL, Model, gateway, models, sse, two
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gateway_http import ASK, send

from stillhouse.serve.anthropic_stream import joined_messages
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.ask import Ask, sent_body
from stillhouse.serve.features import answer_features
from stillhouse.serve.gateway_sections import LimitsSection, TaskSection
from stillhouse.serve.record_calls import tokens_of
from stillhouse.serve.records import Assignment
from stillhouse.serve.request_checks import check_chat
from stillhouse.serve.sse import joined, tokens_in, without_logprobs, without_usage

NASTY: list[Any] = [
    [],
    "text",
    None,
    {},
    {"choices": 5},
    {"choices": [1]},
    {"choices": [[]]},
    {"choices": []},
    {"choices": [{}]},
    {"choices": [{"message": 5, "logprobs": [1]}], "usage": []},
    {"choices": [{"message": {"content": 5}, "logprobs": {"content": [{"logprob": "x"}]}}]},
    {"choices": [{"logprobs": {"content": 7}}], "usage": {"prompt_tokens": "many"}},
    {"choices": [{"message": {"tool_calls": 3}}], "usage": {"completion_tokens": -1}},
    {"content": [1], "usage": {"input_tokens": 1}},
    {"content": [{"type": "text"}], "usage": {"input_tokens": "x", "output_tokens": {}}},
    {"content": [{"type": "tool_use"}], "id": 5, "model": None, "stop_reason": []},
    {"data": [1]},
    {"error": {"message": "in a 200"}},
]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_whatever_json_a_model_answers_the_client_gets_an_answer_or_an_error(kind: str) -> None:
    now: list[Any] = [None]

    async def nasty(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return web.Response(body=sse(now[0]), content_type="text/event-stream")
        return web.json_response(now[0])

    student, teacher = Model(nasty), Model(nasty)
    with models(teacher, student):
        raw = two(teacher, student, **FULL, fallback={"threshold": 0.5})
        for one in raw["upstreams"].values():
            one["kind"] = kind
            one["retry"] = {"attempts": 1}
            one["breaker"] = {"failures": 10**6}
        with gateway(raw) as running:
            for answer in NASTY:
                now[0] = answer
                for ask, path in (
                    (ASK, "/v1/chat/completions"),
                    ({**ASK, "stream": True}, "/v1/chat/completions"),
                    ({**ASK, "max_tokens": 5}, "/v1/messages"),
                    ({**ASK, "max_tokens": 5, "stream": True}, "/v1/messages"),
                ):
                    got = send(running.url, ask, path)
                    assert got.status in (200, 502), (answer, path)
                    assert got.headers["x-request-id"]


NO_COUNTS: list[Any] = [-5, True, 10**400, 1e308, "many", None, [], 2.5]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_token_counts_that_cannot_be_are_absent_and_cost_nothing(kind: str) -> None:
    """Answered, logged with finite figures, counted: whatever a server says that it counted."""
    now: list[Any] = [None]

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        count = now[0]
        names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
        usage = dict.fromkeys(names[:2] if kind == "openai" else names[2:], count)
        head = {"id": "a", "created": 1, "model": "m", "usage": usage}
        if kind == "anthropic":
            content = [{"type": "text", "text": "good"}]
            told = {**head, "type": "message", "role": "assistant", "content": content}
        else:
            message = {"role": "assistant", "content": "good"}
            told = {**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        return web.json_response(told)

    teacher, student = Model(answer), Model(answer)
    with models(teacher, student):
        raw = two(teacher, student)
        for one in raw["upstreams"].values():
            one |= {"kind": kind, "price": {"input": 3.0, "output": 15.0}}
        with gateway(raw) as running:
            for count in (*NO_COUNTS, 7):
                now[0] = count
                for path in ("/v1/chat/completions", "/v1/messages"):
                    got = send(running.url, {**ASK, "max_tokens": 5}, path)
                    assert got.status == 200, (count, path, got.body)
            running.wait_for(4 * len(NO_COUNTS) + 4)  # shadow answers too
            every = [served for _, served in running.log.calls]
            assert all(math.isfinite(one.cost_usd + one.teacher_cost_usd) for one in every)
            rows = [one for one in every if one.shadow_of is None]
            assert len(rows) == 2 * len(NO_COUNTS) + 2
            for row in rows[:-2]:
                assert (row.prompt_tokens, row.completion_tokens) == (0, 0)
                assert (row.cost_usd, row.teacher_cost_usd) == (0, 0)
            for row in rows[-2:]:
                assert (row.prompt_tokens, row.completion_tokens) == (7, 7)
                assert row.cost_usd == pytest.approx(7 * 18 / 1e6)
            page = running.gateway.metrics.page().decode()
            costs = re.findall(r"^stillhouse_cost_usd_total.* (\S+)$", page, re.M)
            assert [float(one) for one in costs] == [pytest.approx(2 * 7 * 18 / 1e6)]


@pytest.mark.parametrize(
    "names", [("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")]
)
@pytest.mark.parametrize("count", NO_COUNTS)
def test_a_count_that_cannot_be_leaves_the_other_one(names: tuple[str, str], count: Any) -> None:
    first, second = names
    assert tokens_of({"usage": {first: count, second: 7}}) == (0, 7)
    assert tokens_of({"usage": {first: 7, second: count}}) == (7, 0)


WORDS = """role content text type tool_calls function name arguments tools tool_choice id input
index choices delta logprobs logprob top_logprobs message usage system image_url url auto user tool
tool_result tool_use content_block content_block_delta message_delta message_start"""
TEXT = st.sampled_from(WORDS.split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": JSON, "tool_calls": JSON, "tool_call_id": JSON},
)
BODY = st.fixed_dictionaries(
    {"model": st.just("t"), "messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    optional=dict.fromkeys(
        ("system", "tools", "tool_choice", "stop", "stop_sequences", "metadata", "n"), JSON
    ),
)


@settings(max_examples=60)
@given(BODY, st.sampled_from(["chat", "messages"]), st.sampled_from(["openai", "anthropic"]))
def test_any_request_is_sent_on_or_is_an_api_error(body: Any, route: Any, kind: str) -> None:
    place = Assignment(task="t", unit="u", arm="control", variant="teacher", stage=0, version=0)
    task = TaskSection(teacher="big")
    ask = Ask("r", 0, 0, route, "t", task, body, "", None, None, place)
    try:
        check_chat(body, LimitsSection())
        sent = json.loads(sent_body(ask, kind, "m"))
    except ApiError as error:
        sent = {"model": "m"} if error.status == 400 else {}
    assert sent["model"] == "m"


@settings(max_examples=60)
@given(st.lists(st.dictionaries(TEXT, JSON, max_size=5), max_size=4))
def test_any_stream_is_joined(chunks: list[Any]) -> None:
    events = [b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks]
    for join in (joined, joined_messages):
        answer = join(events)
        assert isinstance(answer, dict)
        assert all(one >= 0 for one in tokens_of(answer))
        assert isinstance(answer_features(answer), dict)
    for event in events:
        assert isinstance(without_usage(event), bytes)
        for alternatives in (None, 0, 2):
            assert isinstance(without_logprobs(event, alternatives), bytes)
        assert tokens_in(event) >= 0
