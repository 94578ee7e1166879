"""The official openai and anthropic clients through the gateway, against servers on loopback."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from aiohttp import web
from gateway_servers import (
    OFF,
    Model,
    Running,
    breaks_off,
    chat_body,
    gateway,
    models,
    says,
    status,
    two,
)


def openai_at(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0)


def anthropic_at(running: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=running.url, api_key="k", max_retries=0)


HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def test_the_example_asks_four_ways() -> None:
    path = Path(__file__).parents[2] / "examples" / "gateway_client.py"
    spec = importlib.util.spec_from_file_location("gateway_client", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    teacher = Model(says("good"))
    with models(teacher), gateway(two(teacher, None)) as running:
        answers = example.ask(f"{running.url}/v1", "t", "hello")
    assert answers[:5] == ("good", "good", "good", "good", "teacher")
    assert answers.request_id.startswith("req_")


def test_what_the_openai_client_sends_arrives_and_its_errors_are_its_own() -> None:
    teacher = Model(says("good"))
    extras: Any = {
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "seed": 1,
        "extra_body": {"unknown_to_us": {"a": [1]}},
    }
    with models(teacher), gateway(two(teacher, None)) as running, openai_at(running) as client:
        answer = client.chat.completions.create(model="t", messages=HELLO, **extras)
        assert answer.choices[0].logprobs is not None
        sent = teacher.bodies[0]
        assert sent["tools"] == [TOOL]
        assert sent["unknown_to_us"] == {"a": [1]}
        assert sent["response_format"] == extras["response_format"]
        assert [one.id for one in client.models.list()] == ["t"]
        assert client.models.retrieve("t").id == "t"

        usage = [
            chunk.usage
            for chunk in client.chat.completions.create(
                model="t",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
        assert usage[-1] is not None
        assert usage[-1].prompt_tokens == 10

        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="other", messages=HELLO)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="t", messages=[])
        assert bad.value.param == "messages"
        teacher.answer = status(429, {"retry-after": "7"})
        with pytest.raises(openai.RateLimitError) as busy:
            client.chat.completions.create(model="t", messages=HELLO)
        assert busy.value.response.headers["retry-after"] == "7"
        teacher.answer = breaks_off("half")
        with pytest.raises(openai.APIError, match="broke off"):
            list(client.chat.completions.create(model="t", messages=HELLO, stream=True))


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-there",
    "content": [
        {"type": "text", "text": "good"},
        {"type": "tool_use", "id": "tu_1", "name": "look", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 5},
}


async def claude(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    if not body.get("stream"):
        return web.json_response(MESSAGE)
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**MESSAGE, "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": letter},
            }
            for letter in "good"
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 4},
        },
        {"type": "message_stop"},
    ]
    text = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events)
    return web.Response(text=text, content_type="text/event-stream")


def anthropic_task(model: Model) -> dict[str, Any]:
    raw = two(model, None)
    raw["upstreams"]["big"]["kind"] = "anthropic"
    return raw


def test_the_anthropic_client_with_an_anthropic_teacher() -> None:
    teacher = Model(claude)
    with models(teacher), gateway(anthropic_task(teacher)) as running:
        with anthropic_at(running) as client:
            answer = client.messages.create(model="t", max_tokens=9, messages=HELLO)
            assert answer.content[1].type == "tool_use"
            with client.messages.stream(model="t", max_tokens=9, messages=HELLO) as stream:
                assert "".join(stream.text_stream) == "good"
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(model="other", max_tokens=9, messages=HELLO)
        logged = running.wait_for(2)
    assert [served.prompt_tokens for _, served in logged] == [15, 15]
    assert [served.completion_tokens for _, served in logged] == [2, 4]
    assert teacher.headers[0]["x-api-key"] == "sk-of-big"
    assert teacher.bodies[0]["model"] == "big-1"


def test_the_openai_client_with_an_anthropic_teacher() -> None:
    teacher = Model(claude)
    asked: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "found"},
        {"role": "user", "content": [{"type": "text", "text": "so?"}]},
    ]
    tools: Any = [TOOL]
    with models(teacher):
        raw = anthropic_task(teacher)
        with gateway(raw) as running, openai_at(running) as client:
            answer = client.chat.completions.create(model="t", messages=asked, tools=tools)
            assert answer.choices[0].message.content == "good"
            assert answer.choices[0].finish_reason == "tool_calls"
            assert answer.usage is not None
            assert answer.usage.total_tokens == 17
            calls = answer.choices[0].message.tool_calls
            assert calls is not None
            assert calls[0].id == "tu_1"
            chunks = list(client.chat.completions.create(model="t", messages=HELLO, stream=True))
            assert "".join(one.choices[0].delta.content or "" for one in chunks) == "good"
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(model="t", messages=HELLO, logprobs=True)
            assert refused.value.param == "logprobs"
    sent = teacher.bodies[0]
    assert sent["system"] == "Be brief."
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in sent["messages"][2]["content"]] == ["tool_result", "text"]
    assert sent["max_tokens"] == 4096


def test_the_anthropic_client_with_a_student_behind_openais_api() -> None:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(chat_body("small"))

    teacher, student = Model(status(500)), Model(answer)
    with models(teacher, student):
        raw = two(teacher, student, **OFF)
        raw["upstreams"]["big"]["kind"] = "anthropic"
        with gateway(raw) as running, anthropic_at(running) as client:
            found = client.messages.create(
                model="t", max_tokens=9, system="Be brief.", messages=HELLO
            )
            assert found.content[0].type == "text"
            assert found.content[0].text == "small"
            with client.messages.stream(model="t", max_tokens=9, messages=HELLO) as stream:
                assert stream.get_final_text() == "small"
    assert student.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
