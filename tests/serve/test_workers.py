"""Several workers behind one port: a killed one breaks off its own answers and nothing else."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml
from aiohttp import web
from gateway_servers import Answer, Model, chunk, models, says, sse, two
from sqlalchemy.engine import Engine
from test_gateway_process import started

from stillhouse.core.errors import RecipeError, StillhouseError
from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import served_since
from stillhouse.serve.tables import open_database
from stillhouse.serve.workers import serve_file, share_of

ASK = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}
STAGES = [{"kind": "shadow"}, {"kind": "canary", "share": 0.05}, {"kind": "full"}]
ADMIN = {"authorization": "Bearer a"}


class Serving(NamedTuple):
    """A supervisor with its workers."""

    process: subprocess.Popen[str]
    port: int
    admin: int

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def worker_of(self, connection: http.client.HTTPConnection) -> psutil.Process:
        """Who serves a connection."""
        mine = connection.sock.getsockname()[1]
        for one in self.workers():
            if any(c.raddr and c.raddr.port == mine for c in one.net_connections("tcp")):
                return one
        raise AssertionError("nobody serves it")

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=60)
        connection.request("GET", path, headers=ADMIN)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def post(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=60)
        connection.request("POST", path, "{}", ADMIN)
        status = connection.getresponse().status
        connection.close()
        return status

    def canary_everywhere(self) -> bool:
        """Whether the second stage is what is told, whichever worker is asked."""
        told = [json.loads(self.get("/state"))["tasks"]["t"]["kind"] for _ in range(10)]
        return set(told) == {"canary"}

    def answered(self) -> int:
        """Requests that all workers have counted."""
        found = re.findall(r"^stillhouse_requests_total\{.*\} (.*)$", self.get("/metrics"), re.M)
        return round(sum(map(float, found)))


@contextmanager
def serving(tmp_path: Path, raw: dict[str, Any]) -> Iterator[Serving]:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    raw = {"listen": {"port": 0, "workers": 2}, "admin": {"port": 0}, "log": {"url": url}, **raw}
    process = started(tmp_path / "gateway.yaml", raw)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line, process.communicate()[1]
        port = int(line.split(":")[-1].split("/")[0])
        admin = int(process.stdout.readline().split(":")[-1])
        yield Serving(process, port, admin)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def until(done: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 120
    while not done():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def asked(serving: Serving, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection


def streams(going_on: Callable[[], Awaitable[object]]) -> Answer:
    """A stream that says a word, and the rest when it may."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return await says("whole")(request, body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(chunk("one ")))
        await going_on()
        await response.write(sse(chunk("two", "stop")) + b"data: [DONE]\n\n")
        return response

    return answer


def states_are_whole(engine: Engine) -> bool:
    """Whether the audit log has one line for each version of the state, and no other."""
    states = StoredStates(engine)
    lines = [line.version for line in states.audit("t")]
    return lines == list(range(1, states.get("t").version + 1))


def test_a_killed_worker_breaks_its_own_streams_alone_and_is_replaced(tmp_path: Path) -> None:
    go_on = threading.Event()
    teacher = Model(streams(lambda: asyncio.to_thread(go_on.wait, 60)))
    raw = two(teacher, Model(says("")), experiment={"stages": STAGES})
    raw["upstreams"]["big"]["deadlines"] = {"between_tokens_s": 60}
    with models(teacher):
        raw["upstreams"]["big"]["base_url"] = teacher.url
        raw["upstreams"]["small"]["base_url"] = teacher.url
        with serving(tmp_path, raw) as gateway:
            assert gateway.post("/tasks/t/approve") == 200
            until(gateway.canary_everywhere, "a worker has not heard of the approval")
            open_ = [asked(gateway, {**ASK, "stream": True}) for _ in range(8)]
            replies = [one.getresponse() for one in open_]
            assert {reply.status for reply in replies} == {200}
            victim = gateway.worker_of(open_[0])
            others = [one for one in gateway.workers() if one != victim]
            assert len(others) == 1
            its_own = [gateway.worker_of(one) == victim for one in open_]
            victim.send_signal(signal.SIGKILL)
            until(lambda: not victim.is_running(), "the victim does not die")
            go_on.set()
            for one, reply, broken in zip(open_, replies, its_own, strict=True):
                if broken:
                    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                        reply.read()
                else:
                    assert reply.read().endswith(b"data: [DONE]\n\n")
                reply.close()
                one.close()
            until(lambda: len(gateway.workers()) == 2, "no worker takes its place")
            assert others[0] in gateway.workers()
            whole = 0
            for _ in range(20):
                connection = asked(gateway, ASK)
                reply = connection.getresponse()
                assert reply.status == 200
                whole += b"whole" in reply.read()
                connection.close()
            assert whole == 20
            complete = 20 + its_own.count(False)
            until(lambda: gateway.answered() >= complete, "a count is missing")
            assert gateway.answered() == complete  # the dead worker had answered nothing
            gateway.process.terminate()
            out, errors = gateway.process.communicate(timeout=60)
    assert gateway.process.returncode == 0
    assert not errors
    assert "ended with signal 9; another starts in 0.1 s" in out
    engine = open_database(f"sqlite:///{tmp_path / 'gateway.db'}")
    assert states_are_whole(engine)
    shown = [one for one in served_since(engine, "t", 0) if one.shadow_of is None]
    assert len(shown) == complete
    engine.dispose()


@pytest.mark.full
def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    teacher = Model(says("big"))
    with models(teacher), serving(tmp_path, two(teacher, None)) as gateway:
        workers = gateway.workers()
        gateway.process.kill()
        gone, alive = psutil.wait_procs(workers, timeout=60)
        assert len(gone) == 2
        assert not alive


def test_workers_need_a_database_and_divide_what_an_upstream_gets() -> None:
    up = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "queue": {"concurrent": 9}}
    raw: dict[str, Any] = {
        "listen": {"workers": 4},
        "upstreams": {"big": up},
        "tasks": {"t": {"teacher": "big", "shadows": 2}},
    }
    with pytest.raises(RecipeError, match=r"listen.workers is 4.* give log.url"):
        parse_as(GatewayFile, raw, "gateway.yaml")
    stored = {"log": {"url": "sqlite:///x.db"}, "batches": {"concurrent": 9, "uploads": 1}}
    file = parse_as(GatewayFile, {**raw, **stored}, "gateway.yaml")
    share = share_of(file)
    queue = share.upstreams["big"].queue
    assert (queue.concurrent, queue.waiting, share.tasks["t"].shadows) == (3, 128, 1)
    assert share.batches is not None
    assert (share.batches.concurrent, share.batches.uploads) == (3, 1)
    assert GatewayFile.model_validate(share.model_dump(mode="json")) == share


@pytest.mark.full
def test_workers_that_cannot_start_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    raw = {
        "listen": {"port": 0, "workers": 2},
        "log": {"url": f"sqlite:///{tmp_path / 'nowhere' / 'gateway.db'}"},
        "upstreams": {"big": up},
        "tasks": {"t": {"teacher": "big"}},
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", "0123456789abcdef")
    said: list[str] = []
    with pytest.raises(StillhouseError, match="unable to open database file"):
        serve_file(path, said.append, lambda _: str)
    assert not said
