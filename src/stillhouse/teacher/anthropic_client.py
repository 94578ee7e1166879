"""Anthropic's Messages API as a teacher.

Where and as whom to ask is the official client's to say; `wire` sends. The API gives no logprobs
and one sample a request. Models differ in what they accept: a refused sampling temperature is left
out, and thinking, which would eat the answer's tokens, is turned off where a model allows it and
held at low effort where it does not; `info.notes` says what was done. Knows one request at a time:
concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anthropic

from stillhouse.core.money import model_price
from stillhouse.core.records import Completion, FinishReason, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.api import (
    ApiSettings,
    Attempt,
    failure_line,
    is_closed,
    numbered,
    refused_parameter,
    utf8,
)
from stillhouse.teacher.retry import Retrying, UnreadableAnswerError, Verdict, with_retries
from stillhouse.teacher.wire import EXPECTED, StatusError, Wire

ANTHROPIC_URL: Final = "https://api.anthropic.com"
_OPTIONAL: Final = ("temperature", "thinking", "output_config", "effort", "format")
# From least to most thinking; the last is the model's own way, at low effort.
_THINKING: Final = ("disabled", "between_tools", None)
_FINISH: Final[Mapping[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}
_PATH: Final = "/v1/messages"


class AnthropicCompleter:
    """Answers over HTTP; see `Completer`. One sample a request."""

    samples_per_request: int = 1

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._without: set[str] = set()
        self._thinking = 0
        self._price = model_price(settings.prices, settings.model)
        self._wire = Wire(settings.base_url, lambda: anthropic_headers(settings))
        self._client: anthropic.AsyncAnthropic | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the last answer, whatever its status."""
        return self._wire.last_headers

    @property
    def info(self) -> ModelInfo:
        """Name and server; the notes say what the model turned out to refuse."""
        notes = dict.fromkeys(sorted(self._without), "refused by the model, so left out")
        if self._thinking:
            notes["thinking"] = f"set to {_THINKING[self._thinking] or 'low effort'}"
        return ModelInfo(
            name=self._settings.model,
            revision=self._settings.revision,
            takes_seed=False,
            notes=notes,
        )

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        return numbered([await self._request(query, sampling) for _ in range(sampling.n)])

    @property
    def retrying(self) -> Retrying:
        """How often a try that failed is made again."""
        return self._settings.retrying

    @property
    def settings(self) -> ApiSettings:
        """How the server is reached."""
        return self._settings

    @property
    def client(self) -> anthropic.AsyncAnthropic:
        """The official client, for asking by batch; made on first use."""
        if self._client is None:
            self._client = anthropic.AsyncAnthropic(
                api_key=self._settings.key,
                base_url=self._settings.base_url,
                timeout=self._settings.timeout_s,
                max_retries=0,
                http_client=anthropic.DefaultAioHttpClient(timeout=self._settings.timeout_s),
            )
        return self._client

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request's JSON body, without what the model turned out to refuse; `n` is 1."""
        return self._parameters(query, sampling)

    def read(self, query: Query, body: Mapping[str, Any]) -> list[Completion]:
        """The completion of a message's JSON body, priced at list.

        Raises:
            UnreadableAnswerError: it is none.
        """
        return [self._read(query, body, latency_ms=0.0)]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.close()
        if self._client is not None:
            await self._client.close()

    async def attempt(self, query: Query, sampling: Sampling, timeout_s: float) -> Attempt:
        """One request, without retries but for parameters that the model refuses.

        Raises:
            Exception: one of `wire.EXPECTED`.
        """
        timeout_s = min(timeout_s, self._settings.timeout_s)
        while True:
            sent = self._parameters(query, sampling)
            started = time.perf_counter()
            try:
                reply = await self._wire.post(_PATH, sent, timeout_s)
            except StatusError as error:
                if self._adapt(error, sent):
                    continue
                raise
            answer = self._read(query, reply.body, 1e3 * (time.perf_counter() - started))
            return Attempt((answer,), reply.headers)

    def describe(self, error: Exception, verdict: Verdict) -> str:
        """A failed try on one line."""
        return failure_line(self._settings, error, verdict)

    async def _request(self, query: Query, sampling: Sampling) -> Completion:
        timeout_s = self._settings.timeout_s
        answered = await with_retries(
            lambda: self.attempt(query, sampling, timeout_s),
            self._settings.retrying,
            EXPECTED,
            self.describe,
        )
        return answered.completions[0]

    def _parameters(self, query: Query, sampling: Sampling) -> dict[str, Any]:
        system, turns = _chat(query.messages)
        sent: dict[str, Any] = {
            "model": self._settings.name,
            "max_tokens": sampling.max_tokens,
            "messages": turns,
            "temperature": sampling.sampling_temperature,
        }
        if system:
            sent["system"] = system
        thinking = _THINKING[self._thinking]
        config: dict[str, Any] = {}
        if thinking is not None:
            sent["thinking"] = {"type": thinking}
        elif "effort" not in self._without:
            config["effort"] = "low"
        if sampling.json_schema is not None and "format" not in self._without:
            if is_closed(dict(sampling.json_schema), all_required=False):
                config["format"] = {"type": "json_schema", "schema": dict(sampling.json_schema)}
        if config:
            sent["output_config"] = config
        return {name: value for name, value in sent.items() if name not in self._without}

    def _adapt(self, error: StatusError, sent: Mapping[str, Any]) -> bool:
        """Whether a refused request can be sent again without what was refused."""
        config = sent.get("output_config", {})
        name = refused_parameter(error, error.status_code, {**sent, **config}, _OPTIONAL)
        if name is None:
            return False
        if name == "thinking":
            tried = _THINKING.index(sent["thinking"]["type"])
            self._thinking = max(self._thinking, tried + 1)
        elif name == "output_config":
            self._without |= {"effort"} if "effort" in config else {"format"}
        else:
            self._without.add(name)
        return True

    def _read(self, query: Query, body: object, latency_ms: float) -> Completion:
        content = body.get("content") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(content, list):
            raise UnreadableAnswerError(f"the server answered with no message: {str(body)[:80]!r}")
        try:
            return self._completion(query, body, content, latency_ms)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UnreadableAnswerError(
                f"the server answered with a message of another form: {error!r}"[:300]
            ) from None

    def _completion(
        self,
        query: Query,
        body: Mapping[str, Any],
        content: Sequence[Mapping[str, Any]],
        latency_ms: float,
    ) -> Completion:
        usage = body.get("usage")
        prompt: int | None = None
        answered: int | None = None
        cost: float | None = None
        if usage is not None:
            written = usage.get("cache_creation_input_tokens") or 0
            prompt = usage["input_tokens"] + written + (usage.get("cache_read_input_tokens") or 0)
            answered = usage["output_tokens"]
            if self._price is not None:
                cost = self._price.cost_usd(prompt, answered, written)
        return Completion(
            query_id=query.id,
            text=utf8("".join(block["text"] for block in content if block["type"] == "text")),
            model=self._settings.model,
            revision=body.get("model") or self._settings.name,
            finish_reason=_FINISH.get(body.get("stop_reason") or "", "stop"),
            prompt_tokens=prompt,
            completion_tokens=answered,
            cost_usd=cost,
            latency_ms=latency_ms,
        )


def anthropic_headers(settings: ApiSettings) -> dict[str, str]:
    """What Anthropic's official client sends with every request: the key, the API's version."""
    client = anthropic.AsyncAnthropic(
        api_key=settings.key, base_url=settings.base_url, max_retries=0
    )
    headers = {**client.default_headers, **client.auth_headers}
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _chat(messages: Sequence[Message]) -> tuple[str, list[dict[str, str]]]:
    """The system text, and the turns of a chat that must begin with the user's."""
    system = "\n\n".join(m.content for m in messages if m.role in ("system", "developer"))
    turns = [
        {"role": "assistant" if m.role == "assistant" else "user", "content": m.content}
        for m in messages
        if m.role not in ("system", "developer")
    ]
    if not turns:
        return "", [{"role": "user", "content": system}]
    return system, turns
