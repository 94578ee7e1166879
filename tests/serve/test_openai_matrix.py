"""The official openai client, blocking and awaited, through all that the gateway serves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
import pytest
from batch_gateways import KEYS, jsonl, line
from faithful_model import WORDS, faithful
from gateway_servers import FULL, Answer, Model, gateway, models, says, status, two
from pydantic import BaseModel
from test_gateway_http import ASK

from stillhouse.serve.batches import BatchWork
from stillhouse.serve.tables import open_database

HELLO: Any = ASK["messages"]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TEXT = "".join(WORDS)


class Label(BaseModel):
    label: str


class Site(NamedTuple):
    """A gateway with two tasks: `t` by the teacher, `g` by a student whose answers are judged."""

    url: str
    teacher: Model
    student: Model


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path_factory.mktemp('matrix')}/g.db"
    engine = open_database(url)
    teacher, student = Model(faithful), Model(faithful)
    with models(teacher, student):
        raw = two(teacher, student, **FULL, fallback={"threshold": 0.5})
        raw["tasks"] = {"g": raw["tasks"]["t"], "t": {"teacher": "big"}}
        raw["upstreams"]["big"]["retry"] = {"attempts": 1}
        raw["upstreams"]["big"]["breaker"] = {"failures": 1000}
        raw |= {"clients": KEYS, "log": {"url": url}, "batches": {}}
        with gateway(raw, batches=BatchWork(engine)) as running:
            yield Site(f"{running.url}/v1", teacher, student)
    engine.dispose()


class Client:
    """One call of a client, blocking or awaited; streams as lists of chunks."""

    def __init__(self, site: Site, awaited: bool) -> None:
        self._options: dict[str, Any] = {"base_url": site.url, "api_key": "key-a"}
        self._options["max_retries"] = 0
        self._awaited = awaited

    def __call__(self, path: str, *args: Any, **named: Any) -> Any:
        return (
            asyncio.run(self._call(path, *args, **named))
            if self._awaited
            else self._block(path, *args, **named)
        )

    def _block(self, path: str, *args: Any, **named: Any) -> Any:
        with openai.OpenAI(**self._options) as client:
            found = self._method(client, path)(*args, **named)
            return list(found) if self._many(path, named) else found

    async def _call(self, path: str, *args: Any, **named: Any) -> Any:
        async with openai.AsyncOpenAI(**self._options) as client:
            found = self._method(client, path)(*args, **named)
            if path.endswith("list"):
                return [one async for one in found]
            found = await found
            return [one async for one in found] if named.get("stream") else found

    @staticmethod
    def _method(client: Any, path: str) -> Any:
        for name in path.split("."):
            client = getattr(client, name)
        return client

    @staticmethod
    def _many(path: str, named: dict[str, Any]) -> bool:
        return bool(named.get("stream")) or path.endswith("list")


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def client(request: pytest.FixtureRequest, site: Site) -> Client:
    return Client(site, request.param)


def said(chunks: list[Any], index: int = 0) -> str:
    choices = [one for chunk in chunks for one in chunk.choices if one.index == index]
    return "".join(one.delta.content or "" for one in choices)


@pytest.mark.parametrize("task", ["t", "g"])
def test_plain_and_streamed(client: Client, task: str) -> None:
    answer = client("chat.completions.create", model=task, messages=HELLO)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].logprobs is None
    assert answer.usage.total_tokens == 13
    assert answer._request_id.startswith("req_")
    chunks = client("chat.completions.create", model=task, messages=HELLO, stream=True)
    assert said(chunks) == TEXT
    assert len(chunks) > len(WORDS)
    assert all(one.usage is None and one.choices for one in chunks)
    assert all(one.choices[0].logprobs is None for one in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_usage_in_a_stream_when_it_is_asked_for(client: Client) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = client("chat.completions.create", model="t", messages=HELLO, **options)
    assert [one.usage is not None for one in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    older = client("completions.create", model="t", prompt="a", **options)
    assert older[-1].usage.total_tokens == 13


@pytest.mark.parametrize("task", ["t", "g"])
def test_tools(client: Client, task: str) -> None:
    options = {"model": task, "messages": HELLO, "tools": [TOOL], "tool_choice": "auto"}
    answer = client("chat.completions.create", **options)
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = client("chat.completions.create", **options, stream=True)
    calls = [one for c in chunks for one in c.choices[0].delta.tool_calls or ()]
    assert calls[0].id == "call_1"
    assert "".join(one.function.arguments for one in calls) == '{"city": "Oslo"}'


def test_a_schema_is_passed_on_and_parsed(client: Client, site: Site) -> None:
    answer = client("chat.completions.parse", model="t", messages=HELLO, response_format=Label)
    assert answer.choices[0].message.parsed == Label(label="fresh")
    sent = site.teacher.bodies[-1]["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)


@pytest.mark.parametrize("task", ["t", "g"])
def test_logprobs_and_several_answers(client: Client, task: str) -> None:
    options = {"model": task, "messages": HELLO, "logprobs": True, "top_logprobs": 2, "n": 3}
    answer = client("chat.completions.create", **options)
    assert [one.index for one in answer.choices] == [0, 1, 2]
    tokens = answer.choices[2].logprobs.content
    assert [one.token for one in tokens] == WORDS
    assert {len(one.top_logprobs) for one in tokens} == {2}
    chunks = client("chat.completions.create", **options, stream=True)
    assert [said(chunks, index) for index in range(3)] == [TEXT] * 3
    first = [one.choices[0] for one in chunks if one.choices[0].index == 0]
    found = [one.token for c in first if c.logprobs for one in c.logprobs.content]
    assert found == WORDS


def test_completions_and_embeddings(client: Client) -> None:
    older = client("completions.create", model="t", prompt=["a", "b"], n=2)
    assert [one.text for one in older.choices] == [TEXT] * 4
    chunks = client("completions.create", model="t", prompt="a", stream=True)
    assert "".join(one.choices[0].text for one in chunks) == TEXT
    assert all(one.usage is None for one in chunks)
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client("embeddings.create", model="t", input=["a", "b"], **encoding)
        assert len(found.data) == 2
        if encoding.get("encoding_format") != "base64":
            assert found.data[1].embedding == [1.0, 2.0]


def test_models(client: Client) -> None:
    assert sorted(one.id for one in client("models.list")) == ["g", "t"]
    found = client("models.retrieve", "t")
    assert (found.id, found.object, found.owned_by) == ("t", "model", "stillhouse")


def test_files_and_batches(client: Client) -> None:
    content = jsonl(line(1), line(2))
    made = client("files.create", file=("in.jsonl", content), purpose="batch")
    assert (made.object, made.purpose, made.bytes, made.status) == (
        "file",
        "batch",
        len(content),
        "processed",
    )
    assert client("files.retrieve", made.id) == made
    assert client("files.content", made.id).content == content
    assert made.id in {one.id for one in client("files.list")}
    named = {"input_file_id": made.id, "endpoint": "/v1/chat/completions"}
    batch = client("batches.create", **named, completion_window="24h", metadata={"a": "b"})
    for _ in range(1000):
        batch = client("batches.retrieve", batch.id)
        if batch.status == "completed":
            break
    assert batch.request_counts.completed == 2
    assert batch.id in {one.id for one in client("batches.list")}
    with pytest.raises(openai.ConflictError):
        client("batches.cancel", batch.id)
    assert client("files.delete", made.id).deleted


ERRORS: list[tuple[Answer | None, dict[str, Any], type[openai.APIStatusError], str | None]] = [
    (None, {"messages": []}, openai.BadRequestError, "invalid_value"),
    (None, {"model": "other"}, openai.NotFoundError, "model_not_found"),
    (status(400), {}, openai.BadRequestError, None),
    (status(422), {}, openai.UnprocessableEntityError, None),
    (status(429), {}, openai.RateLimitError, "upstream_429"),
    (status(401), {}, openai.InternalServerError, "upstream_401"),
    (status(500), {}, openai.InternalServerError, "upstream_500"),
    (status(503), {}, openai.InternalServerError, "upstream_503"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", ERRORS, ids=range(len(ERRORS)))
def test_errors_are_the_clients_own(
    client: Client, site: Site, case: tuple[Any, Any, Any, Any], streamed: bool
) -> None:
    answer, changes, kind, code = case
    asked = {"model": "t", "messages": HELLO, "stream": streamed, **changes}
    site.teacher.answer = answer or faithful
    try:
        with pytest.raises(kind) as caught:
            client("chat.completions.create", **asked)
    finally:
        site.teacher.answer = faithful
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.type is not None
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


def test_a_wrong_key_and_a_narrow_one_and_no_gateway_at_all(client: Client, site: Site) -> None:
    options = client._options
    options["api_key"] = "wrong"
    with pytest.raises(openai.AuthenticationError):
        client("models.list")
    options["api_key"] = "key-t"
    with pytest.raises(openai.PermissionDeniedError):
        client("files.list")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options["base_url"] = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(openai.APIConnectionError):
            client("models.list")


def test_the_clients_own_retries_end_well(site: Site) -> None:
    tries: list[int] = []

    async def second(request: Any, body: Any) -> Any:
        tries.append(1)
        return await (status(503, {"retry-after": "0"}) if len(tries) < 3 else says("x"))(
            request, body
        )

    site.teacher.answer = second
    try:
        with openai.OpenAI(base_url=site.url, api_key="key-a", max_retries=3) as client:
            answer = client.chat.completions.create(model="t", messages=HELLO)
    finally:
        site.teacher.answer = faithful
    assert answer.choices[0].message.content == "x"
