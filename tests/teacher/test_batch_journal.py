"""The journal of batches: what survives a kill, and what a damaged one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.teacher.batch import Item
from stillhouse.teacher.batch_journal import (
    JOURNAL,
    BatchJournal,
    Dropped,
    ErrorRow,
    Fetched,
    Intended,
    Joined,
    Sending,
    Submitted,
)


def intended(name: str, teacher: str = "t", usd: float = 1.0) -> Intended:
    return Intended(batch=name, teacher=teacher, at=5.0, requests=1, size=9, worst_usd=usd)


def item(the_id: str = "i") -> Item:
    return Item(custom_id=the_id, chat="c", sampling="s", query_id="q", first=0, n=1, worst_usd=1.0)


def test_a_batch_is_open_from_its_intent_until_it_is_joined_or_dropped(tmp_path: Path) -> None:
    with BatchJournal(tmp_path) as journal:
        journal.intend(intended("a"), [item()])
        journal.write(Sending(batch="a", at=6.0, file="f"))
        journal.intend(intended("b", usd=2.0), [item()])
        journal.intend(intended("c", teacher="other", usd=4.0), [item()])
    with BatchJournal(tmp_path) as journal:
        first, second = journal.open_of("t")
        assert (first.name, first.sending, first.id) == (
            "a",
            Sending(batch="a", at=6, file="f"),
            None,
        )
        assert (second.name, second.sending) == ("b", None)
        assert [batch.name for batch in journal.open_of_others("t")] == ["c"]
        assert journal.open_usd() == 7.0
        assert list(journal.items("a")) == [item()]
        journal.write(Submitted(batch="a", id="batch_1"))
        journal.write(Fetched(batch="a", status="completed"))
        journal.write(Dropped(batch="b", why="lost", detail="gone", usd=2.0))
    with BatchJournal(tmp_path) as journal:
        (only,) = journal.open_of("t")
        assert (only.id, only.fetched) == ("batch_1", Fetched(batch="a", status="completed"))
        journal.write(Joined(batch="a", answered=1, again=0, failed=0, usd=0.5))
        assert journal.open_usd() == 6.0  # the other teacher's, and what the lost one may have cost
    with BatchJournal(tmp_path) as journal:
        assert journal.open_of("t") == []
        assert journal.known_ids == {"batch_1"}


def test_what_a_kill_left_of_finished_batches_is_removed_and_errors_are_kept(
    tmp_path: Path,
) -> None:
    with BatchJournal(tmp_path) as journal:
        journal.intend(intended("open"), [item()])
        row = ErrorRow(custom_id="i", query_id="q", verdict="failed", reason="r", detail="d")
        journal.keep_errors("done", [row])
        journal.keep_errors("clean", [])
    for name in ("done.items.jsonl", "done.results.jsonl.tmp", "never.requests.jsonl"):
        (tmp_path / name).write_text("")
    with BatchJournal(tmp_path):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {JOURNAL, "open.items.jsonl", "done.errors.jsonl"}


def test_a_torn_last_line_is_cut_and_a_damaged_one_named(tmp_path: Path) -> None:
    with BatchJournal(tmp_path) as journal:
        journal.intend(intended("a"), [item()])
        with pytest.raises(RunFolderError, match="another process"):
            BatchJournal(tmp_path)
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event":"submitt')
    with BatchJournal(tmp_path) as journal:
        assert journal.open_of("t")[0].id is None
    path.write_bytes(b'{"event":"unknown"}\n' + whole)
    with pytest.raises(DataError, match="line 1: is damaged"):
        BatchJournal(tmp_path)
