"""The Completer seam: messages in, completions out.

API teachers, local models, students and the gateway are all completers, so generation and
evaluation are written once. Imports no torch; knows no provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from stillhouse.core.hashing import unit_hash
from stillhouse.core.records import Completion, Query


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn.

    `n` answers a query; `logprobs` top alternatives per token (0: none). `labels` closes the
    answer to a set: a completer that can read likelihoods then fills `label_logprobs`.
    `json_schema` constrains the answer where the model's server can.
    """

    n: int = 1
    max_tokens: int = 256
    sampling_temperature: float = 0.0
    logprobs: int = 0
    labels: tuple[str, ...] = ()
    json_schema: Mapping[str, object] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model before it is asked.

    `parameters` counts all weights (tied weights once); `None` where only the provider knows.
    `size_bytes` is the size of its weights on disk. `takes_seed` says whether its draws depend on
    `Sampling.seed`.
    """

    name: str
    revision: str
    parameters: int | None = None
    size_bytes: int | None = None
    gives_label_logprobs: bool = False
    gives_logprobs: bool = False
    local: bool = False
    takes_seed: bool = True
    notes: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Completer(Protocol):
    """Anything that answers chats. `complete` may be awaited many times at once."""

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query `sampling.n` times, samples numbered from 0.

        Raises:
            TeacherError: no answer could be had, after the completer's own retries.
        """

    async def aclose(self) -> None:
        """Free connections, threads and memory."""


def draw_seed(seed: int, query_id: str, sample: int) -> int:
    """A 32-bit seed for one sample of one query, fixed by these three alone."""
    return int(unit_hash(f"{sample}:{query_id}", seed) * 2**32)
