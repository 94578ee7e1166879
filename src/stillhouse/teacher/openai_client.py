"""OpenAI chat completions as a teacher, of OpenAI itself or of any server that speaks the same.

Where and as whom to ask is the official client's to say; `wire` sends. A parameter that a model
refuses is left out from then on (`info.notes` says which): reasoning models take temperature and
logprobs only at reasoning effort `none`, so that is tried before either is given up. Knows one
request at a time: concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import openai

from stillhouse.core.money import model_price
from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
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

OPENAI_URL: Final = "https://api.openai.com/v1"
MOST_TOP_LOGPROBS: Final = 20
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


class OpenAICompleter:
    """Answers over HTTP; see `Completer`.

    `samples_per_request` is how many samples one request brings: all of them, until a server
    turns out to send one.

    Args:
        settings: model, server, key, retries, prices.
        compatible: the server is not OpenAI's own (vLLM, Ollama, llama.cpp): no key is required
            and the older `max_tokens` is the name it knows.
    """

    def __init__(self, settings: ApiSettings, *, compatible: bool) -> None:
        self._settings = settings
        self._compatible = compatible
        self._limit_name = "max_tokens" if compatible else "max_completion_tokens"
        self._without: set[str] = set()
        self._effort: int | None = None  # index into _EFFORTS once it has to be set
        self.samples_per_request: int = 128
        self._price = model_price(settings.prices, settings.model)
        self._wire = Wire(settings.base_url, lambda: openai_headers(settings))
        self._client: openai.AsyncOpenAI | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the last answer, whatever its status."""
        return self._wire.last_headers

    @property
    def info(self) -> ModelInfo:
        """Name and server; the notes say which parameters the model turned out to refuse."""
        left_out = sorted(self._without - {"max_tokens", "max_completion_tokens"})
        notes = dict.fromkeys(left_out, "refused by the model, so left out")
        if self._effort is not None and _EFFORTS[self._effort] is not None:
            notes["reasoning_effort"] = f"set to {_EFFORTS[self._effort]}"
        return ModelInfo(
            name=self._settings.model,
            revision=self._settings.revision,
            gives_logprobs="logprobs" not in self._without,
            notes=notes,
        )

    @property
    def retrying(self) -> Retrying:
        """How often a try that failed is made again."""
        return self._settings.retrying

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`. Token counts and cost are shared out over samples."""
        found: list[Completion] = []
        while len(found) < sampling.n:
            missing = sampling.n - len(found)
            more = replace(sampling, n=missing, seed=sampling.seed + len(found))
            found.extend(await self.complete_once(query, more))
        return numbered(found)

    async def complete_once(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """The answers of one request, one to `sampling.n`: for callers that keep each at once."""
        timeout_s = self._settings.timeout_s
        answered = await with_retries(
            lambda: self.attempt(query, sampling, timeout_s),
            self._settings.retrying,
            EXPECTED,
            self.describe,
        )
        return answered.completions

    async def attempt(self, query: Query, sampling: Sampling, timeout_s: float) -> Attempt:
        """One request, without retries but for parameters that the model refuses.

        Raises:
            Exception: one of `wire.EXPECTED`.
        """
        timeout_s = min(timeout_s, self._settings.timeout_s)
        while True:
            wanted = min(sampling.n, self.samples_per_request)
            sent = self._parameters(query, sampling, wanted, sampling.seed)
            started = time.perf_counter()
            try:
                reply = await self._wire.post(_PATH, sent, timeout_s)
            except StatusError as error:
                if self._adapt(error, sent):
                    continue
                raise
            answers = self._read(query, reply.body, 1e3 * (time.perf_counter() - started))
            if len(answers) < wanted:
                self.samples_per_request = 1
            return Attempt(tuple(answers[:wanted]), reply.headers)

    def describe(self, error: Exception, verdict: Verdict) -> str:
        """A failed try on one line."""
        return failure_line(self._settings, error, verdict)

    @property
    def settings(self) -> ApiSettings:
        """How the server is reached."""
        return self._settings

    @property
    def client(self) -> openai.AsyncOpenAI:
        """The official client, for asking by batch; made on first use."""
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                api_key=self._settings.key or "none",
                base_url=self._settings.base_url,
                timeout=self._settings.timeout_s,
                max_retries=0,
                http_client=openai.DefaultAioHttpClient(timeout=self._settings.timeout_s),
            )
        return self._client

    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request's JSON body, without what the model turned out to refuse."""
        return self._parameters(query, sampling, n, seed)

    def read(self, query: Query, body: Mapping[str, Any]) -> list[Completion]:
        """The completions of a chat completion's JSON body, priced at list.

        Raises:
            UnreadableAnswerError: it is none.
        """
        return self._read(query, body, latency_ms=0.0)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.close()
        if self._client is not None:
            await self._client.close()

    def _parameters(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        sent: dict[str, Any] = {
            "model": self._settings.name,
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

    def _read(self, query: Query, body: object, latency_ms: float) -> list[Completion]:
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
        prompt, total = usage.get("prompt_tokens"), usage.get("completion_tokens")
        written = (usage.get("prompt_tokens_details") or {}).get("cache_write_tokens") or 0
        count = len(choices)
        cost: float | None = None
        if self._price is not None and prompt is not None and total is not None:
            cost = self._price.cost_usd(prompt, total, written) / count
        fingerprint = body.get("system_fingerprint")
        revision = body.get("model") or self._settings.name
        return [
            Completion(
                query_id=query.id,
                text=utf8(_text(choice["message"])),
                model=self._settings.model,
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
