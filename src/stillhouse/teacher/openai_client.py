"""OpenAI chat completions as a teacher, of OpenAI itself or of any server that speaks the same.

Runs the official client over aiohttp with the client's own retries off. A parameter that a model
refuses is left out from then on (`info.notes` says which): reasoning models take temperature and
logprobs only at reasoning effort `none`, so that is tried before either is given up. Knows one
request at a time: concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import openai
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice

from stillhouse.core.money import completion_cost_usd
from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
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
_EXPECTED: Final = (openai.APIError, UnreadableAnswerError, TimeoutError, ValueError, OSError)


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
        self.headers: Mapping[str, str] = {}  # of the last answer, whatever its status
        self._client = openai.AsyncOpenAI(
            # The client would otherwise take OPENAI_API_KEY, which is not this server's to see.
            api_key=settings.key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout_s,
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                timeout=settings.timeout_s, event_hooks={"response": [self._see]}
            ),
        )

    async def _see(self, response: Any) -> None:
        self.headers = response.headers

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
        wanted = min(sampling.n, self.samples_per_request)
        answers = await self._request(query, sampling, wanted, sampling.seed)
        if len(answers) < wanted:
            self.samples_per_request = 1
        return numbered(answers[:wanted])

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _request(
        self, query: Query, sampling: Sampling, n: int, seed: int
    ) -> list[Completion]:
        while True:
            wanted = min(n, self.samples_per_request)
            sent = self._parameters(query, sampling, wanted, seed)

            async def attempt(sent: dict[str, Any] = sent) -> list[Completion] | None:
                started = time.perf_counter()
                try:
                    async with asyncio.timeout(self._settings.timeout_s):
                        response = await self._client.chat.completions.create(**sent)
                except openai.APIStatusError as error:
                    if self._adapt(error, sent):
                        return None
                    raise
                return self._read(query, response, 1e3 * (time.perf_counter() - started))

            answers = await with_retries(
                attempt,
                self._settings.retrying,
                _EXPECTED,
                lambda error, verdict: failure_line(self._settings, error, verdict),
            )
            if answers is not None:
                return answers

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

    def _adapt(self, error: openai.APIStatusError, sent: Mapping[str, object]) -> bool:
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

    def _read(self, query: Query, response: object, latency_ms: float) -> list[Completion]:
        if not isinstance(response, ChatCompletion) or not response.choices:
            raise UnreadableAnswerError(
                f"the server answered with no chat completion: {str(response)[:80]!r}"
            )
        usage = response.usage
        prompt = usage.prompt_tokens if usage else None
        total = usage.completion_tokens if usage else None
        details = usage.prompt_tokens_details if usage else None
        cost = completion_cost_usd(
            self._settings.prices,
            self._settings.model,
            prompt,
            total,
            (details.cache_write_tokens or 0) if details else 0,
        )
        count = len(response.choices)
        fingerprint = f"@{response.system_fingerprint}" if response.system_fingerprint else ""
        return [
            Completion(
                query_id=query.id,
                text=utf8(_text(choice)),
                model=self._settings.model,
                revision=f"{response.model or self._settings.name}{fingerprint}",
                sample=index,
                finish_reason=_finish(choice),
                prompt_tokens=prompt,
                completion_tokens=None if total is None else _part(total, count, index),
                cost_usd=None if cost is None else cost / count,
                latency_ms=latency_ms,
                logprobs=_logprobs(choice),
            )
            for index, choice in enumerate(response.choices)
        ]


def _part(total: int, count: int, index: int) -> int:
    """The index-th of `count` near-equal whole parts of `total`."""
    return total // count + (index < total % count)


def _text(choice: Choice) -> str:
    message = getattr(choice, "message", None)
    if message is None:
        raise UnreadableAnswerError("the server answered with a choice that has no message")
    return message.content or message.refusal or ""


def _finish(choice: Choice) -> FinishReason:
    if choice.message.refusal:
        return "refusal"
    return _FINISH.get(choice.finish_reason or "", "stop")


def _logprobs(choice: Choice) -> tuple[TokenLogprob, ...] | None:
    content = choice.logprobs.content if choice.logprobs is not None else None
    if not content:
        return None
    return tuple(
        TokenLogprob(
            token=utf8(item.token),
            logprob=item.logprob,
            top=tuple((utf8(other.token), other.logprob) for other in item.top_logprobs or ()),
        )
        for item in content
    )
