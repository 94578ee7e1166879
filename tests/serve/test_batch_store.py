"""Files and batches in SQLite and in a real PostgreSQL: parts, leases, fences, kills."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from batch_gateways import KEYS, begun, client_of, ended, jsonl, line, lines_of
from gateway_servers import Model, gateway, models, says, two
from sqlalchemy.engine import Engine
from test_gateway_process import started

from stillhouse.serve.batch_files import write_files
from stillhouse.serve.batch_records import Batch
from stillhouse.serve.batches import (
    BatchWork,
    LineRow,
    StoredBatches,
    TooManyBatchesError,
    WrongStatusError,
)
from stillhouse.serve.files import FileInfo, FileInUseError, StoredFiles
from stillhouse.serve.tables import BATCHES, open_database

FAR = 1e12


def batch(number: int, tenant: str = "a", **fields: Any) -> Batch:
    values: dict[str, Any] = {
        "id": f"batch_{number}",
        "tenant": tenant,
        "scopes": ("*",),
        "endpoint": "/v1/chat/completions",
        "input_file": "file-1",
        "status": "in_progress",
        "created_at": float(number),
        "expires_at": FAR,
    }
    return Batch(**(values | fields))


def file(number: int = 1, **fields: Any) -> FileInfo:
    values: dict[str, Any] = {"id": f"file-{number}", "tenant": "a", "filename": "in.jsonl"}
    values |= {"purpose": "batch", "bytes": 6, "created_at": float(number), "expires_at": FAR}
    return FileInfo(**(values | fields))


def lapse(engine: Engine) -> None:
    """As if a lease's time had passed."""
    with engine.begin() as connection:
        connection.execute(sa.update(BATCHES).values(lease_until=0.0))


def test_a_file_is_there_once_it_is_whole_and_its_bytes_go_with_it(engine: Engine) -> None:
    files = StoredFiles(engine)
    files.begin(file())
    for seq, data in enumerate((b"ab\0", b"\xff\n")):
        files.append("file-1", seq, data)
    assert files.get("a", "file-1", 0.0) is None
    assert files.used("a") == 6
    files.finish(file(bytes=5))
    assert files.get("a", "file-1", 0.0) == file(bytes=5)
    assert files.get("b", "file-1", 0.0) is None
    assert b"".join(files.parts("file-1")) == b"ab\0\xff\n"
    files.begin(file(2, created_at=time.time()))
    assert [one.id for one in files.listed("a", 0.0)[0]] == ["file-1"]
    assert files.sweep(0.0) == 0
    assert files.sweep(FAR) == 2  # the one has expired, the other was never finished
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM file_parts")).scalar() == 0


def test_a_file_that_a_batch_reads_stays(engine: Engine) -> None:
    files, batches = StoredFiles(engine), StoredBatches(engine)
    files.begin(file())
    files.finish(file())
    batches.create(batch(1), 9)
    with pytest.raises(FileInUseError):
        files.delete("a", "file-1", 0.0)
    assert files.sweep(1e13) == 0
    assert batches.cancel("b", "batch_1", 1.0) is None
    assert batches.cancel("a", "batch_1", 1.0) == batch(1).at("cancelling", 1.0)
    taken = batches.claim()
    assert taken is not None
    assert batches.end("cancelling", taken.at("cancelled", 2.0), [])
    with pytest.raises(WrongStatusError):
        batches.cancel("a", "batch_1", 3.0)
    assert files.delete("a", "file-1", 0.0)
    assert not files.delete("a", "file-1", 0.0)


def test_of_gateways_on_one_database_one_takes_a_batch(engine: Engine) -> None:
    gateways = [StoredBatches(engine) for _ in range(4)]
    for number in range(12):
        gateways[0].create(batch(number, tenant="ab"[number % 2]), 99)

    def take_all(one: StoredBatches) -> list[str]:
        found: list[str] = []
        while (taken := one.claim()) is not None:
            found.append(taken.id)
        return found

    with ThreadPoolExecutor(4) as pool:
        taken = [name for some in pool.map(take_all, gateways) for name in some]
    assert sorted(taken) == sorted(f"batch_{number}" for number in range(12))


def test_tenants_take_turns(engine: Engine) -> None:
    batches = StoredBatches(engine)
    for number in range(4):
        batches.create(batch(number, tenant="a" if number < 3 else "b"), 99)
    order = [batches.claim() for _ in range(4)]
    assert [one and one.id for one in order] == ["batch_0", "batch_3", "batch_1", "batch_2"]
    with pytest.raises(TooManyBatchesError):
        batches.create(batch(9), 3)


def test_a_gateway_that_lost_its_lease_writes_nothing_more(engine: Engine) -> None:
    slow, quick = StoredBatches(engine), StoredBatches(engine)
    slow.create(batch(1), 9)
    assert slow.claim() is not None
    assert quick.claim() is None
    assert slow.add_lines("batch_1", [LineRow(1, True, 2, 3, "one")]) == "in_progress"
    lapse(engine)
    taken = quick.claim()
    assert taken is not None
    assert slow.renew("batch_1") is None
    assert slow.add_lines("batch_1", [LineRow(2, True, 2, 3, "two")]) is None
    assert not slow.advance("in_progress", taken.at("finalizing", 1.0))
    assert not slow.end("in_progress", taken.at("completed", 1.0), [])
    assert quick.answered("batch_1") == {1}
    rows = [LineRow(1, False, 0, 0, "again"), LineRow(2, False, 0, 0, "x")]
    assert quick.add_lines("batch_1", rows) == "in_progress"
    counts = quick.counts(taken)
    assert (counts.completed, counts.failed, counts.prompt_tokens) == (1, 1, 2)
    assert list(quick.lines("batch_1", ok=True)) == ["one"]
    quick.release("batch_1")
    assert slow.claim() is not None


