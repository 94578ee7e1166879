"""How a GGUF file is asked from many tasks at once: one engine, a thread for each of its slots.

What a query becomes is its subclasses' business: `GgufCompleter` for a teacher as published,
`GgufStudent` for a student as it was trained. Knows an engine and threads.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.gguf_engine import GgufEngine


class GgufAnswers(ABC):
    """A completer over an engine; closes it."""

    def __init__(self, engine: GgufEngine, slots: int, info: ModelInfo) -> None:
        self._engine, self._info, self.slots = engine, info, slots
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="gguf")

    @property
    def info(self) -> ModelInfo:
        """A local model with its likelihoods."""
        return self._info

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        loop = asyncio.get_running_loop()
        if sampling.labels and sampling.n == 1 and sampling.sampling_temperature == 0:
            return [await loop.run_in_executor(self._threads, self._classify, query, sampling)]
        samples = [
            loop.run_in_executor(self._threads, self._write, query, sampling, sample)
            for sample in range(sampling.n)
        ]
        return list(await asyncio.gather(*samples))

    async def aclose(self) -> None:
        """Stop the threads and free the model."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self._engine.close()

    @abstractmethod
    def _classify(self, query: Query, sampling: Sampling) -> Completion:
        """One of the labels, from their likelihoods."""

    @abstractmethod
    def _write(self, query: Query, sampling: Sampling, sample: int) -> Completion:
        """One answer of several."""
