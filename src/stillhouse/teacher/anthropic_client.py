"""Anthropic's Messages API as a teacher.

Runs the official client over aiohttp with the client's own retries off. The API gives no logprobs
and one sample a request. Models differ in what they accept: a refused sampling temperature is left
out, and thinking, which would eat the answer's tokens, is turned off where a model allows it and
held at low effort where it does not; `info.notes` says what was done. Knows one request at a time:
concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import anthropic
from anthropic.types import Message as AnthropicMessage

from stillhouse.core.money import completion_cost_usd
from stillhouse.core.records import Completion, FinishReason, Message, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.api import (
    ApiSettings,
    failure_line,
    is_closed,
    numbered,
    refused_parameter,
    utf8,
)
from stillhouse.teacher.retry import UnreadableAnswerError, with_retries

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
_EXPECTED: Final = (anthropic.APIError, UnreadableAnswerError, TimeoutError, ValueError, OSError)


class AnthropicCompleter:
    """Answers over HTTP; see `Completer`. One sample a request."""

    samples_per_request: int = 1

    def __init__(self, settings: ApiSettings) -> None:
        self._settings = settings
        self._without: set[str] = set()
        self._thinking = 0
        self.headers: Mapping[str, str] = {}  # of the last answer, whatever its status
        self._client = anthropic.AsyncAnthropic(
            api_key=settings.key,
            base_url=settings.base_url,
            timeout=settings.timeout_s,
            max_retries=0,
            http_client=anthropic.DefaultAioHttpClient(
                timeout=settings.timeout_s, event_hooks={"response": [self._see]}
            ),
        )

    async def _see(self, response: Any) -> None:
        self.headers = response.headers

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

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _request(self, query: Query, sampling: Sampling) -> Completion:
        while True:
            sent = self._parameters(query, sampling)

            async def attempt(sent: dict[str, Any] = sent) -> Completion | None:
                started = time.perf_counter()
                # The client's signature no longer lists temperature; older models take it.
                extra = {k: v for k, v in sent.items() if k == "temperature"}
                rest = {k: v for k, v in sent.items() if k != "temperature"}
                try:
                    async with asyncio.timeout(self._settings.timeout_s):
                        response = await self._client.messages.create(
                            **rest, extra_body=extra or None
                        )
                except anthropic.APIStatusError as error:
                    if self._adapt(error, sent):
                        return None
                    raise
                return self._read(query, response, 1e3 * (time.perf_counter() - started))

            answer = await with_retries(
                attempt,
                self._settings.retrying,
                _EXPECTED,
                lambda error, verdict: failure_line(self._settings, error, verdict),
            )
            if answer is not None:
                return answer

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

    def _adapt(self, error: anthropic.APIStatusError, sent: Mapping[str, Any]) -> bool:
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

    def _read(self, query: Query, response: object, latency_ms: float) -> Completion:
        if not isinstance(response, AnthropicMessage) or response.content is None:
            raise UnreadableAnswerError(
                f"the server answered with no message: {str(response)[:80]!r}"
            )
        usage = response.usage
        written = (usage.cache_creation_input_tokens or 0) if usage else 0
        prompt = None
        if usage is not None:
            prompt = usage.input_tokens + written + (usage.cache_read_input_tokens or 0)
        answered = usage.output_tokens if usage is not None else None
        return Completion(
            query_id=query.id,
            text=utf8("".join(block.text for block in response.content if block.type == "text")),
            model=self._settings.model,
            revision=response.model or self._settings.name,
            finish_reason=_FINISH.get(response.stop_reason or "", "stop"),
            prompt_tokens=prompt,
            completion_tokens=answered,
            cost_usd=completion_cost_usd(
                self._settings.prices, self._settings.model, prompt, answered, written
            ),
            latency_ms=latency_ms,
        )


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
