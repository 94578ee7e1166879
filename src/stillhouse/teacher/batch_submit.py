"""Sending one batch, each step in the journal before the next.

What is intended is durable before anything is sent, and that it is being sent before it can run: a
kill between two steps leaves a batch that can be looked for, or one that surely does not exist.
Knows one batch; what goes into it is decided elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stillhouse.core.progress import Progress
from stillhouse.core.records import Query
from stillhouse.teacher.batch import NAME_DIGITS, Item, Part, custom_id
from stillhouse.teacher.batch_journal import BatchJournal, Dropped, Intended, Sending, Submitted
from stillhouse.teacher.batch_provider import BatchProvider, UnsureError
from stillhouse.teacher.retry import TeacherFailure
from stillhouse.teacher.store import AnswerKey


class Submitting(NamedTuple):
    """What sending works with. `body(key, query, first, n)` is the request for some samples."""

    provider: BatchProvider
    teacher: str
    journal: BatchJournal
    progress: Progress
    now: Callable[[], float]
    body: Callable[[AnswerKey, Query, int, int], dict[str, Any]]


async def submit(to: Submitting, parts: Sequence[Part], queries: Mapping[AnswerKey, Query]) -> None:
    """Send `parts` as one batch. Where no answer comes, the batch stays open and is looked for.

    Raises:
        TeacherFailure: it was refused: there is no such batch, and nothing of it is billed.
        UserError: the server has no batches.
    """
    provider, journal = to.provider, to.journal
    marker = await provider.marker()
    name = secrets.token_hex(NAME_DIGITS // 2)
    asks = [ask for part in parts for ask in part.asks]
    intended = Intended(
        batch=name,
        teacher=to.teacher,
        at=to.now(),
        requests=len(asks),
        size=sum(ask.size for ask in asks),
        worst_usd=sum(ask.worst_usd for ask in asks),
        marker=marker,
    )
    journal.intend(intended, _items(name, parts, queries))
    path, file = journal.requests_path(name), ""
    try:
        journal.write_requests(name, _lines(to, name, parts, queries))
        file = await provider.upload(name, path)
        journal.write(Sending(batch=name, at=to.now(), file=file))
        try:
            the_id = await provider.create(name, file, path)
        except UnsureError as error:
            to.progress.say(f"batch {name}: {error}; looking whether it arrived")
        else:
            journal.write(Submitted(batch=name, id=the_id))
    except TeacherFailure as error:
        journal.write(Dropped(batch=name, why="refused", detail=str(error)))
        journal.close_files(name)
        await provider.tidy(name, file)
        raise
    path.unlink(missing_ok=True)
    most = f", at most ${intended.worst_usd:.4f}" if intended.worst_usd else ""
    to.progress.say(f"batch {name}: {len(asks):,} requests sent to {to.teacher}{most}")


def _items(name: str, parts: Sequence[Part], queries: Mapping[AnswerKey, Query]) -> Iterator[Item]:
    for part in parts:
        for ask in part.asks:
            yield Item(
                custom_id=custom_id(name, part.key, ask.first),
                chat=part.key.chat,
                sampling=part.key.sampling,
                query_id=queries[part.key].id,
                first=ask.first,
                n=ask.n,
                worst_usd=ask.worst_usd,
            )


def _lines(
    to: Submitting, name: str, parts: Sequence[Part], queries: Mapping[AnswerKey, Query]
) -> Iterator[bytes]:
    for part in parts:
        for ask in part.asks:
            body = to.body(part.key, queries[part.key], ask.first, ask.n)
            yield to.provider.line(custom_id(name, part.key, ask.first), body)
