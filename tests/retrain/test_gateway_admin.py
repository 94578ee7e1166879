"""The admin client against servers that answer, refuse, redirect, hang or talk nonsense.

Against a real gateway it is tested in tests/serve/test_candidate_gateways.py.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from stillhouse.core.errors import UserError
from stillhouse.retrain import gateway_admin
from stillhouse.retrain.gateway_admin import GatewayAdmin, GatewayError, address_of

KEY = "very-secret-key"
STATE = {
    "task": "a/b",
    "version": 4,
    "stage": 0,
    "kind": "shadow",
    "share": 0.0,
    "since": 1.0,
    "killed": False,
    "waiting": False,
    "held": False,
    "student": "small",
    "candidate": "s-1",
    "problems": [],
    "last": {
        "at": 1.0,
        "action": "offer",
        "from_stage": 2,
        "to_stage": 0,
        "reason": "x",
        "by": "admin",
        "student": "s-1",
    },
}


class Heard(NamedTuple):
    method: str
    path: str
    key: str | None
    body: Any


class Server:
    """Says `status`, `body` and `headers` to whatever it is asked."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, json.dumps(STATE).encode(), {}
        self.heard: list[Heard] = []
        self.pause_s = 0.0
        self.url = ""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.loads(raw) if raw else None
            server.heard.append(Heard(self.command, self.path, self.headers["authorization"], body))
            time.sleep(server.pause_s)
            self.send_response(server.status)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(server.body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked has left
                self.wfile.write(server.body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        server.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            made.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


def test_every_call_says_what_the_admin_api_wants(server: Server) -> None:
    admin = GatewayAdmin(server.url + "/", KEY)
    state = admin.offer("a/b", "/srv/new", "s-1", "retrained", version=3)
    assert (state.kind, state.candidate, state.last and state.last.student) == (
        "shadow",
        "s-1",
        "s-1",
    )
    admin.withdraw("a/b", "no")
    admin.reload("a/b", "/srv/new", "s-1")
    assert admin.state("a/b") == state
    admin.experiment("a?b")
    admin.act("a/b", "approve", "go", version=4)
    new = {"path": "/srv/new", "name": "s-1"}
    assert server.heard == [
        Heard(method, path, f"Bearer {KEY}", body)
        for method, path, body in (
            ("POST", "/tasks/a/b/candidate", {**new, "reason": "retrained", "version": 3}),
            ("DELETE", "/tasks/a/b/candidate", {"reason": "no"}),
            ("POST", "/tasks/a/b/reload", {**new, "reason": ""}),
            ("GET", "/tasks/a/b/candidate", None),
            ("GET", "/experiments/a%3Fb", None),
            ("POST", "/tasks/a/b/approve", {"reason": "go", "version": 4}),
            ("GET", "/tasks/a/b/candidate", None),
        )
    ]


def told(server: Server, **more: Any) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        GatewayAdmin(server.url, KEY, **more).state("t")
    text = str(error.value)
    assert "\n" not in text
    assert KEY not in text
    return error.value


def test_what_the_gateway_refuses_is_said_in_one_line(server: Server) -> None:
    server.status = 422
    server.body = json.dumps({"error": {"message": "The student\ncannot be opened"}}).encode()
    error = told(server)
    assert error.status == 422
    assert str(error).endswith("status 422: The student cannot be opened")


def test_no_redirect_is_followed(server: Server) -> None:
    with serving() as elsewhere:
        server.status, server.headers = 307, {"location": elsewhere.url}
        assert told(server).status == 307
        assert elsewhere.heard == []


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"<html>", b'{"task": 1}'])
def test_what_is_no_state_is_an_error(server: Server, body: bytes) -> None:
    server.body = body
    assert told(server)


def test_it_does_not_wait_for_ever(server: Server) -> None:
    server.pause_s = 0.5
    assert "in time" in str(told(server, timeout_s=0.1))
    assert len(server.heard) == 1  # it may have been done: nothing is asked twice


def test_a_port_that_is_closed_is_tried_again_and_then_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    waited: list[float] = []
    monkeypatch.setattr(gateway_admin.time, "sleep", waited.append)
    with pytest.raises(GatewayError, match="refuses connections") as error:
        GatewayAdmin(f"http://127.0.0.1:{port}", KEY).state("t")
    assert error.value.status == 0
    assert waited == [0.5, 1.0, 2.0]


def test_it_reaches_a_gateway_that_starts_meanwhile(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = GatewayAdmin(server.url, KEY)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        good, admin._port = admin._port, taken.getsockname()[1]
    monkeypatch.setattr(gateway_admin.time, "sleep", lambda _: setattr(admin, "_port", good))
    assert admin.state("t").candidate == "s-1"


def test_a_server_that_hangs_up_is_not_asked_again() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        accepted = 0

        def hang_up() -> None:
            nonlocal accepted
            connection, _ = listening.accept()
            accepted += 1
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(GatewayError, match="gave no answer"):
            GatewayAdmin(f"http://127.0.0.1:{listening.getsockname()[1]}", KEY).withdraw("t")
        thread.join()
        assert accepted == 1


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8081", "ftp://x", "http://", "http://x:99999", "http://x:y"]
)
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="gateway"):
        GatewayAdmin(url, KEY)


def test_the_key_is_a_variables() -> None:
    with pytest.raises(UserError, match="variable ADMIN is not set"):
        GatewayAdmin.from_environment("http://x", "ADMIN", {})
    for wrong in ("", "a\nb", "é"):
        with pytest.raises(UserError, match="gateway key"):
            GatewayAdmin("http://x", wrong)
    assert GatewayAdmin.from_environment("http://x", "ADMIN", {"ADMIN": " k \n"})


def test_a_port_of_ipv6_is_an_address_too() -> None:
    assert address_of("127.0.0.1", 8081) == "http://127.0.0.1:8081"
    GatewayAdmin(address_of("::1", 8081), "k")  # is no address else
