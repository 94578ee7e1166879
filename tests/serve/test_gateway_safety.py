"""The gateway against hostile clients, broken upstreams and its own admin's mistakes."""

from __future__ import annotations

import hmac
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web
from gateway_servers import (
    ADMIN,
    SHADOW,
    Model,
    Running,
    chunk,
    gateway,
    hang,
    models,
    says,
    sse,
    two,
)
from test_gateway_http import ASK, send, start
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError, one_line
from stillhouse.serve import server
from stillhouse.serve.connections import Connection
from stillhouse.serve.gateway_file import load_gateway, secrets_of
from stillhouse.serve.in_memory import MemoryLog
from stillhouse.serve.records import Assignment
from stillhouse.serve.tables import StoreError


@contextmanager
def lone(**more: Any) -> Iterator[tuple[Running, Model]]:
    """A gateway before one model."""
    teacher = Model(says("good"))
    with models(teacher), gateway({**two(teacher, None), **more}) as running:
        yield running, teacher


def raw_socket(running: Running, receive_bytes: int | None = None) -> socket.socket:
    parts = urlsplit(running.url)
    made = socket.socket()
    if receive_bytes is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    made.settimeout(10)
    made.connect((parts.hostname or "", parts.port or 0))
    return made


def ended(connection: socket.socket) -> bytes:
    """All that comes until the connection ends, however it ends."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionError:
        pass
    connection.close()
    return found


def test_a_head_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_s", 0.2)
    with lone() as (running, _):
        for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x"):
            silent = raw_socket(running)
            silent.sendall(begun)
            assert ended(silent) == b""
        assert send(running.url, ASK).status == 200


def test_an_idle_connection_is_kept_longer_than_clients_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a request that is sent just as the server closes is lost."""
    assert server.KEEP_S > 60  # of load balancers; OpenAI's client has 5
    monkeypatch.setattr(server, "KEEP_S", 1)
    with lone() as (running, _):
        idle = raw_socket(running)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        began = time.monotonic()
        assert b"200 OK" in ended(idle)
        assert time.monotonic() - began >= 0.9


def test_a_head_too_long_is_cut_off() -> None:
    with lone() as (running, teacher):
        long = raw_socket(running)
        try:
            long.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")
            for number in range(80):
                long.sendall(b"x-%d: " % number + b"y" * 4096 + b"\r\n")
                time.sleep(0.002)
            long.sendall(b"\r\n")
        except OSError:
            pass
        assert b"200" not in ended(long)
        assert not teacher.bodies


def test_connections_are_bounded() -> None:
    with lone(limits={"connections": 2}) as (running, _):
        held = [raw_socket(running) for _ in range(2)]
        time.sleep(0.1)
        assert ended(raw_socket(running)) == b""
        held[0].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in ended(held[0])
        held[1].close()


