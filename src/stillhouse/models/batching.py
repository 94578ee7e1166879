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

from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling


class Call(NamedTuple):
    """One awaited `complete`."""

    query: Query
    sampling: Sampling


class _Waiting(NamedTuple):
    call: Call
    future: asyncio.Future[Sequence[Completion]]


class BatchingCompleter(ABC):
    """Gathers concurrent calls into batches of at most `batch_size` and runs them in one thread."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._waiting: list[_Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="completer")

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """What is known of the model."""

    @abstractmethod
    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """Answer a batch, in order. Runs in the completer's own thread."""

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        future: asyncio.Future[Sequence[Completion]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(Call(query, sampling), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _let_callers_run()
            self._waiting = [w for w in self._waiting if not w.future.done()]
            if not self._waiting:
                return
            self._waiting.sort(key=lambda w: (-_length(w.call.query), w.call.query.id))
            batch = self._waiting[: self._batch_size]
            del self._waiting[: self._batch_size]
            try:
                answers = await loop.run_in_executor(
                    self._thread, self.run_batch, [w.call for w in batch]
                )
            except Exception as error:
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(answer)

    async def aclose(self) -> None:
        """Stop the worker and its thread."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=True)


async def _let_callers_run() -> None:
    """Give every ready caller the chance to take its answer and ask again."""
    for _ in range(8):
        await asyncio.sleep(0)


def _length(query: Query) -> int:
    return sum(len(message.content) for message in query.messages)
