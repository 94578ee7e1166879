"""OpenAI chat completions as a teacher, of OpenAI itself or of any server that speaks the same.

Where and as whom to ask is the official client's to say; `wire` sends. A parameter that a model
refuses is left out from then on (`info.notes` says which): reasoning models take temperature and
logprobs only at reasoning effort `none`, so that is tried before either is given up. Knows one
request at a time: concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import openai

from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
from stillhouse.core.token_counts import token_count
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.api import (
    MOST_TOP_LOGPROBS,
    ApiSettings,
    is_closed,
    refused_parameter,
    utf8,
)
from stillhouse.teacher.api_client import ApiCompleter
from stillhouse.teacher.retry import UnreadableAnswerError
from stillhouse.teacher.wire import StatusError

MOST_SAMPLES: Final = 128
_OPTIONAL: Final = (
    "temperature",
    "top_logprobs",
    "logprobs",
    "seed",
    "n",
    "response_format",
    "reasoning_effort",
    "max_tokens",
    "max_completion_tokens",
)
_EFFORTS: Final = ("none", "minimal", "low", None)
_FINISH: Final[Mapping[str, FinishReason]] = {
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_PATH: Final = "/chat/completions"


class OpenAICompleter(ApiCompleter):
    """Answers over HTTP; see `ApiCompleter`. All samples in one request, until a server sends one.

    Args:
        settings: model, server, key, retries, prices.
        compatible: the server is not OpenAI's own (vLLM, Ollama, llama.cpp): no key is required
            and the older `max_tokens` is the name it knows.
    """

    provider = "openai"

    def __init__(self, settings: ApiSettings, *, compatible: bool) -> None:
        super().__init__(settings, _PATH, openai_headers, MOST_SAMPLES)
        self._compatible = compatible
        self._limit_name = "max_tokens" if compatible else "max_completion_tokens"
        self._effort: int | None = None  # index into _EFFORTS once it has to be set
        self._client: openai.AsyncOpenAI | None = None

    @property
    def info(self) -> ModelInfo:
        """Name and server; the notes say which parameters the model turned out to refuse."""
        left_out = sorted(self._without - {"max_tokens", "max_completion_tokens"})
        notes = dict.fromkeys(left_out, "refused by the model, so left out")
        if self._effort is not None and _EFFORTS[self._effort] is not None:
            notes["reasoning_effort"] = f"set to {_EFFORTS[self._effort]}"
        return ModelInfo(
            name=self.settings.model,
            revision=self.settings.revision,
            gives_logprobs="logprobs" not in self._without,
            notes=notes,
        )

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The official client, for asking by batch; made on first use."""
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                api_key=self.settings.key or "none",
                base_url=self.settings.base_url,
                timeout=self.settings.timeout_s,
                max_retries=0,
                http_client=openai.DefaultAioHttpClient(timeout=self.settings.timeout_s),
            )
        self._official = self._client
        return self._client

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request's JSON body; see `ApiCompleter`."""
        sent: dict[str, Any] = {
            "model": self.settings.name,
            "messages": [{"role": m.role, "content": m.content} for m in query.messages],
            "temperature": sampling.sampling_temperature,
            "seed": seed,
            self._limit_name: sampling.max_tokens,
        }
        if n > 1:
            sent["n"] = n
        if sampling.logprobs > 0:
            sent["logprobs"] = True
            sent["top_logprobs"] = min(sampling.logprobs, MOST_TOP_LOGPROBS)
        if sampling.json_schema is not None:
            schema = dict(sampling.json_schema)
            strict = is_closed(schema, all_required=True)
            sent["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": strict},
            }
        if self._effort is not None:
            effort = _EFFORTS[self._effort]
            if effort is not None:
                sent["reasoning_effort"] = effort
        return {name: value for name, value in sent.items() if name not in self._without}

    def _adapt(self, error: StatusError, sent: Mapping[str, object]) -> bool:
        """Whether a refused request can be sent again without what was refused."""
        name = refused_parameter(error, error.status_code, sent, _OPTIONAL)
        if name is None:
            return False
        if name in ("max_tokens", "max_completion_tokens"):
            other = {"max_tokens", "max_completion_tokens"} - {name}
            if other.isdisjoint(self._without) and other.pop() in str(error):
                self._without.add(name)
                self._limit_name = "max_completion_tokens" if name == "max_tokens" else "max_tokens"
                return True
            return self._limit_name not in sent
        if name == "reasoning_effort":
            tried = _EFFORTS.index(str(sent["reasoning_effort"]))
            self._effort = max(self._effort or 0, tried + 1)
            return True
        if name in ("temperature", "logprobs", "top_logprobs") and not self._compatible:
            if "reasoning_effort" not in sent and self._effort in (None, 0):
                self._effort = 0
                return True
        if name == "n":
            self.samples_per_request = 1
        self._without |= {"logprobs", "top_logprobs"} if "logprobs" in name else {name}
        return True

    def read(self, query: Query, body: object, latency_ms: float = 0.0) -> list[Completion]:
        """The completions of a chat completion's JSON body; see `ApiCompleter`."""
        choices = body.get("choices") if isinstance(body, dict) else None
        if not isinstance(body, dict) or not isinstance(choices, list) or not choices:
            raise UnreadableAnswerError(
                f"the server answered with no chat completion: {str(body)[:80]!r}"
            )
        try:
            return self._completions(query, body, choices, latency_ms)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UnreadableAnswerError(
                f"the server answered with a chat completion of another form: {error!r}"[:300]
            ) from None

    def _completions(
        self,
        query: Query,
        body: Mapping[str, Any],
        choices: Sequence[Mapping[str, Any]],
        latency_ms: float,
    ) -> list[Completion]:
        usage = body.get("usage") or {}
        prompt = token_count(usage.get("prompt_tokens"))
        total = token_count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details") or {}
        written = token_count(details.get("cache_write_tokens")) or 0
        count = len(choices)
        cost: float | None = None
        if self._price is not None and prompt is not None and total is not None:
            cost = self._price.cost_usd(prompt, total, written) / count
        fingerprint = body.get("system_fingerprint")
        revision = body.get("model") or self.settings.name
        return [
            Completion(
                query_id=query.id,
                text=utf8(_text(choice["message"])),
                model=self.settings.model,
                revision=f"{revision}@{fingerprint}" if fingerprint else revision,
                sample=index,
                finish_reason=_finish(choice),
                prompt_tokens=prompt,
                completion_tokens=None if total is None else _part(total, count, index),
                cost_usd=cost,
                latency_ms=latency_ms,
                logprobs=_logprobs(choice),
            )
            for index, choice in enumerate(choices)
        ]


def openai_headers(settings: ApiSettings) -> dict[str, str]:
    """What OpenAI's official client sends with every request: the key, the organisation."""
    client = openai.AsyncOpenAI(
        # The client would otherwise take OPENAI_API_KEY, which is not this server's to see.
        api_key=settings.key or "none",
        base_url=settings.base_url,
        max_retries=0,
    )
    headers = {**client.default_headers, **client.auth_headers}
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _part(total: int, count: int, index: int) -> int:
    """The index-th of `count` near-equal whole parts of `total`."""
    return total // count + (index < total % count)


def _text(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or message.get("refusal") or "")


def _finish(choice: Mapping[str, Any]) -> FinishReason:
    if choice["message"].get("refusal"):
        return "refusal"
    return _FINISH.get(choice.get("finish_reason") or "", "stop")


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    return tuple(
        TokenLogprob(
            token=utf8(item["token"]),
            logprob=item["logprob"],
            top=tuple(
                (utf8(other["token"]), other["logprob"]) for other in item.get("top_logprobs") or ()
            ),
        )
        for item in content
    )
