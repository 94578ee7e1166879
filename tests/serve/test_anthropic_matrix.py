"""The official anthropic client, blocking and awaited, before models of both APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import anthropic
import pytest
from faithful_model import WORDS, faithful
from gateway_servers import Answer, Model, breaks_off, gateway, models, status, two
from test_gateway_clients import claude

HELLO: Any = [{"role": "user", "content": "hello"}]
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
ASKED: dict[str, Any] = {"max_tokens": 9, "messages": HELLO}


class Site(NamedTuple):
    """A gateway with a task before OpenAI's API (`o`) and one before Anthropic's (`a`)."""

    url: str
    openai: Model
    anthropic: Model


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    one, other = Model(faithful), Model(claude)
    with models(one, other):
        raw = two(one, None)
        raw["upstreams"]["other"] = {
            **raw["upstreams"]["big"],
            "base_url": other.url,
            "kind": "anthropic",
        }
        for upstream in raw["upstreams"].values():
            upstream |= {"retry": {"attempts": 1}, "breaker": {"failures": 1000}}
        raw["tasks"] = {"o": {"teacher": "big"}, "a": {"teacher": "other"}}
        raw["clients"] = [{"tenant": "x", "sha256": sha256(b"key").hexdigest()}]
        raw["clients"][0]["scopes"] = ["o", "a"]
        with gateway(raw) as running:
            yield Site(running.url, one, other)


class Client:
    """One call of a client, blocking or awaited; streams as lists of events."""

    def __init__(self, site: Site, awaited: bool) -> None:
        self.options: dict[str, Any] = {"base_url": site.url, "api_key": "key", "max_retries": 0}
        self._awaited = awaited

    def create(self, **named: Any) -> Any:
        return asyncio.run(self._create(**named)) if self._awaited else self._block(**named)

    def _block(self, **named: Any) -> Any:
        with anthropic.Anthropic(**self.options) as client:
            found = client.messages.create(**named)
            return list(found) if named.get("stream") else found

    async def _create(self, **named: Any) -> Any:
        async with anthropic.AsyncAnthropic(**self.options) as client:
            found: Any = await client.messages.create(**named)
            return [one async for one in found] if named.get("stream") else found

    def streamed(self, **named: Any) -> tuple[str, Any]:
        """Text, and the final message."""
        if self._awaited:
            return asyncio.run(self._streamed(**named))
        with (
            anthropic.Anthropic(**self.options) as client,
            client.messages.stream(**named) as stream,
        ):
            return "".join(stream.text_stream), stream.get_final_message()

    async def _streamed(self, **named: Any) -> tuple[str, Any]:
        async with (
            anthropic.AsyncAnthropic(**self.options) as client,
            client.messages.stream(**named) as stream,
        ):
            text = "".join([one async for one in stream.text_stream])
            return text, await stream.get_final_message()


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def client(request: pytest.FixtureRequest, site: Site) -> Client:
    return Client(site, request.param)


@pytest.mark.parametrize(("task", "text"), [("o", "".join(WORDS)), ("a", "good")])
def test_plain_and_streamed(client: Client, task: str, text: str) -> None:
    answer = client.create(model=task, **ASKED)
    assert answer.content[0].text == text
    assert answer.usage.output_tokens > 0
    assert answer._request_id.startswith("req_")
    events = client.create(model=task, stream=True, **ASKED)
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    said, whole = client.streamed(model=task, **ASKED)
    assert said == text
    assert whole.stop_reason == "end_turn"


@pytest.mark.parametrize("task", ["o", "a"])
def test_tools(client: Client, task: str) -> None:
    answer = client.create(model=task, tools=[TOOL], **ASKED)
    [used] = [one for one in answer.content if one.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert isinstance(used.input, dict)
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": [used.to_dict()]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "sun"}],
        },
    ]
    again = client.create(model=task, max_tokens=9, messages=turns, system="Be brief.")
    assert again.content[0].text


ERRORS: list[tuple[str, Answer | None, dict[str, Any], type[anthropic.APIStatusError], str]] = [
    ("a", None, {"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
    ("a", None, {"model": "z"}, anthropic.NotFoundError, "not_found_error"),
    ("a", status(400), {}, anthropic.BadRequestError, "t"),
    ("o", status(400), {}, anthropic.BadRequestError, "invalid_request_error"),
    ("o", status(429), {}, anthropic.RateLimitError, "rate_limit_error"),
    ("a", status(529), {}, anthropic.InternalServerError, "api_error"),
    ("a", status(503), {}, anthropic.ServiceUnavailableError, "overloaded_error"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", ERRORS, ids=range(len(ERRORS)))
def test_errors_are_the_clients_own(
    client: Client, site: Site, case: tuple[Any, ...], streamed: bool
) -> None:
    task, answer, changes, kind, type_ = case
    site.openai.answer, site.anthropic.answer = answer or faithful, answer or claude
    try:
        with pytest.raises(kind) as caught:
            client.create(**{"model": task, **ASKED, "stream": streamed, **changes})
    finally:
        site.openai.answer, site.anthropic.answer = faithful, claude
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == type_
    assert caught.value.request_id is not None


def test_a_wrong_key(client: Client) -> None:
    client.options["api_key"] = "wrong"
    with pytest.raises(anthropic.AuthenticationError):
        client.create(model="a", **ASKED)


def test_a_stream_that_breaks_off_is_an_error(client: Client, site: Site) -> None:
    site.openai.answer = breaks_off("half")
    try:
        with pytest.raises(anthropic.APIError):
            client.create(model="o", **ASKED, stream=True)
    finally:
        site.openai.answer = faithful
