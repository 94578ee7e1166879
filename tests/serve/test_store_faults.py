"""A database that restarts, a disk that is full, a gateway that is killed: clients are answered all
the same, what was said to be kept is kept, and no state is torn.
"""

from __future__ import annotations

import http.client
import json
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from gateway_servers import Model, models, says, two
from sqlalchemy.engine import Engine
from test_gateway_process import started

from gateway_stores import RestartedPostgres, new_database
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import outcomes_since, served_since
from stillhouse.serve.tables import open_database

STAGES = [{"kind": "canary", "share": 0.5}, {"kind": "canary", "share": 0.6}, {"kind": "full"}]


class Ports(NamedTuple):
    """Of a gateway process."""

    listen: int
    admin: int
    process: subprocess.Popen[str]


@contextmanager
def serving(path: Path, raw: dict[str, Any], url: str) -> Iterator[Ports]:
    raw = {"listen": {"port": 0}, "admin": {"port": 0}, "log": {"url": url}, **raw}
    process = started(path, raw)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split(":")[-1].split("/")[0])
        yield Ports(port, int(process.stdout.readline().split(":")[-1]), process)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: Any


def post(port: int, path: str, body: Any, **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        return Reply(reply.status, dict(reply.getheaders()), json.loads(reply.read()))
    finally:
        connection.close()


def ask(port: int, user: str) -> Reply:
    messages = [{"role": "user", "content": f"A text of {user}."}]
    return post(port, "/v1/chat/completions", {"model": "t", "messages": messages, "user": user})


def act(port: int, action: str) -> Reply:
    return post(port, f"/tasks/t/{action}", {}, authorization="Bearer a")


def states_are_whole(engine: Engine) -> None:
    """One line of the audit log for each version, and the state is what the last line made."""
    states = StoredStates(engine)
    lines = states.audit("t")
    assert [line.version for line in lines] == list(range(1, states.get("t").version + 1))
    assert lines[-1].decision.to_stage == states.get("t").stage


def until(done: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 120
    while not done():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def postgres() -> Iterator[RestartedPostgres]:
    server = RestartedPostgres()
    yield server
    server.end()


def both(teacher: Model, student: Model) -> dict[str, Any]:
    return two(teacher, student, experiment={"stages": STAGES, "teacher_only": 0.1})


def test_two_gateways_on_one_postgresql_assign_alike_and_outlive_its_restart(
    tmp_path: Path, postgres: RestartedPostgres
) -> None:
    url = new_database(postgres.uri)
    teacher, student = Model(says("big")), Model(says("small"))
    with models(teacher, student):
        raw = both(teacher, student)
        with (
            serving(tmp_path / "one.yaml", raw, url) as one,
            serving(tmp_path / "two.yaml", raw, url) as other,
        ):
            ids = []
            variants: dict[str, set[str]] = {}
            for place in (one, other):
                for number in range(40):
                    got = ask(place.listen, f"user {number}")
                    ids.append(got.headers["x-request-id"])
                    variants.setdefault(f"user {number}", set()).add(
                        got.headers["x-stillhouse-variant"]
                    )
            assert all(len(found) == 1 for found in variants.values())
            assert set.union(*variants.values()) == {"teacher", "student"}

            done: list[int] = []
            together = threading.Barrier(2)

            def approve(port: int) -> None:
                together.wait()
                done.append(act(port, "approve").status)

            both_ = [threading.Thread(target=approve, args=(p.admin,)) for p in (one, other)]
            for thread in both_:
                thread.start()
            for thread in both_:
                thread.join()
            # The later one is refused, unless it had heard of the first and approved what is next.
            assert sorted(done) in ([200, 409], [200, 200])
            states_are_whole(engine := open_database(url))
            version = StoredStates(engine).get("t").version
            assert version == 1 + done.count(200)
            engine.dispose()

            postgres.stop()
            try:
                for place in (one, other):
                    for number in range(10):
                        got = ask(place.listen, f"user {number}")
                        assert got.status == 200
                        ids.append(got.headers["x-request-id"])
                refused = act(one.admin, "rollback")
                assert refused.status == 503
                assert refused.body["error"]["type"] == "server_error"
                said = {"request_id": ids[0], "thumbs": "up"}
                assert post(one.listen, "/v1/feedback", said).status == 503
            finally:
                postgres.start()
            until(lambda: act(one.admin, "rollback").status == 200, "no rollback after the restart")
            assert post(other.listen, "/v1/feedback", said).status == 201
            for place in (one, other):
                ids.append(ask(place.listen, "ann").headers["x-request-id"])
                place.process.send_signal(signal.SIGTERM)
            told = [place.process.communicate(timeout=60) for place in (one, other)]
        assert all("0 dropped, 0 lost" in out and not errors for out, errors in told)
    engine = open_database(url)
    assert sorted(one.id for one in served_since(engine, "t", 0)) == sorted(ids)
    assert len(outcomes_since(engine, "t", 0)) == 1
    states_are_whole(engine)
    assert StoredStates(engine).get("t").version == version + 1
    engine.dispose()


def test_a_full_disk_stops_what_is_kept_and_not_what_is_answered(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher, student = Model(says("big")), Model(says("small"))
    with (
        models(teacher, student),
        serving(tmp_path / "gateway.yaml", both(teacher, student), url) as gateway,
    ):
        ids = [ask(gateway.listen, "before").headers["x-request-id"]]
        said = {"request_id": ids[0], "thumbs": "up"}
        assert post(gateway.listen, "/v1/feedback", said).status == 201
        process = psutil.Process(gateway.process.pid)
        _, most = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (1, most))
        for number in range(30):
            got = ask(gateway.listen, f"user {number}")
            assert got.status == 200
            ids.append(got.headers["x-request-id"])
        for refused in (
            act(gateway.admin, "approve"),
            post(gateway.listen, "/v1/feedback", {**said, "thumbs": "down"}),
        ):
            assert refused.status == 503
            assert refused.body["error"]["type"] == "server_error"
        process.rlimit(resource.RLIMIT_FSIZE, (most, most))
        until(lambda: act(gateway.admin, "approve").status == 200, "no approval with room again")
        gateway.process.send_signal(signal.SIGTERM)
        out, errors = gateway.process.communicate(timeout=60)
    assert "0 dropped, 0 lost" in out
    assert not errors
    engine = open_database(url)
    assert sorted(one.id for one in served_since(engine, "t", 0)) == sorted(ids)
    assert [one.outcome.score for one in outcomes_since(engine, "t", 0)] == [1.0]
    states_are_whole(engine)
    assert StoredStates(engine).get("t").version == 2
    engine.dispose()


def killed_once(tmp_path: Path, url: str, seconds: float) -> None:
    """Ask, give feedback and change the state until the gateway is killed: what was acknowledged is
    there, and nothing is torn."""
    teacher, student = Model(says("big")), Model(says("small"))
    kept: list[str] = []
    versions: list[int] = []
    with (
        models(teacher, student),
        serving(tmp_path / "gateway.yaml", both(teacher, student), url) as gateway,
    ):

        def ask_on(name: str) -> None:
            for number in range(10_000):
                request = ask(gateway.listen, f"{name} {number}").headers["x-request-id"]
                said = {"request_id": request, "thumbs": "up"}
                if post(gateway.listen, "/v1/feedback", said).status == 201:
                    kept.append(request)

        def change_on() -> None:
            for number in range(10_000):
                got = act(gateway.admin, "rollback" if number % 2 else "approve")
                if got.status == 200:
                    versions.append(got.body["version"])

        def until_killed(work: Callable[[], None]) -> None:
            with pytest.raises((OSError, http.client.HTTPException)):
                work()

        working = [
            threading.Thread(target=until_killed, args=(work,))
            for work in (lambda: ask_on("a"), lambda: ask_on("b"), change_on)
        ]
        for thread in working:
            thread.start()
        until(lambda: bool(kept) and bool(versions), "nothing was done")
        time.sleep(seconds)
        gateway.process.kill()
        for thread in working:
            thread.join(60)
    engine = open_database(url)
    served = [one.id for one in served_since(engine, "t", 0)]
    assert set(kept) <= set(served)
    assert len(set(served)) == len(served)
    assert set(kept) <= {one.served.id for one in outcomes_since(engine, "t", 0)}
    states_are_whole(engine)
    assert StoredStates(engine).get("t").version >= max(versions)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()
            assert found == "ok"
    engine.dispose()


def test_a_killed_gateway_has_kept_what_it_said_it_kept(tmp_path: Path) -> None:
    killed_once(tmp_path, f"sqlite:///{tmp_path / 'gateway.db'}", 0.3)


@pytest.mark.full
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.7, 1.3, 2.1])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_gateway_killed_at_any_time_has_kept_what_it_said_it_kept(
    tmp_path: Path, postgres: RestartedPostgres, kind: str, seconds: float
) -> None:
    sqlite = f"sqlite:///{tmp_path / 'gateway.db'}"
    killed_once(tmp_path, sqlite if kind == "sqlite" else new_database(postgres.uri), seconds)
