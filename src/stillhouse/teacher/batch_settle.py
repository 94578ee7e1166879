"""One step in the life of one batch: find it, look at it, fetch it, join it into the store.

Each step can be taken again after a kill, with the same end: a batch whose id was not written down
is looked for, results are fetched whole or not at all, and a key whose answers are in the store is
passed over. Knows one batch; what is sent next is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from stillhouse.core.errors import StillhouseError, TeacherError, UserError
from stillhouse.core.progress import Progress, Ticker
from stillhouse.core.recipe_asking import BatchSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.teacher.batch import Item, Outcome, join
from stillhouse.teacher.batch_journal import (
    BatchJournal,
    Dropped,
    ErrorRow,
    Fetched,
    Joined,
    OpenBatch,
    Sending,
    Submitted,
)
from stillhouse.teacher.batch_provider import BatchProvider
from stillhouse.teacher.retry import TeacherFailure
from stillhouse.teacher.store import AnswerKey, AnswerStore

PUT_TOGETHER: Final = 512  # keys whose answers share one fsync


class Settling(NamedTuple):
    """What settling a batch works with."""

    provider: BatchProvider
    teacher: str
    section: BatchSection
    store: AnswerStore
    journal: BatchJournal
    share: float
    progress: Progress
    ticker: Ticker
    now: Callable[[], float]
    settle_s: float


@dataclass(slots=True)
class Settled:
    """What came of a batch that is done with.

    `keys` are all that it asked; `again` those of them that it left without an answer that another
    batch can bring; `stop` is why no more should be sent. `deferred`: the provider put it off;
    `vanished`: it was sent and never arrived.
    """

    requests: int
    keys: list[AnswerKey] = field(default_factory=list)
    again: set[AnswerKey] = field(default_factory=set)
    failures: dict[AnswerKey, str] = field(default_factory=dict)
    usd_by_key: dict[AnswerKey, float] = field(default_factory=dict)
    answered: int = 0
    deferred: bool = False
    vanished: bool = False
    reason: str = ""
    stop: StillhouseError | None = None


async def settle(to: Settling, batch: OpenBatch) -> Settled | None:
    """Take an open batch as far as it goes now; `None` while it runs.

    Raises:
        TeacherFailure: the provider gave no answer to a look, after all retries.
        TeacherError: the batch is lost, and `when_lost` says to stop.
    """
    if batch.fetched is not None:
        return await _join(to, batch, batch.fetched)
    if batch.id is None:
        found = await _find(to, batch)
        if found == "waiting":
            return None
        if found == "nowhere":
            settled = await _drop(to, batch, "never_arrived", "it never reached the provider")
            settled.vanished = batch.sending is not None
            return settled
    assert batch.id is not None
    look = await to.provider.look(batch.id)
    if look.state == "waiting":
        to.ticker.note(f"{batch.name} {look.status}: {look.finished:,} of {look.total:,}")
        return None
    if look.state == "gone":
        detail = f"the provider does not know it any more ({look.status})"
        if to.section.when_lost == "stop":
            raise _stopped(batch, detail)
        return await _drop(to, batch, "lost", detail, usd=batch.intended.worst_usd)
    if look.state == "refused":
        settled = await _drop(to, batch, "refused", look.reason)
        settled.deferred = look.later
        if not look.later:
            settled.stop = TeacherError(
                f"{to.teacher}: batch {batch.id} was refused as a whole: {look.reason}; nothing of "
                "it was run or billed, and every answer so far is kept"
            )
        return settled
    whole = await to.provider.fetch(batch.id, to.journal.results_path(batch.name), look.answers)
    if not whole and to.section.when_lost == "stop":
        raise _stopped(batch, f"its results hold fewer than the {look.answers:,} answers it has")
    status = "cancelled" if look.cancelled else look.status
    fetched = Fetched(batch=batch.name, status=status, whole=whole)
    to.journal.write(fetched)
    return await _join(to, batch, fetched)


async def _find(to: Settling, batch: OpenBatch) -> Literal["found", "waiting", "nowhere"]:
    """Look for a batch that was sent, or may have been, before its id was written down."""
    sending = batch.sending
    if sending is None:
        return "nowhere"
    if (first := await _look_for(to, batch, sending)) != "nowhere":
        return first
    if to.now() < sending.at + to.settle_s:
        return "waiting"
    # Without its file a request that is still on its way comes to nothing.
    await to.provider.tidy(batch.name, sending.file)
    return await _look_for(to, batch, sending)


async def _look_for(
    to: Settling, batch: OpenBatch, sending: Sending
) -> Literal["found", "waiting", "nowhere"]:
    waiting = False
    intended = batch.intended
    for candidate in await to.provider.find(
        batch.name, sending.file, intended.requests, intended.marker
    ):
        if candidate.id in to.journal.known_ids:
            continue
        if not candidate.sure:
            look = await to.provider.look(candidate.id)
            waiting = waiting or look.state == "waiting"
            if look.state != "ended" or not await to.provider.is_ours(candidate.id, batch.name):
                continue
        to.journal.write(Submitted(batch=batch.name, id=candidate.id))
        to.progress.say(f"batch {batch.name}: found again as {candidate.id}")
        return "found"
    return "waiting" if waiting else "nowhere"


async def _drop(
    to: Settling,
    batch: OpenBatch,
    why: Literal["never_arrived", "refused", "lost"],
    detail: str,
    usd: float = 0.0,
) -> Settled:
    """Be done with a batch that brought nothing: its queries are asked again."""
    keys = list(dict.fromkeys(_key(to, item) for item in to.journal.items(batch.name)))
    to.journal.write(Dropped(batch=batch.name, why=why, detail=detail, usd=usd))
    to.journal.close_files(batch.name)
    await to.provider.tidy(batch.name, batch.sending.file if batch.sending else "")
    to.progress.say(f"batch {batch.name}: {detail}")
    return Settled(requests=batch.intended.requests, keys=keys, reason=detail)


async def _join(to: Settling, batch: OpenBatch, fetched: Fetched) -> Settled:
    """Put the answers into the store, those that are not there yet, and keep the errors."""
    settled, status = Settled(requests=batch.intended.requests), fetched.status
    items = list(to.journal.items(batch.name))
    lost = 0.0
    if len(items) < batch.intended.requests:  # a user was forgotten, and it was billed all the same
        lost = max(0.0, batch.intended.worst_usd - sum(item.worst_usd for item in items))
    rows = to.provider.rows(to.journal.results_path(batch.name))
    errors: list[ErrorRow] = []
    puts: list[Awaitable[None]] = []
    for outcome in join(to.teacher, items, rows, lambda item, body: _read(to, item, body)):
        key = outcome.key
        settled.keys.append(key)
        if outcome.answers:
            settled.answered += len(outcome.answers)
            settled.usd_by_key[key] = _usd(outcome)
            # The store holds more than when the batch was made: a kill came after this line.
            if len(to.store.get(key)) <= outcome.first:
                puts.append(to.store.put(key, outcome.answers, outcome.worst_usd))
            to.ticker.advance()
        lost += outcome.unread_usd + (0.0 if fetched.whole else outcome.missing_usd)
        if outcome.verdict != "whole":
            _note_error(to, settled, outcome, errors)
        if len(puts) >= PUT_TOGETHER:
            await asyncio.gather(*puts)
            puts.clear()
    await asyncio.gather(*puts)
    to.journal.keep_errors(batch.name, errors)
    paid = sum(settled.usd_by_key.values())
    to.journal.write(
        Joined(
            batch=batch.name,
            answered=settled.answered,
            again=len(settled.again),
            failed=len(settled.failures),
            usd=paid,
            lost_usd=lost,
        )
    )
    to.journal.close_files(batch.name)
    await to.provider.tidy(batch.name, batch.sending.file if batch.sending else "")
    to.ticker.note(f"${paid:.4f}" if paid else "")
    to.progress.say(
        f"batch {batch.name} {status}: {settled.answered:,} answers"
        + (f", ${paid:.4f}" if paid else "")
        + (f", {len(settled.again):,} queries to ask again" if settled.again else "")
        + (f", {len(settled.failures):,} failed" if settled.failures else "")
    )
    if settled.stop is None and status == "cancelled" and settled.again:
        settled.stop = TeacherError(
            f"{to.teacher}: batch {batch.id} was cancelled; its {settled.answered:,} answers are "
            "kept: run the same command again to ask the rest"
        )
    return settled


def _note_error(
    to: Settling,
    settled: Settled,
    outcome: Outcome,
    errors: list[ErrorRow],
) -> None:
    detail = f"{outcome.reason}: {outcome.detail}"
    # With some of its samples there, a query is asked for the others once more.
    if outcome.verdict == "failed" and not outcome.answers:
        settled.failures[outcome.key] = f"{to.provider.completer.info.name}: {outcome.detail}"
    else:
        settled.again.add(outcome.key)
        settled.reason = detail
    if outcome.verdict == "fatal" and settled.stop is None:
        settled.stop = TeacherFailure(
            outcome.reason,
            f"{to.teacher}: {outcome.detail}; every answer so far is kept: run the same command "
            "again once it is mended",
        )
    errors.append(
        ErrorRow(
            custom_id=outcome.custom_id,
            query_id=outcome.query_id,
            verdict=outcome.verdict,
            reason=outcome.reason,
            detail=outcome.detail,
        )
    )


def _read(to: Settling, item: Item, body: Mapping[str, object]) -> list[Completion]:
    """The answers of a row at batch price; how long they took is not known."""
    # Of the query only the id goes into a completion.
    query = Query(id=item.query_id, messages=(Message(role="user", content=""),))
    return [
        completion.model_copy(
            update={
                "latency_ms": None,
                "cost_usd": None if completion.cost_usd is None else completion.cost_usd * to.share,
            }
        )
        for completion in to.provider.read(query, body)
    ]


def _usd(outcome: Outcome) -> float:
    costs = [completion.cost_usd for completion in outcome.answers]
    if None in costs:
        return outcome.worst_usd
    return sum(cost for cost in costs if cost is not None)


def _key(to: Settling, item: Item) -> AnswerKey:
    return AnswerKey(to.teacher, item.chat, item.sampling)


def _stopped(batch: OpenBatch, detail: str) -> UserError:
    return UserError(
        f"batch {batch.id}",
        f"{detail}; it may have been billed up to ${batch.intended.worst_usd:.4f}",
        action="check that the key is of the project that sent it, or set teacher.batch.when_lost: "
        "ask_again to pay for its queries again",
    )
