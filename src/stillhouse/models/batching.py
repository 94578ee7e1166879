"""Dynamic batching for models in this process: many awaited calls, one forward pass.

A local completer subclasses `BatchingCompleter` and writes `run_batch`. Knows nothing of weights.
Waiting calls are taken longest first, so that a batch pads little, and batches are formed from the
calls alone, never from timing: the same calls give the same batches.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from stillhouse.core.errors import StillhouseError
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling


class Call(NamedTuple):
    """One awaited `complete`."""

    query: Query
    sampling: Sampling


Answer = Sequence[Completion] | StillhouseError  # an error fails its own call, not the batch


class _Waiting(NamedTuple):
    order: tuple[int, str]
    call: Call
    future: asyncio.Future[Sequence[Completion]]


class BatchingCompleter(ABC):
    """Gathers concurrent calls into batches of at most `batch_size` and runs them in one thread."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._unsorted = False
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completer")

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """What is known of the model."""

    def length_of(self, query: Query) -> int:
        """How long a query is, for sorting: characters. A model that can tell says tokens."""
        return sum(len(message.content) for message in query.messages)

    @abstractmethod
    def run_batch(self, calls: Sequence[Call]) -> Sequence[Answer]:
        """Answer a batch, in order. Runs in the completer's own thread."""

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        future: asyncio.Future[Sequence[Completion]] = asyncio.get_running_loop().create_future()
        order = (-self.length_of(query), query.id)
        self._waiting.append(_Waiting(order, Call(query, sampling), future))
        self._unsorted = True
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _let_callers_run()
            batch = self._next_batch()
            if not batch:
                return
            answers: Sequence[Sequence[Completion] | Exception]
            try:
                answers = await loop.run_in_executor(
                    self._thread, self.run_batch, [waiting.call for waiting in batch]
                )
                if len(answers) != len(batch):
                    raise ValueError(f"{len(answers)} answers to a batch of {len(batch)} calls")
            except Exception as error:
                answers = [error] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.future.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.future.set_exception(answer)
                else:
                    waiting.future.set_result(answer)

    def _next_batch(self) -> list[_Waiting]:
        """The longest calls still wanted; sorted only when calls have come in since."""
        if self._unsorted:
            self._waiting.sort(key=_order)
            self._unsorted = False
        batch: list[_Waiting] = []
        taken = 0
        for waiting in self._waiting:
            if len(batch) == self._batch_size:
                break
            taken += 1
            if not waiting.future.done():
                batch.append(waiting)
        del self._waiting[:taken]
        return batch

    async def aclose(self) -> None:
        """Stop the worker and its thread; calls still waiting are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
        for waiting in self._waiting:
            waiting.future.cancel()
        self._thread.shutdown(wait=True)


async def _let_callers_run() -> None:
    """Give every ready caller the chance to take its answer and ask again."""
    for _ in range(8):
        await asyncio.sleep(0)


def _order(waiting: _Waiting) -> tuple[int, str]:
    return waiting.order
