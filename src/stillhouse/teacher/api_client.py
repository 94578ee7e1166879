"""What the two API teachers do alike: tries over one wire, samples, what a model refuses.

A provider's own completer says how a request is written and an answer read. Knows one request at a
time: concurrency, budget and storage are the caller's.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Protocol

from stillhouse.core.money import model_price
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher.api import ApiSettings, Attempt, failure_line, numbered
from stillhouse.teacher.retry import Retrying, Verdict, with_retries
from stillhouse.teacher.wire import EXPECTED, StatusError, Wire


class _Closable(Protocol):
    async def close(self) -> None: ...


class ApiCompleter(ABC):
    """Answers over HTTP; see `Completer`.

    `samples_per_request` is how many samples one request brings; `provider` is whose API it is.

    Args:
        settings: model, server, key, retries, prices.
        path: of the request, under the base URL.
        headers: what every request carries.
        samples_per_request: at most; lowered where a server turns out to send one.
    """

    provider: ClassVar[Literal["openai", "anthropic"]]

    def __init__(
        self,
        settings: ApiSettings,
        path: str,
        headers: Callable[[ApiSettings], Mapping[str, str]],
        samples_per_request: int,
    ) -> None:
        self.settings = settings
        self.samples_per_request = samples_per_request
        self._path = path
        self._without: set[str] = set()  # parameters that the model refused
        self._price = model_price(settings.prices, settings.model)
        self._wire = Wire(settings.base_url, lambda: headers(settings))
        self._official: _Closable | None = None

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """Name and server; the notes say what the model turned out to refuse."""

    @abstractmethod
    def body(self, query: Query, sampling: Sampling, n: int, seed: int) -> dict[str, Any]:
        """The request's JSON body, without what the model turned out to refuse."""

    @abstractmethod
    def read(self, query: Query, body: object, latency_ms: float = 0.0) -> list[Completion]:
        """The completions of an answer's JSON body, priced at list.

        Raises:
            UnreadableAnswerError: it is none.
        """

    @abstractmethod
    def _adapt(self, error: StatusError, sent: Mapping[str, Any]) -> bool:
        """Whether a refused request can be sent again without what was refused."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the last answer, whatever its status."""
        return self._wire.last_headers

    @property
    def retrying(self) -> Retrying:
        """How often a try that failed is made again."""
        return self.settings.retrying

    def describe(self, error: Exception, verdict: Verdict) -> str:
        """A failed try on one line."""
        return failure_line(self.settings, error, verdict)

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
        timeout_s = self.settings.timeout_s
        answered = await with_retries(
            lambda: self.attempt(query, sampling, timeout_s),
            self.settings.retrying,
            EXPECTED,
            self.describe,
        )
        return answered.completions

    async def attempt(self, query: Query, sampling: Sampling, timeout_s: float) -> Attempt:
        """One request, without retries but for parameters that the model refuses.

        Raises:
            Exception: one of `wire.EXPECTED`.
        """
        timeout_s = min(timeout_s, self.settings.timeout_s)
        while True:
            wanted = min(sampling.n, self.samples_per_request)
            sent = self.body(query, sampling, wanted, sampling.seed)
            started = time.perf_counter()
            try:
                reply = await self._wire.post(self._path, sent, timeout_s)
            except StatusError as error:
                if self._adapt(error, sent):
                    continue
                raise
            answers = self.read(query, reply.body, 1e3 * (time.perf_counter() - started))
            if len(answers) < wanted:
                self.samples_per_request = 1
            return Attempt(tuple(answers[:wanted]), reply.headers)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._wire.close()
        if self._official is not None:
            await self._official.close()
