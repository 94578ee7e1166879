"""What an answer depends on, and so what it is found by: teacher and revision, chat, sampling.

Knows queries and samplings; does not know where answers are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from stillhouse.core.records import Query, message_key
from stillhouse.models.completer import ModelInfo, Sampling


class AnswerKey(NamedTuple):
    """What an answer depends on, but for the sample number."""

    teacher: str
    chat: str
    sampling: str

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the key in memory."""
        text = f"{self.teacher}\n{self.chat}\n{self.sampling}"
        return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def sampling_key(sampling: Sampling, *, takes_seed: bool) -> str:
    """The part of a key that says how answers are drawn: 32 hex digits.

    The number of samples is no part of it: asking for more keeps those there are.
    """
    drawn = {
        "max_tokens": sampling.max_tokens,
        "sampling_temperature": sampling.sampling_temperature,
        "logprobs": sampling.logprobs,
        "labels": list(sampling.labels),
        "json_schema": sampling.json_schema,
        # Another seed must not buy again what does not depend on it.
        "seed": sampling.seed if takes_seed and sampling.sampling_temperature > 0 else None,
    }
    text = json.dumps(drawn, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def answer_key(info: ModelInfo, query: Query, sampling: Sampling) -> AnswerKey:
    """The key of a query's answers: teacher and revision, chat, and how answers are drawn."""
    return answer_keys(info, (query,), sampling)[0]


def answer_keys(info: ModelInfo, queries: Iterable[Query], sampling: Sampling) -> list[AnswerKey]:
    """The keys of many queries, in their order."""
    drawn = sampling_key(sampling, takes_seed=info.takes_seed)
    teacher = f"{info.name}@{info.revision}"
    return [AnswerKey(teacher, message_key(query.messages), drawn) for query in queries]