def test_a_client_that_reads_nothing_is_cut_off_and_upstream_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "stall_s", 0.3)

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(1000):
            await response.write(sse(chunk("x" * 50_000)))
        return response

    teacher = Model(endless)
    with models(teacher):
        raw = {**two(teacher, None), "limits": {"answer_bytes": 10**9}}
        raw["upstreams"]["big"]["deadlines"] = {"between_tokens_s": 60, "total_s": 60}
        with gateway(raw) as running:
            idle = raw_socket(running, receive_bytes=4096)
            body = json.dumps({**ASK, "stream": True}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            idle.sendall(head.encode() + body)
            ((_, served),) = running.wait_for(1)
            idle.close()
    assert served.status == 499


def test_what_is_no_http_is_refused_in_openais_shape() -> None:
    with lone() as (running, teacher):
        for raw in (
            b"nonsense\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-stillhouse-user: a\0b\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n"
            b"transfer-encoding: chunked\r\n\r\n",
        ):
            connection = raw_socket(running)
            connection.sendall(raw)
            found = ended(connection)
            assert found.startswith(b"HTTP/1.1 400"), raw
            assert set(json.loads(found.partition(b"\r\n\r\n")[2])["error"]) == {
                "message",
                "type",
                "param",
                "code",
            }
        assert not teacher.bodies


def test_without_keys_no_page_of_another_site_reaches_the_port() -> None:
    with lone() as (running, teacher):
        for headers in (
            {"host": "evil.example:8080"},
            {"host": "127.0.0.1.evil.example"},
            {"host": "[::1"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://203.0.113.9"},
        ):
            got = send(running.url, ASK, headers=headers)
            assert (got.status, got.json["error"]["code"]) == (403, "foreign_name"), headers
            assert send(running.url, path="/v1/models", headers=headers, method="GET").status == 403
        assert not teacher.bodies
        for headers in (
            {"host": "localhost:8080"},
            {"host": "[::1]:8080"},
            {"host": "192.168.0.7", "origin": "http://localhost:3000"},
            {"origin": "http://127.0.0.1:3000"},
        ):
            assert send(running.url, ASK, headers=headers).status == 200, headers
    key = [{"tenant": "a", "sha256": sha256(b"key-a").hexdigest()}]
    with lone(clients=key) as (running, _):
        named = {"authorization": "Bearer key-a", "host": "models.example", "origin": "https://x.y"}
        assert send(running.url, ASK, headers=named).status == 200


def test_requests_in_work_are_bounded() -> None:
    teacher = Model(hang)
    with (
        models(teacher),
        gateway({**two(teacher, None), "limits": {"open_requests": 1}}) as running,
    ):
        first = start(running)
        ends = time.monotonic() + 5
        while not teacher.bodies and time.monotonic() < ends:
            time.sleep(0.01)
        second = send(running.url, ASK)
        assert (second.status, second.headers["retry-after"]) == (503, "1")
        assert second.json["error"]["code"] == "busy"
        first.close()


def test_a_wait_for_a_place_ends_with_the_requests_own_time() -> None:
    teacher = Model(hang)
    with models(teacher):
        raw = two(teacher, None)
        raw["upstreams"]["big"]["queue"] = {"concurrent": 1, "waiting": 9, "wait_s": 600}
        raw["upstreams"]["big"]["deadlines"] = {"total_s": 0.5}
        with gateway(raw) as running:
            first = start(running)
            time.sleep(0.2)
            second = send(running.url, ASK)  # gives up after ten seconds
            assert second.status in (503, 504)
            first.close()


def test_a_server_that_takes_no_connection_is_given_up_in_time() -> None:
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    deaf.listen(0)
    fill = []
    for _ in range(3):  # the kernel answers no more than these
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(deaf.getsockname())
        fill.append(one)
    teacher = Model(says("x"))
    teacher.url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
    raw = two(teacher, None)
    raw["upstreams"]["big"]["deadlines"] = {"connect_s": 0.2, "total_s": 300}
    raw["upstreams"]["big"]["retry"] = {"attempts": 1}
    with gateway(raw) as running:
        got = send(running.url, ASK)
    assert (got.status, got.json["error"]["code"]) == (504, "connect_deadline")
    for one in (*fill, deaf):
        one.close()


def test_shadow_calls_hold_up_no_shutdown() -> None:
    teacher, student = Model(says("big")), Model(hang)
    with models(teacher, student):
        raw = two(teacher, student, **SHADOW)
        raw["upstreams"]["small"]["deadlines"] = {"total_s": 300}
        raw["listen"] = {"port": 0, "drain_s": 0.3}
        with gateway(raw) as running:
            assert send(running.url, ASK).status == 200
            ends = time.monotonic() + 5
            while not student.bodies and time.monotonic() < ends:
                time.sleep(0.01)
        # Its end is waited for, for twenty seconds at most.


def test_the_admins_paths_are_on_the_admins_port_alone() -> None:
    with lone() as (running, _):
        key = {"authorization": f"Bearer {ADMIN}"}
        for method, path in (
            ("GET", "/state"),
            ("GET", "/metrics"),
            ("GET", "/keys"),
            ("POST", "/tasks/t/kill"),
            ("GET", "/batches"),
        ):
            assert send(running.url, b"", path, key, method).status == 404, path
        assert send(running.admin, ASK, headers=key).status == 404
        for wrong in ("", "Bearer ", "Bearer wrong", f"Bearer {ADMIN}x", "Bearer ' OR 1=1 --"):
            got = send(running.admin, path="/state", headers={"authorization": wrong}, method="GET")
            assert got.status == 401, wrong


def test_keys_are_compared_in_constant_time_and_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def spy(a: Any, b: Any) -> bool:
        compared.append(len(a))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    with lone(clients=[{"tenant": n, "sha256": sha256(n.encode()).hexdigest()} for n in "abc"]) as (
        running,
        _,
    ):
        for key in ("a", "c", "nobody", "' OR '1'='1"):
            compared.clear()
            send(running.url, ASK, headers={"authorization": f"Bearer {key}"})
            assert compared == [64, 64, 64], key
        compared.clear()
        send(running.admin, path="/state", headers={"authorization": "Bearer x"}, method="GET")
        assert compared == [1]


class DownLog(MemoryLog):
    """A log whose database is away."""

    def owner(self, request: str) -> str | None:
        raise StoreError("postgresql://me:hunter2@db/x: is away")


class WrongAssigner:
    """A bug."""

    def assign(self, *_: Any) -> Assignment:
        raise RuntimeError("sk-of-big")


def test_what_fails_inside_is_an_error_of_openais_shape_without_its_inside(
    capfd: pytest.CaptureFixture[str],
) -> None:
    teacher = Model(says("x"))
    said = {"request_id": "r", "thumbs": "up"}
    with models(teacher):
        with gateway(two(teacher, None), log=DownLog()) as running:
            got = send(running.url, said, "/v1/feedback")
        assert got.status == 503
        assert "retry-after" in got.headers
        assert b"hunter2" not in got.body
        with gateway(two(teacher, None), assigner=WrongAssigner()) as running:
            broken = send(running.url, ASK)
    assert broken.status == 500
    assert broken.json["error"]["type"] == "server_error"
    assert b"sk-of-big" not in broken.body
    assert "hunter2" not in capfd.readouterr().err


FILE = {
    "upstreams": {"big": {"base_url": "http://x/v1", "model": "m"}},
    "tasks": {"t": {"teacher": "big"}},
}
SECRET = "sk-proj-hunter2hunter2"


@pytest.mark.parametrize(
    "changes",
    [
        {"clients": [{"tenant": "a", "sha256": SECRET}]},
        {"clients": [{"tenant": "a", "sha256": [SECRET]}]},
        {"log": f"postgresql://me:{SECRET}@db/x"},
        {"log": {"url": [f"postgresql://me:{SECRET}@db/x"]}},
        {"log": {"url": "sqlite:///x", "queue": f"postgresql://me:{SECRET}@db/x"}},
        {"admin": {"key_env": [SECRET]}},
        {"upstreams": {"big": {"base_url": f"http://a:{SECRET}@x", "model": "m"}}},
        {"upstreams": {"big": {"base_url": "http://x", "model": "m", "api_key_env": [SECRET]}}},
    ],
)
def test_a_mistake_in_the_file_shows_no_secret(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_gateway(path)
    assert SECRET not in str(caught.value)


def test_a_key_in_the_place_of_its_variables_name_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    ups = {"big": {**FILE["upstreams"]["big"], "api_key_env": SECRET}}
    for changes in ({"upstreams": ups}, {"admin": {"key_env": SECRET}}):
        path.write_text(yaml.safe_dump({**FILE, **changes}), encoding="utf-8")
        with pytest.raises(UserError, match="name of a variable") as caught:
            secrets_of(load_gateway(path), {})
        assert SECRET not in str(caught.value)
    assert "hunter2" not in one_line("f", "p", "postgresql://a:hunter2@h/x?y=1")
    assert "hunter2" not in one_line("f", "p", {"url": "postgresql://a:hunter2@h"})


def test_an_admin_port_open_to_others_needs_a_key_that_nobody_guesses(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**FILE, "admin": {"host": "0.0.0.0"}}), encoding="utf-8")
    file = load_gateway(path)
    with pytest.raises(UserError, match="shorter than 16"):
        secrets_of(file, {"STILLHOUSE_ADMIN_KEY": "short"})
    assert secrets_of(file, {"STILLHOUSE_ADMIN_KEY": "x" * 16})[""] == "x" * 16


def test_a_tenant_that_could_be_taken_for_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    client = {"tenant": "a\nb", "sha256": "0" * 64}
    path.write_text(yaml.safe_dump({**FILE, "clients": [client]}), encoding="utf-8")
    with pytest.raises(RecipeError, match="printable"):
        load_gateway(path)


@pytest.mark.parametrize("key", ["schlüssel-0123456789", "\udcff" * 16, "a b\u2028" * 8])
def test_an_admin_key_that_no_header_may_hold_is_refused_at_the_start(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**FILE, "admin": {"port": 0}}), encoding="utf-8")
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", key)
    told = CliRunner().invoke(app, ["serve", str(path)])
    assert isinstance(told.exception, UserError)
    assert "STILLHOUSE_ADMIN_KEY holds what no key may hold" in str(told.exception)
    assert key not in str(told.exception)


def test_a_header_that_is_no_ascii_is_nobodys_key() -> None:
    teacher = Model(says("good"))
    client = {"tenant": "shop", "sha256": sha256(b"k").hexdigest()}
    with models(teacher), gateway({**two(teacher, None), "clients": [client]}) as running:
        for value in (b"Bearer \xff\xfe\x80", "Bearer schlüssel".encode(), b"\xe9", b""):
            for url in (
                *(running.admin + path for path in ("/state", "/tasks/t/candidate", "/keys")),
                running.url + "/v1/models",
            ):
                parts = urlsplit(url)
                connection = http.client.HTTPConnection(parts.netloc, timeout=10)
                connection.putrequest("GET", parts.path)
                connection.putheader("Authorization", value)
                connection.endheaders()
                assert connection.getresponse().status == 401, (value, url)
                connection.close()