def test_a_cancel_that_comes_between_is_not_overwritten(engine: Engine) -> None:
    batches = StoredBatches(engine)
    batches.create(batch(1), 9)
    taken = batches.claim()
    assert taken is not None
    batches.cancel("a", "batch_1", 1.0)
    assert not batches.advance("in_progress", taken.at("finalizing", 2.0))
    assert batches.renew("batch_1") == "cancelling"


def test_files_appear_and_lines_go_in_one_step(engine: Engine) -> None:
    work, other = BatchWork(engine), StoredBatches(engine)
    work.batches.create(batch(1), 9)
    taken = work.batches.claim()
    assert taken is not None
    long = "x" * 700_000
    rows = [LineRow(number, number != 2, 1, 1, long + str(number)) for number in (3, 1, 2)]
    work.batches.add_lines("batch_1", rows)
    lapse(engine)
    assert other.claim() is not None
    assert not write_files(work, taken, "completed", 30)
    assert work.files.used("a") == 0
    other.release("batch_1")
    again = work.batches.claim()
    assert again == taken
    assert write_files(work, taken, "completed", 30)
    done = work.batches.get("a", "batch_1")
    assert done is not None
    assert done.output_file is not None
    assert done.error_file is not None
    content = b"".join(work.files.parts(done.output_file)).decode()
    assert content == f"{long}1\n{long}3\n"
    info = work.files.get("a", done.output_file, time.time())
    assert info is not None
    assert info.bytes == len(content)
    assert (done.counts.completed, done.counts.failed) == (2, 1)
    assert work.batches.answered("batch_1") == set()
    work.sweep(time.time(), kept_s=-1)
    assert work.batches.get("a", "batch_1") is None


def test_two_gateways_ask_every_line_once(url: str) -> None:
    teacher = Model(says("x"))
    with ExitStack() as stack:
        stack.enter_context(models(teacher))
        raw = {**two(teacher, None), "log": {"url": url}, "batches": {}, "clients": KEYS}
        running = []
        for _ in range(2):
            engine = open_database(url)
            stack.callback(engine.dispose)
            work = BatchWork(engine)
            running.append(stack.enter_context(gateway(raw, batches=work)))
        clients = [stack.enter_context(client_of(one)) for one in running]
        content = [jsonl(*(line(10 * one + n) for n in range(5))) for one in range(6)]
        made = [begun(clients[one % 2], lines) for one, lines in enumerate(content)]
        for one, batch_ in enumerate(made):
            done = ended(clients[(one + 1) % 2], batch_.id)
            assert done.request_counts.completed == 5
            assert len(lines_of(clients[one % 2], done.output_file_id)) == 5
    asked = Counter(body["messages"][0]["content"] for body in teacher.bodies)
    assert set(asked.values()) == {1}
    assert len(asked) == 30


def test_a_killed_gateway_is_followed_by_one_that_asks_the_rest(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gateway.db"
    teacher = Model(says("x"))
    good = teacher.answer

    async def some(request: Any, body: Any) -> Any:
        if len(teacher.bodies) > 6:  # no more answers for the first gateway
            await asyncio.sleep(30)
        return await good(request, body)

    teacher.answer = some
    with models(teacher):
        raw = {
            **two(teacher, None),
            "listen": {"port": 0},
            "log": {"url": url},
            "batches": {"concurrent": 2},
        }
        raw["upstreams"]["big"]["deadlines"] = {"total_s": 60}
        process = started(tmp_path / "gateway.yaml", raw)
        engine = open_database(url)
        work = BatchWork(engine)
        try:
            client = client_at(process)
            made = begun(client, jsonl(*map(line, range(12))))
            ends = time.monotonic() + 20
            while len(work.batches.answered(made.id)) < 6 and time.monotonic() < ends:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=20)
            finished = work.batches.answered(made.id)
            assert len(finished) == 6
            first = [body["messages"][0]["content"] for body in teacher.bodies]
            teacher.bodies.clear()
            teacher.answer = good
            lapse(engine)
            process = started(tmp_path / "gateway.yaml", raw)
            client = client_at(process)
            done = ended(client, made.id)
            out = lines_of(client, done.output_file_id)
        finally:
            process.kill()
            process.communicate()
            engine.dispose()
    second = [body["messages"][0]["content"] for body in teacher.bodies]
    assert done.status == "completed"
    assert [one["custom_id"] for one in out] == [f"c{number}" for number in range(12)]
    assert {f"text {number - 1}" for number in finished}.isdisjoint(second)
    assert len(first) <= 6 + 2
    assert Counter(second).most_common(1)[0][1] == 1


def client_at(process: Any) -> openai.OpenAI:
    port = int(process.stdout.readline().split(":")[-1].split("/")[0])
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=3)
