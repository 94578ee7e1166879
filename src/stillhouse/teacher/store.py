"""Answers that were paid for: durable the moment they arrive, found again by what was asked.

One JSONL line an answered request, with a checksum over the rest of the line. A line torn by a kill
is cut off on open; a line damaged later is an error that names it, never a silent second bill.
Knows what was asked and answered; does not know who asks, or what an answer is worth.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import AppendOnlyFile
from stillhouse.core.records import Completion, Query, message_key
from stillhouse.models.completer import ModelInfo, Sampling

SUM_DIGITS: Final = 16
_HEAD: Final = b'{"sum":"'
_REST_AT: Final = len(_HEAD) + SUM_DIGITS + len(b'",')


class AnswerKey(NamedTuple):
    """What an answer depends on, but for the sample number."""

    teacher: str
    chat: str
    sampling: str


def answer_key(info: ModelInfo, query: Query, sampling: Sampling) -> AnswerKey:
    """The key of a query's answers: teacher and revision, chat, and how answers are drawn.

    The number of samples is no part of it: asking for more keeps those there are.
    """
    drawn = {
        "max_tokens": sampling.max_tokens,
        "sampling_temperature": sampling.sampling_temperature,
        "logprobs": sampling.logprobs,
        "labels": list(sampling.labels),
        "json_schema": sampling.json_schema,
        "seed": sampling.seed,
    }
    text = json.dumps(drawn, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
    return AnswerKey(f"{info.name}@{info.revision}", message_key(query.messages), digest)


class AnswerStore:
    """All answers of a run folder. Use as a context manager: it holds the file's lock.

    Raises:
        DataError: a line is damaged; names the line.
        RunFolderError: another process holds the file, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendOnlyFile(path)
        self._answers: dict[AnswerKey, tuple[Completion, ...]] = {}
        self._paid_usd = 0.0
        self._pending: list[tuple[AnswerKey, tuple[Completion, ...], asyncio.Future[None]]] = []
        try:
            self._load(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Chats that have answers."""
        return len(self._answers)

    @property
    def paid_usd(self) -> float:
        """Known cost of all answers in the store, in USD."""
        return self._paid_usd

    def get(self, key: AnswerKey) -> tuple[Completion, ...]:
        """The samples there are, in order; empty where there is none."""
        return self._answers.get(key, ())

    async def put(self, key: AnswerKey, completions: Sequence[Completion]) -> None:
        """Keep further samples of a key; they are on the disk when this returns.

        All answers that arrive in one turn of the event loop share one fsync, which runs in the
        loop: the order in which callers go on must not depend on the disk, because a local model
        forms its batches from it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending.append((key, tuple(completions), future))
        # Once answered it is paid for: a caller that is cancelled meanwhile does not undo it.
        await future

    def close(self) -> None:
        """Write what is pending and release the lock."""
        try:
            self._flush()
        finally:
            self._file.close()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if not pending:
            return
        try:
            self._file.append(_line(key, completions) for key, completions, _ in pending)
        except Exception as error:
            for _, _, future in pending:
                if not future.done():
                    future.set_exception(error)
            return
        for key, completions, future in pending:
            self._keep(key, completions)
            if not future.done():
                future.set_result(None)

    def _keep(self, key: AnswerKey, completions: Sequence[Completion]) -> None:
        have = self._answers.get(key, ())
        self._answers[key] = have + tuple(
            completion.model_copy(update={"sample": len(have) + offset})
            for offset, completion in enumerate(completions)
        )
        self._paid_usd += sum(completion.cost_usd or 0.0 for completion in completions)

    def _load(self, path: Path) -> None:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    key, completions = _parsed(raw)
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{path} line {number}",
                        "is damaged: it does not match its checksum",
                        action="delete this line; its answer will be asked for again",
                    ) from None
                self._keep(key, completions)


def _line(key: AnswerKey, completions: Sequence[Completion]) -> str:
    rest = (
        f'"teacher":{json.dumps(key.teacher)},"chat":"{key.chat}","sampling":"{key.sampling}",'
        f'"completions":[{",".join(completion.to_json() for completion in completions)}]}}'
    )
    return f'{{"sum":"{_sum(rest.encode("utf-8"))}",{rest}'


def _sum(rest: bytes) -> str:
    return hashlib.sha256(rest).hexdigest()[:SUM_DIGITS]


def _parsed(raw: bytes) -> tuple[AnswerKey, list[Completion]]:
    rest = raw[_REST_AT:].removesuffix(b"\n")
    claimed = raw[len(_HEAD) : len(_HEAD) + SUM_DIGITS]
    separator = raw[len(_HEAD) + SUM_DIGITS : _REST_AT]
    if not raw.startswith(_HEAD) or separator != b'",' or claimed != _sum(rest).encode("ascii"):
        raise ValueError("checksum")
    value = json.loads(b"{" + rest)
    key = AnswerKey(value["teacher"], value["chat"], value["sampling"])
    return key, [Completion.model_validate(item) for item in value["completions"]]
