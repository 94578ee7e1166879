"""The traffic log: what is promised is written, losses are counted, nothing private is kept."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.core.errors import UserError
from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.private import Pseudonyms, private_call, weight
from stillhouse.serve.records import Outcome
from stillhouse.serve.stored_calls import delete_user, export_calls, served_since
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog, sampled
from stillhouse.traffic.logs import LogReader

NAMES = Pseudonyms(b"0123456789abcdef")
HERE = Path(__file__).parents[1]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_database(f"sqlite:///{tmp_path}/log.db")
    yield engine
    engine.dispose()


def without_addresses(text: str) -> str:
    return re.sub(r"\S+@\S+", "[e-mail]", text)


def file_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_texts_are_redacted_and_users_renamed_before_they_are_stored(
    engine: Engine, tmp_path: Path
) -> None:
    log = TrafficLog(engine, NAMES, redact=without_addresses)
    logprobs = {"content": [{"token": "ann@x.org", "logprob": -0.1}]}
    choice = {"message": {"role": "assistant", "content": "to ann@x.org"}, "logprobs": logprobs}
    tool = {"function": {"arguments": '{"to": "ann@x.org"}'}, "id": "call_1", "type": "function"}
    told = served_of(1, error="bad: ann@x.org")
    assert log.offer(call_of(1, response={"choices": [choice], "tool_calls": [tool]}), told)
    detail = {"note": ["ann@x.org"]}
    log.outcome(
        Outcome(request="r1", kind="feedback", score=0, at=1, corrected="ann@x.org", detail=detail)
    )
    assert log.close().written == 1
    held = file_bytes(tmp_path)
    assert b"[e-mail]" in held
    assert b"ann@x.org" not in held
    assert b'"ann"' not in held
    assert NAMES.of("shop", "ann").encode() in held


def test_a_redactor_that_fails_leaks_nothing(engine: Engine, tmp_path: Path) -> None:
    def broken(text: str) -> str:
        raise RuntimeError(text)

    log = TrafficLog(engine, NAMES, redact=broken)
    assert log.offer(call_of(1), served_of(1))
    counts = log.close()
    assert (counts.written, counts.bodiless, counts.redactor_failed) == (1, 1, 1)
    assert b"Review" not in file_bytes(tmp_path)
    assert [one.id for one in served_since(engine, "reviews", 0)] == ["r1"]


def test_a_full_queue_drops_the_newest_and_counts(engine: Engine) -> None:
    start, inside = threading.Event(), threading.Event()

    def slow(text: str) -> str:
        inside.set()
        start.wait(10)
        return text

    log = TrafficLog(engine, NAMES, redact=slow, capacity=5, batch=1)
    taken = [log.offer(call_of(n), served_of(n)) for n in range(9)]
    assert taken == [True] * 5 + [False] * 4
    assert log.owner("r4") == "shop"  # it waits, and is known
    assert inside.wait(10)
    start.set()
    counts = log.close()
    assert (counts.offered, counts.written, counts.dropped, counts.waiting) == (9, 5, 4, 0)
    assert not log.offer(call_of(10), served_of(10))
    small = TrafficLog(engine, NAMES, redact=None, capacity_bytes=1000)
    big = {"messages": [{"role": "user", "content": "x" * 2000}]}
    assert not small.offer(call_of(11, request=big), served_of(11))
    small.close()


def test_a_full_disk_holds_the_log_up_and_loses_nothing(engine: Engine) -> None:
    full = threading.Event()
    full.set()
    tried = threading.Event()

    @sa.event.listens_for(engine, "connect")
    @sa.event.listens_for(engine, "checkout")
    def limit(connection: sa.pool.PoolProxiedConnection, *_: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
        most = pages if full.is_set() else 1_000_000
        connection.execute(f"PRAGMA max_page_count={most}")  # type: ignore[attr-defined]
        tried.set()

    log = TrafficLog(engine, NAMES, redact=None)
    text = {"messages": [{"role": "user", "content": "x" * 50_000}]}
    for number in range(20):
        assert log.offer(call_of(number, request=text), served_of(number))
    assert tried.wait(10)
    assert not log.flush(0.3)
    assert log.counts().written == 0
    full.clear()
    counts = log.close()
    assert (counts.written, counts.lost) == (20, 0)
    assert counts.retries > 0


def test_a_disk_that_stays_full_is_given_up_at_close_and_counted(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TRIGGER full BEFORE INSERT ON calls "
                "WHEN NEW.id = 'r1' BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
    log = TrafficLog(engine, NAMES, redact=None)
    for number in range(4):
        assert log.offer(call_of(number), served_of(number))
    counts = log.close()
    assert (counts.written, counts.refused) == (3, 1)  # one row is at fault, the others are kept

    with engine.begin() as connection:
        held = TrafficLog(engine, NAMES, redact=None)
        connection.execute(sa.text("DELETE FROM calls WHERE id = 'none'"))  # holds the write lock
        assert held.offer(call_of(9), served_of(9))
        counts = held.close(timeout_s=0.1)
        assert (counts.written, counts.lost, counts.waiting) == (0, 1, 0)


def test_no_complete_record_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    command = [sys.executable, str(HERE / "killed_log.py"), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            said = process.stdout.readline()
        process.kill()
        rest = process.stdout.read().split()
    last = int(rest[-1] if rest else said)
    engine = open_database(url)
    held = {one.id for one in served_since(engine, "reviews", 0)}
    assert {f"r{number}" for number in range(last + 1)} <= held
    assert export_calls(engine, tmp_path / "log.jsonl") == len(held)
    engine.dispose()


def test_requests_are_written_together_but_nobody_waits_for_that(engine: Engine) -> None:
    commits: list[int] = []
    sa.event.listen(engine, "commit", lambda _: commits.append(1))
    log = TrafficLog(engine, NAMES, redact=None, gather_s=3600)
    for number in range(50):
        assert log.offer(call_of(number), served_of(number))
    assert log.counts().written == 0
    log.outcome(Outcome(request="r7", kind="feedback", score=1, at=1))
    assert log.counts().written == 50
    assert len(commits) == 2  # the requests, and the outcome
    assert log.offer(call_of(50), served_of(50))
    assert log.flush(10)
    assert log.offer(call_of(51), served_of(51))
    assert log.close().written == 52


def test_what_no_database_takes_is_refused_alone(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    odd = {"messages": [{"role": "user", "content": "nul \0, lone \ud800"}]}
    assert log.offer(call_of(1, request=odd), served_of(1))
    assert log.offer(call_of(2), served_of(2, tenant="\0"))
    assert log.offer(call_of(3), served_of(3))
    counts = log.close()
    assert (counts.written, counts.refused) == (2, 1)
    assert [one.id for one in served_since(engine, "reviews", 0)] == ["r1", "r3"]


def test_mine_reads_the_export(engine: Engine, tmp_path: Path) -> None:
    log = TrafficLog(engine, NAMES, redact=without_addresses)
    for number in range(1100):
        assert log.offer(call_of(number), served_of(number // 600))
    hidden = served_of(0, id="s0", variant="student", shadow_of="r0")
    assert log.offer(call_of(0, id="s0"), hidden)
    log.close()
    path = tmp_path / "log.jsonl"
    assert export_calls(engine, path, task="none") == 0
    count = export_calls(engine, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == count
    assert GatewayCall.model_validate_json(lines[0]).user == NAMES.of("shop", "ann")
    assert not path.with_name("log.jsonl.partial").exists()
    reader = LogReader([path])
    calls = list(reader)
    assert len(calls) == count


def test_a_deleted_users_texts_are_gone_from_the_files(engine: Engine, tmp_path: Path) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    marked = {"messages": [{"role": "user", "content": "the secret word " * 500}]}
    for number in range(1200):
        assert log.offer(call_of(number, request=marked if number < 5 else {}), served_of(number))
    log.close()
    assert b"the secret word" in file_bytes(tmp_path)
    assert delete_user(engine, NAMES.of("shop", "ann")).calls == 1200
    assert b"the secret word" not in file_bytes(tmp_path)


def test_sampling_keeps_figures_of_all_and_texts_of_its_share_of_units(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None, sample=0.25)
    for number in range(400):
        assert log.offer(call_of(number), served_of(number, unit=f"u{number}"))
    counts = log.close()
    assert counts.written == 400
    kept = {f"u{n}" for n in range(400) if sampled(f"u{n}", 0.25)}
    assert counts.bodiless == 400 - len(kept)
    assert 65 <= len(kept) <= 135  # 100 expected, 4 standard deviations of 8.7
    assert not sampled("u", 0.0)
    assert sampled("u", 1.0)


def test_pseudonyms_need_a_secret_and_tell_tenants_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLHOUSE_PSEUDONYM_SECRET", raising=False)
    with pytest.raises(UserError, match="STILLHOUSE_PSEUDONYM_SECRET"):
        Pseudonyms.from_environment()
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", "0123456789abcdef")
    assert Pseudonyms.from_environment().of("shop", "ann") == NAMES.of("shop", "ann")
    made = {NAMES.of("a", "bc"), NAMES.of("ab", "c"), Pseudonyms(b"x" * 16).of("a", "bc")}
    assert len(made) == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["user", "id", "logprobs", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None)
@given(body=st.dictionaries(st.sampled_from(["messages", "user", "tools"]), JSON, max_size=3))
def test_any_body_is_hidden_without_a_change_of_its_form(body: dict[str, object]) -> None:
    call = call_of(1, request=body)
    same = private_call(call, "ann", None)["request"]
    assert same.keys() == body.keys()
    gone = private_call(call, None, lambda _: "")["request"]
    assert gone.keys() == body.keys()
    assert weight(body) >= 64
