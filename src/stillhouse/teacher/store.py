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
from stillhouse.core.money import completion_cost_usd
from stillhouse.core.recipe_teacher import PricesSection
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
        # Another seed must not buy again what does not depend on it.
        "seed": sampling.seed if info.takes_seed and sampling.sampling_temperature > 0 else None,
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
        self._bounds: dict[AnswerKey, dict[int, float]] = {}
        self._unpriced: list[Completion] = []
        self._paid_usd = 0.0
        self._pending: list[_Pending] = []
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
        """Cost of all answers in the store, in USD; of unknown cost, the most it can have been."""
        return self._paid_usd

    def unpriced_usd(self, prices: PricesSection) -> float:
        """Cost of the answers whose model had no price when they were asked, at today's prices."""
        return sum(_usd_by_tokens(completion, prices) for completion in self._unpriced)

    def usd_of(self, key: AnswerKey, samples: int, prices: PricesSection) -> float:
        """What the first `samples` answers of a key cost, counted as in the two totals."""
        bounds = self._bounds.get(key, {})
        total = 0.0
        for completion in self.get(key)[:samples]:
            if completion.cost_usd is not None:
                total += completion.cost_usd
            elif completion.sample in bounds:
                total += bounds[completion.sample]
            else:
                total += _usd_by_tokens(completion, prices)
        return total

    def get(self, key: AnswerKey) -> tuple[Completion, ...]:
        """The samples there are, in order; empty where there is none."""
        return self._answers.get(key, ())

    async def put(
        self, key: AnswerKey, completions: Sequence[Completion], worst_usd: float = 0.0
    ) -> None:
        """Keep further samples of a key; they are on the disk when this returns.

        `worst_usd` is the most they can have cost together: what counts where a cost is not known.

        All answers that arrive in one turn of the event loop share one fsync, which runs in the
        loop: the order in which callers go on must not depend on the disk, because a local model
        forms its batches from it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._pending:
            loop.call_soon(self._flush)
        self._pending.append(_Pending(key, tuple(completions), worst_usd, future))
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
            self._file.append(_line(p.key, p.completions, p.worst_usd) for p in pending)
        except Exception as error:
            for waiting in pending:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting in pending:
            self._keep(waiting.key, waiting.completions, waiting.worst_usd)
            if not waiting.future.done():
                waiting.future.set_result(None)

    def _keep(self, key: AnswerKey, completions: Sequence[Completion], worst_usd: float) -> None:
        have = self._answers.get(key, ())
        self._answers[key] = have + tuple(
            completion.model_copy(update={"sample": len(have) + offset})
            for offset, completion in enumerate(completions)
        )
        unknown = [c for c in completions if c.cost_usd is None]
        if worst_usd <= 0:
            self._unpriced.extend(unknown)
        elif unknown:
            share = worst_usd / len(completions)
            bounds = {
                len(have) + offset: share
                for offset, completion in enumerate(completions)
                if completion.cost_usd is None
            }
            self._paid_usd += sum(bounds.values())
            self._bounds.setdefault(key, {}).update(bounds)
        self._paid_usd += sum(completion.cost_usd or 0.0 for completion in completions)

    def _load(self, path: Path) -> None:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                try:
                    key, completions, worst_usd = _parsed(raw)
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{path} line {number}",
                        "is damaged: it does not match its checksum",
                        action="delete this line; its answer will be asked for again",
                    ) from None
                self._keep(key, completions, worst_usd)


def _usd_by_tokens(completion: Completion, prices: PricesSection) -> float:
    return (
        completion_cost_usd(
            prices, completion.model, completion.prompt_tokens, completion.completion_tokens
        )
        or 0.0
    )


class _Pending(NamedTuple):
    key: AnswerKey
    completions: tuple[Completion, ...]
    worst_usd: float
    future: asyncio.Future[None]


def _line(key: AnswerKey, completions: Sequence[Completion], worst_usd: float) -> str:
    unknown = worst_usd > 0 and any(completion.cost_usd is None for completion in completions)
    worst = f'"worst_usd":{json.dumps(worst_usd)},' if unknown else ""
    rest = (
        f'"teacher":{json.dumps(key.teacher)},"chat":"{key.chat}","sampling":"{key.sampling}",{worst}'
        f'"completions":[{",".join(completion.to_json() for completion in completions)}]}}'
    )
    return f'{{"sum":"{_sum(rest.encode("utf-8"))}",{rest}'


def _sum(rest: bytes) -> str:
    return hashlib.sha256(rest).hexdigest()[:SUM_DIGITS]


def _parsed(raw: bytes) -> tuple[AnswerKey, list[Completion], float]:
    rest = raw[_REST_AT:].removesuffix(b"\n")
    claimed = raw[len(_HEAD) : len(_HEAD) + SUM_DIGITS]
    separator = raw[len(_HEAD) + SUM_DIGITS : _REST_AT]
    if not raw.startswith(_HEAD) or separator != b'",' or claimed != _sum(rest).encode("ascii"):
        raise ValueError("checksum")
    value = json.loads(b"{" + rest)
    key = AnswerKey(value["teacher"], value["chat"], value["sampling"])
    completions = [Completion.model_validate(item) for item in value["completions"]]
    return key, completions, float(value.get("worst_usd", 0.0))
