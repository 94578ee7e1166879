"""Anthropic's Messages API as a teacher.

Where and as whom to ask is the official client's to say; `wire` sends. The API gives no logprobs
and one sample a request. Models differ in what they accept: a refused sampling temperature is left
out, and thinking, which would eat the answer's tokens, is turned off where a model allows it and
held at low effort where it does not; `info.notes` says what was done. Knows one request at a time:
concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import anthropic

from stillhouse.core.records import Completion, FinishReason, Message, Query
from stillhouse.core.token_counts import token_count
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.api import (
    ApiSettings,
    is_closed,
    refused_parameter,
    utf8,
)
from stillhouse.teacher.api_client import ApiCompleter
from stillhouse.teacher.retry import UnreadableAnswerError
from stillhouse.teacher.wire import StatusError

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


class AnthropicCompleter(ApiCompleter):
    """Answers over HTTP; see `ApiCompleter`. One sample a request."""

    provider = "anthropic"

    def __init__(self, settings: ApiSettings) -> None:
        super().__init__(settings, _PATH, anthropic_headers, samples_per_request=1)
        self._thinking = 0
        self._client: anthropic.AsyncAnthropic | None = None

    @property
    def info(self) -> ModelInfo:
        """Name and server; the notes say what the model turned out to refuse."""
        notes = dict.fromkeys(sorted(self._without), "refused by the model, so left out")
        if self._thinking:
            notes["thinking"] = f"set to {_THINKING[self._thinking] or 'low effort'}"
        return ModelInfo(
            name=self.settings.model,
            revision=self.settings.revision,
            takes_seed=False,
            notes=notes,
        )

    @property
    def client(self) -> anthropic.AsyncAnthropic:
        """The official client, for asking by batch; made on first use."""
        if self._client is None:
            self._client = anthropic.AsyncAnthropic(
                api_key=self.settings.key,
                base_url=self.settings.base_url,
                timeout=self.settings.timeout_s,
                max_retries=0,
                http_client=anthropic.DefaultAioHttpClient(timeout=self.settings.timeout_s),
            )
        self._official = self._client
        return self._client

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request's JSON body; see `ApiCompleter`. There is one sample, and no seed."""
        system, turns = _chat(query.messages)
        sent: dict[str, Any] = {
            "model": self.settings.name,
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

    def read(self, query: Query, body: object, latency_ms: float = 0.0) -> list[Completion]:
        """The completion of a message's JSON body; see `ApiCompleter`."""
        content = body.get("content") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(content, list):
            raise UnreadableAnswerError(f"the server answered with no message: {str(body)[:80]!r}")
        try:
            return [self._completion(query, body, content, latency_ms)]
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
            written = token_count(usage.get("cache_creation_input_tokens")) or 0
            prompt, answered = (
                token_count(usage[name]) for name in ("input_tokens", "output_tokens")
            )
            if prompt is not None:
                prompt += written + (token_count(usage.get("cache_read_input_tokens")) or 0)
            if self._price is not None and prompt is not None and answered is not None:
                cost = self._price.cost_usd(prompt, answered, written)
        return Completion(
            query_id=query.id,
            text=utf8("".join(block["text"] for block in content if block["type"] == "text")),
            model=self.settings.model,
            revision=body.get("model") or self.settings.name,
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
