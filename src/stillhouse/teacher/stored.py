"""The answers to a list of queries, read from the store one at a time.

Knows ids and keys; holds no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from stillhouse.core.records import Completion, Query
from stillhouse.teacher.keys import AnswerKey
from stillhouse.teacher.store import AnswerStore


class StoredAnswers(Mapping[str, tuple[Completion, ...]]):
    """Query id -> its samples, in the order of the queries, without those that have none.

    Each look-up reads the file; the store may be closed by then.

    Args:
        store: where the answers are.
        queries: with distinct ids.
        keys: of the queries, in their order.
        samples: how many of each are given at most.
    """

    def __init__(
        self,
        store: AnswerStore,
        queries: Sequence[Query],
        keys: Sequence[AnswerKey],
        samples: int,
    ) -> None:
        self._store = store
        self._samples = samples
        self._keys = {
            query.id: key for query, key in zip(queries, keys, strict=True) if store.count(key)
        }

    def __getitem__(self, query_id: str) -> tuple[Completion, ...]:
        return tuple(
            completion
            if completion.query_id == query_id
            else completion.model_copy(update={"query_id": query_id})
            for completion in self._store.get(self._keys[query_id])[: self._samples]
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
