"""Pseudonyms, owners of answers, the record of those forgotten; whole runs are in test_cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.core.errors import RunFolderError
from stillhouse.core.forgotten import FORGOTTEN, ForgottenUsers, record_forgotten
from stillhouse.core.jsonl import write_records
from stillhouse.core.lineage import LINEAGE, Lineage, pseudonym, read_lineage
from stillhouse.core.owners import OWNERS, owned_by, record_owners
from stillhouse.core.records import Message, Query, message_key
from stillhouse.core.runfolder import RunFolder


def query(number: int, user: str | None) -> Query:
    return Query(
        id=f"q{number}", messages=(Message(role="user", content=f"text {number}"),), user=user
    )


def test_a_pseudonym_depends_on_key_and_name_alone() -> None:
    assert pseudonym("k", "ann") == pseudonym("k", "ann")
    assert len({pseudonym(key, name) for key in "kl" for name in ("ann", "bob", "\ud800")}) == 6
    assert len(pseudonym("k", "ann")) == 32


def test_owners_are_found_after_their_queries_left_the_traffic(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    path = run.stage("traffic") / "queries.jsonl"
    write_records(path, [query(0, "ann"), query(1, "bob"), query(2, None)])
    record_owners(run)
    record_owners(run)
    assert len((run.store / OWNERS).read_text().splitlines()) == 2
    write_records(path, [query(1, "bob"), query(3, "ann")])
    record_owners(run)
    found = owned_by(run, "ann")
    assert found.ids == {"q0", "q3"}
    assert found.chats == {message_key(query(n, None).messages) for n in (0, 3)}
    assert owned_by(run, "eve") == (frozenset(), frozenset())
    text = (run.store / OWNERS).read_text()
    assert "ann" not in text
    assert "bob" not in text


def test_traffic_without_users_leaves_no_index(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_records(run.stage("traffic") / "queries.jsonl", [query(0, None)])
    record_owners(run)
    assert not run.store.exists()
    assert owned_by(run, "ann") == (frozenset(), frozenset())


def test_the_record_shows_who_knows_the_name_and_nobody_else(tmp_path: Path) -> None:
    assert "ann" not in ForgottenUsers(tmp_path)
    record_forgotten(tmp_path, "ann", "begun")
    record_forgotten(tmp_path, "ann", "done", removed={"a": 1}, datasets=("d",), models=("m",))
    known = ForgottenUsers(tmp_path)
    assert "ann" in known
    assert "bob" not in known
    assert 3 not in known
    first, second = known.lines_of("ann")
    assert first.user != second.user, "lines cannot be linked"
    assert (second.removed, second.datasets, second.models) == ({"a": 1}, ("d",), ("m",))
    assert "ann" not in (tmp_path / FORGOTTEN).read_text()


def test_lineage_that_is_damaged_is_named(tmp_path: Path) -> None:
    assert read_lineage(tmp_path) == Lineage()
    (tmp_path / LINEAGE).write_text('{"datasets": 3}')
    with pytest.raises(RunFolderError, match=r"lineage\.json"):
        read_lineage(tmp_path)
