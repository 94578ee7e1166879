"""The two API teachers against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.retry import TeacherFailure
from stillhouse.teacher.wire import env_proxy
from teacher_servers import KEY, Answer, Loopback, Truncated, error, openai_answer, serve
from teacher_servers import anthropic_answer as claude

QUERY = Query(
    id="q1",
    messages=(Message(role="system", content="Judge."), Message(role="user", content="hello")),
)
PLAIN = Sampling()
CLOSED = {
    "type": "object",
    "properties": {"a": {"type": "string"}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert env_proxy("https://api.example.com/v1") is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example.com")
    assert env_proxy("https://api.example.com/v1") == "http://proxy:3128"
    assert env_proxy("http://api.example.com/v1") is None
    assert env_proxy("https://inside.example.com/v1") is None


class Result:
    """What came back, and what the server saw."""

    def __init__(self, completions: list[Completion], info: ModelInfo, server: Loopback) -> None:
        self.completions = completions
        self.first = completions[0]
        self.info = info
        self.server = server
        self.body = server.bodies[-1]


def ask_once(
    answer: Answer,
    sampling: Sampling = PLAIN,
    *,
    model: str = "openai:gpt-4.1",
    query: Query = QUERY,
    delay_s: float = 0.0,
    **section: Any,
) -> Result:
    with serve(answer, delay_s) as server:
        suffix = "" if model.startswith("anthropic") else "/v1"
        teacher = TeacherSection.model_validate(
            {"model": model, "base_url": server.url + suffix, "retries": 0} | section
        )

        async def main() -> tuple[list[Completion], ModelInfo]:
            completer = open_teacher(teacher, PricesSection())
            for name in ("settings",):  # no waiting in tests
                settings = getattr(completer, name)
                fast = replace(settings.retrying, base_s=0.0)
                setattr(completer, name, replace(settings, retrying=fast))
            try:
                found = list(await completer.complete(query, sampling))
                return found, completer.info
            finally:
                await completer.aclose()

        completions, info = asyncio.run(main())
        return Result(completions, info, server)


def first_then(*first: Callable[[], Any], last: Callable[[], Any]) -> Answer:
    return lambda body, number: first[number]() if number < len(first) else last()


ANTHROPIC = "anthropic:claude-haiku-4-5"


def test_openai_request_and_answer() -> None:
    result = ask_once(
        lambda body, number: openai_answer("positive", usage=(1000, 500)),
        Sampling(max_tokens=7, sampling_temperature=0.3, logprobs=50, seed=11),
    )
    assert result.body == {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": "Judge."},
            {"role": "user", "content": "hello"},
        ],
        "temperature": 0.3,
        "seed": 11,
        "max_completion_tokens": 7,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert result.server.headers[0]["authorization"] == f"Bearer {KEY}"
    answer = result.first
    assert (answer.query_id, answer.text, answer.model) == ("q1", "positive", "openai:gpt-4.1")
    assert answer.revision == "gpt-4.1-2025-04-14@fp_1"
    assert (answer.prompt_tokens, answer.completion_tokens) == (1000, 500)
    assert answer.cost_usd == pytest.approx(0.006)
    assert answer.latency_ms is not None
    assert answer.latency_ms > 0


def test_openai_logprobs_are_read() -> None:
    content = [
        {
            "token": "pos",
            "logprob": -0.1,
            "bytes": None,
            "top_logprobs": [
                {"token": "pos", "logprob": -0.1, "bytes": None},
                {"token": "neg", "logprob": -2.4, "bytes": None},
            ],
        }
    ]
    result = ask_once(lambda body, number: openai_answer(logprobs=content), Sampling(logprobs=20))
    assert result.first.logprobs is not None
    assert result.first.logprobs[0].top == (("pos", -0.1), ("neg", -2.4))


def test_openai_samples_share_tokens_and_cost() -> None:
    result = ask_once(
        lambda body, number: openai_answer(n=body["n"], usage=(1000, 500)), Sampling(n=3)
    )
    assert len(result.server.bodies) == 1
    assert [c.sample for c in result.completions] == [0, 1, 2]
    assert [c.completion_tokens for c in result.completions] == [167, 167, 166]
    assert sum(c.cost_usd or 0 for c in result.completions) == pytest.approx(0.006)


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds() -> None:
    result = ask_once(
        lambda body, number: openai_answer(f"sample {number}"),
        Sampling(n=3, seed=5),
        model="openai-compatible:m",
    )
    assert [c.text for c in result.completions] == ["sample 0", "sample 1", "sample 2"]
    assert [body["seed"] for body in result.server.bodies] == [5, 6, 7]
    assert [c.sample for c in result.completions] == [0, 1, 2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "stop"),
        ({"finish": "length"}, "length"),
        ({"finish": "content_filter"}, "content_filter"),
        ({"finish": "tool_calls"}, "tool_calls"),
        ({"refusal": "I cannot."}, "refusal"),
    ],
)
def test_openai_finish_reasons(fields: dict[str, Any], expected: str) -> None:
    text = "" if "refusal" in fields else "good"
    result = ask_once(lambda body, number: openai_answer(text, **fields))
    assert result.first.finish_reason == expected
    assert result.first.text == ("I cannot." if "refusal" in fields else "good")


def test_compatible_server_needs_no_key_and_gets_none_that_is_not_its_own() -> None:
    result = ask_once(
        lambda body, number: openai_answer(usage=None, fingerprint=None),
        model="openai-compatible:org/model",
    )
    assert KEY not in str(result.server.headers)
    assert result.body["max_tokens"] == 256
    assert "max_completion_tokens" not in result.body
    assert result.first.cost_usd is None
    assert result.first.prompt_tokens is None


@pytest.mark.parametrize("count", [-5, True, 10**400, 1e300])
def test_a_token_count_that_cannot_be_is_absent_and_costs_nothing_known(count: Any) -> None:
    for usage in ((count, 10), (100, count)):
        told = ask_once(lambda body, number, usage=usage: openai_answer(usage=usage)).first
        assert told.text == "good"
        assert told.cost_usd is None
        assert (told.prompt_tokens, told.completion_tokens) == tuple(
            None if one is count else one for one in usage
        )
        body = json.loads(claude().text or "")
        body["usage"] = dict(zip(("input_tokens", "output_tokens"), usage, strict=True))
        said = ask_once(lambda *_, body=body: web.json_response(body), model=ANTHROPIC).first
        assert said.cost_usd is None
        assert None in (said.prompt_tokens, said.completion_tokens)


def test_compatible_server_gets_the_key_that_the_recipe_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVER_KEY", KEY)
    result = ask_once(
        lambda body, number: openai_answer(),
        model="openai-compatible:m",
        api_key_env="MY_SERVER_KEY",
    )
    assert result.server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_json_schema_is_sent_strict_only_where_it_can_be() -> None:
    strict = ask_once(lambda body, number: openai_answer("{}"), Sampling(json_schema=CLOSED))
    assert strict.body["response_format"]["json_schema"] == {
        "name": "answer",
        "schema": CLOSED,
        "strict": True,
    }
    loose = {"type": "object", "properties": {"a": {"type": "string"}}}
    result = ask_once(lambda body, number: openai_answer("{}"), Sampling(json_schema=loose))
    assert result.body["response_format"]["json_schema"]["strict"] is False


def reasoning_model(body: dict[str, Any], number: int) -> Any:
    """Takes temperature and logprobs only without reasoning, as OpenAI documents."""
    if body.get("reasoning_effort") != "none":
        for name in ("temperature", "logprobs", "top_logprobs"):
            if name in body:
                return error(400, f"Unsupported parameter: '{name}'", param=name)
    return openai_answer()


def test_a_reasoning_model_is_asked_without_reasoning() -> None:
    result = ask_once(reasoning_model, Sampling(logprobs=20), model="openai:gpt-6-luna")
    assert result.body["reasoning_effort"] == "none"
    assert result.body["temperature"] == 0.0
    assert result.info.notes == {"reasoning_effort": "set to none"}
    assert result.info.gives_logprobs


def always_reasoning_model(body: dict[str, Any], number: int) -> Any:
    if body.get("reasoning_effort") in ("none", "minimal"):
        return error(
            400,
            "Unsupported value: 'reasoning_effort' does not support 'none'.",
            param="reasoning_effort",
        )
    for name in ("temperature", "logprobs"):
        if name in body:
            return error(400, f"Unsupported parameter: '{name}' is not supported with this model.")
    return openai_answer()


def test_a_model_that_always_reasons_is_asked_at_low_effort_without_sampling() -> None:
    result = ask_once(always_reasoning_model, Sampling(logprobs=20), model="openai:gpt-6.2-sol")
    assert result.body["reasoning_effort"] == "low"
    assert not {"temperature", "logprobs", "top_logprobs"} & set(result.body)
    assert not result.info.gives_logprobs
    assert set(result.info.notes) == {
        "logprobs",
        "top_logprobs",
        "temperature",
        "reasoning_effort",
    }


def test_the_token_limit_goes_by_the_name_the_server_knows() -> None:
    def newer(body: dict[str, Any], number: int) -> Any:
        if "max_tokens" in body:
            return error(
                400,
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                param="max_tokens",
            )
        return openai_answer()

    result = ask_once(newer, Sampling(max_tokens=9), model="openai-compatible:m")
    assert result.body["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (
            "This model's maximum context length is 8192 tokens; reduce messages or max_tokens.",
            None,
            "too_long",
        ),
        ("Input too large", "context_length_exceeded", "too_long"),
        ("The prompt triggered a filter", "content_filter", "content"),
        ("No such thing", None, "bad_request"),
    ],
)
def test_a_400_about_the_content_is_a_failure_not_a_parameter(
    text: str, code: str | None, reason: str
) -> None:
    with pytest.raises(TeacherFailure) as caught:
        ask_once(lambda body, number: error(400, text, code=code))
    assert caught.value.reason == reason
    assert not caught.value.fatal


def test_anthropic_request_and_answer() -> None:
    result = ask_once(
        lambda body, number: claude("positive"),
        Sampling(max_tokens=7, sampling_temperature=0.5, json_schema=CLOSED),
        model=ANTHROPIC,
    )
    assert result.body == {
        "model": "claude-haiku-4-5",
        "max_tokens": 7,
        "system": "Judge.",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "thinking": {"type": "disabled"},
        "output_config": {"format": {"type": "json_schema", "schema": CLOSED}},
    }
    assert KEY in (
        result.server.headers[0].get("x-api-key"),
        result.server.headers[0].get("authorization", "").removeprefix("Bearer "),
    )
    answer = result.first
    assert (answer.text, answer.revision) == ("positive", "claude-haiku-4-5-20251001")
    assert answer.cost_usd == pytest.approx((100 * 1.0 + 20 * 5.0) / 1e6)
    assert result.info.gives_logprobs is False


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("refusal", "refusal"),
        ("tool_use", "tool_calls"),
        ("model_context_window_exceeded", "length"),
    ],
)
def test_anthropic_finish_reasons(stop: str, expected: str) -> None:
    result = ask_once(lambda body, number: claude(stop=stop), model=ANTHROPIC)
    assert result.first.finish_reason == expected


def test_anthropic_samples_are_a_request_each() -> None:
    result = ask_once(lambda body, number: claude(str(number)), Sampling(n=2), model=ANTHROPIC)
    assert [(c.sample, c.text) for c in result.completions] == [(0, "0"), (1, "1")]


def newer_claude(body: dict[str, Any], number: int) -> Any:
    if "temperature" in body:
        return error(400, "`temperature` is not supported for this model.")
    kind = body.get("thinking", {}).get("type")
    if kind is not None:
        return error(400, f'"thinking.type.{kind}" is not supported for this model.')
    return claude()


def test_a_claude_that_always_thinks_is_held_at_low_effort() -> None:
    result = ask_once(newer_claude, model="anthropic:claude-opus-5-5")
    assert "thinking" not in result.body
    assert "temperature" not in result.body
    assert result.body["output_config"] == {"effort": "low"}
    assert result.info.notes == {
        "temperature": "refused by the model, so left out",
        "thinking": "set to low effort",
    }


@pytest.mark.parametrize("model", ["openai:gpt-4.1", "openai-compatible:m", ANTHROPIC])
class TestTrouble:
    """What goes wrong on the wire, for each client."""

    def good(self, model: str) -> Callable[[], Any]:
        return claude if model.startswith("anthropic") else openai_answer

    def test_429_with_retry_after_and_500s_are_waited_out(self, model: str) -> None:
        result = ask_once(
            first_then(
                lambda: error(429, headers={"Retry-After": "0.01"}),
                lambda: error(429, headers={"retry-after-ms": "5"}),
                lambda: error(500),
                lambda: error(529),
                last=self.good(model),
            ),
            model=model,
            retries=4,
        )
        assert result.first.text == "good"
        assert len(result.server.bodies) == 5

    def test_retries_are_ours_alone(self, model: str) -> None:
        with serve(lambda body, number: error(503)) as server:
            for retries in (0, 2):
                server.bodies.clear()
                with pytest.raises(TeacherFailure, match="503") as caught:
                    self.ask(server, model, retries)
                assert caught.value.reason == "server"
                assert len(server.bodies) == retries + 1

    def ask(self, server: Loopback, model: str, retries: int, **section: Any) -> None:
        suffix = "" if model.startswith("anthropic") else "/v1"
        teacher = TeacherSection.model_validate(
            {"model": model, "base_url": server.url + suffix, "retries": retries} | section
        )

        async def main() -> None:
            completer: Any = open_teacher(teacher, PricesSection())
            settings = completer.settings
            completer.settings = replace(settings, retrying=replace(settings.retrying, base_s=0))
            try:
                await completer.complete(QUERY, Sampling())
            finally:
                await completer.aclose()

        asyncio.run(main())

    def test_a_truncated_answer_is_tried_again(self, model: str) -> None:
        result = ask_once(first_then(Truncated, last=self.good(model)), model=model, retries=1)
        assert result.first.text == "good"
        with serve(lambda body, number: Truncated()) as server:
            with pytest.raises(TeacherFailure):
                self.ask(server, model, 1)
            assert len(server.bodies) == 2

    def test_an_answer_that_is_none_is_tried_again(self, model: str) -> None:
        def html() -> Any:
            return web_response("<html>gateway</html>", "text/html")

        def garbage() -> Any:
            return web_response("{not json", "application/json")

        result = ask_once(first_then(html, garbage, last=self.good(model)), model=model, retries=2)
        assert result.first.text == "good"

    def test_a_slow_server_times_out(self, model: str) -> None:
        with (
            serve(lambda body, number: self.good(model)(), delay_s=5.0) as server,
            pytest.raises(TeacherFailure) as caught,
        ):
            self.ask(server, model, 0, timeout_s=0.2)
        assert caught.value.reason == "timeout"

    def test_nobody_listens(self, model: str) -> None:
        with serve(lambda body, number: error(500)) as server:
            pass
        with pytest.raises(TeacherFailure, match="can be reached") as caught:
            self.ask(server, model, 1)
        assert caught.value.reason == "connection"

    def test_a_wrong_key_fails_at_once_and_is_not_shown(
        self, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = "sk-wrong-9876543210"
        monkeypatch.setenv("SOME_KEY", wrong)
        with serve(lambda body, number: error(500)) as server:
            with pytest.raises(TeacherFailure, match="SOME_KEY") as caught:
                self.ask(server, model, 3, api_key_env="SOME_KEY")
            assert len(server.bodies) == 1
        assert caught.value.fatal
        assert "9876543210" not in str(caught.value)

    def test_a_named_key_that_is_missing_is_one_line_before_any_request(
        self, model: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SOME_KEY", raising=False)
        with serve(lambda body, number: error(500)) as server:
            with pytest.raises(UserError, match=r"^SOME_KEY: is not set") as caught:
                self.ask(server, model, 0, api_key_env="SOME_KEY")
            assert server.bodies == []
        assert "\n" not in str(caught.value)

    def test_text_that_cannot_be_utf8_is_kept_as_far_as_it_can_be(self, model: str) -> None:
        make = claude if model.startswith("anthropic") else openai_answer
        result = ask_once(lambda body, number: make("a\ud800b"), model=model)
        assert result.first.text == "a?b"

    def test_the_key_is_in_no_repr(self, model: str) -> None:
        teacher = TeacherSection(model=model, base_url="http://127.0.0.1:9/v1")

        async def main() -> str:
            completer: Any = open_teacher(teacher, PricesSection())
            await completer.aclose()
            return repr(completer.settings) + repr(completer.info)

        assert KEY not in asyncio.run(main())


def web_response(text: str, kind: str) -> Any:
    return web.Response(text=text, content_type=kind)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_missing_default_key_names_its_variable(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(f"{kind.upper()}_API_KEY")
    with pytest.raises(UserError, match=f"{kind.upper()}_API_KEY: is not set in the environment"):
        open_teacher(TeacherSection(model=f"{kind}:m"), PricesSection())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[", "http://h:x"])
def test_a_base_url_that_is_none(url: str) -> None:
    section = TeacherSection.model_construct(model="openai-compatible:m", base_url=url)
    with pytest.raises(UserError, match=r"teacher\.base_url") as caught:
        open_teacher(section, PricesSection())
    assert "(got" not in str(caught.value)


def test_the_revision_names_the_server_without_credentials() -> None:
    async def main(url: str) -> str:
        completer = open_teacher(
            TeacherSection.model_construct(model="openai-compatible:m", base_url=url),
            PricesSection(),
        )
        await completer.aclose()
        return completer.info.revision

    assert asyncio.run(main("http://user:secret@host:81/v1/")) == "m@host:81/v1"


def test_a_value_out_of_range_is_an_error_and_not_left_out() -> None:
    said = "Invalid 'temperature': above maximum value. Expected a value <= 2."
    with pytest.raises(TeacherFailure, match="maximum value"):
        ask_once(lambda body, number: error(400, said, param="temperature"))
