"""Whose query is behind a paid answer: an index beside the store, of pseudonyms alone.

Answers outlive the traffic they were asked for; without this, those of a user whose queries have
left the traffic could no longer be found. One JSONL line a query that has a user. Knows queries and
hashes; not answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.jsonl import (
    AppendOnlyFile,
    read_objects,
    read_records,
    void,
    write_atomic,
)
from stillhouse.core.lineage import LABELLED, QUERIES, pseudonym
from stillhouse.core.records import LabelledQuery, Query, Record, message_key
from stillhouse.core.runfolder import RunFolder

OWNERS: Final = "owners.jsonl"
SALT: Final = "owners.salt"
GOLDEN: Final = "golden.jsonl"


class Owner(Record):
    """A query (`id`), the hash of its chat, and whose it is, as a pseudonym under the salt."""

    id: str
    chat: str
    user: str


class Owned(NamedTuple):
    """What a user's queries are called: their ids, and the hashes of their chats."""

    ids: frozenset[str]
    chats: frozenset[str]


def queries_with_users(traffic: Path) -> Iterable[Query]:
    """All queries of a finished traffic stage that have a user."""
    for name, record in ((QUERIES, Query), (LABELLED, LabelledQuery), (GOLDEN, LabelledQuery)):
        if (traffic / name).exists():
            for query in read_records(traffic / name, record):
                if query.user is not None:
                    yield query


def record_owners(run: RunFolder) -> None:
    """Add the queries of the run's traffic that are not in the index yet."""
    queries = list(queries_with_users(run.stage("traffic")))
    if not queries:
        return
    path = run.store / OWNERS
    salt = _salt(run.store)
    known = (
        {(line.id, line.chat, line.user) for line in read_records(path, Owner)}
        if path.exists()
        else set()
    )
    names: dict[str, str] = {}
    new: dict[tuple[str, str, str], Owner] = {}
    for query in queries:
        assert query.user is not None
        hidden = names.setdefault(query.user, pseudonym(salt, query.user))
        line = (query.id, message_key(query.messages), hidden)
        if line not in known:
            new[line] = Owner(id=line[0], chat=line[1], user=line[2])
    if new:
        index = AppendOnlyFile(path)
        try:
            index.append(owner.to_json() for owner in new.values())
        finally:
            index.close()


def _salt(store: Path) -> str:
    path = store / SALT
    if not path.exists():
        text = secrets.token_hex(32)
        write_atomic(path, lambda handle: void(handle.write(text + "\n")))
    return path.read_text("utf-8").strip()


def owned_by(run: RunFolder, user: str) -> Owned:
    """What the index knows of a user."""
    path = run.store / OWNERS
    if not path.exists() or not (run.store / SALT).exists():
        return Owned(frozenset(), frozenset())
    hidden = pseudonym(_salt(run.store), user)
    lines = [raw for _, raw in read_objects(path) if raw.get("user") == hidden]
    return Owned(
        frozenset(str(raw.get("id")) for raw in lines),
        frozenset(str(raw.get("chat")) for raw in lines),
    )


def owner_pseudonym(run: RunFolder, user: str) -> str | None:
    """A user's name in the index, or `None` where there is no index."""
    return pseudonym(_salt(run.store), user) if (run.store / SALT).exists() else None
