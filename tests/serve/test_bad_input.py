"""Bad input against a gateway that stores: a proper 4xx, and not a row more in the database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from gateway_servers import Model, Running, gateway, models, says, two
from test_gateway_http import ASK, Got, send

from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.stored_parts import StoredParts
from stillhouse.serve.tables import METADATA

CHAT = "/v1/chat/completions"
SQL = "' OR 1=1; DROP TABLE calls; --"
DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000


class Stored(NamedTuple):
    """A gateway with everything in a database, and two tenants' keys."""

    running: Running
    parts: StoredParts
    mine: str
    theirs: str
    request: str
    teacher: Model

    def rows(self) -> dict[str, list[Any]]:
        """Every row of every table."""
        with self.parts._engine.connect() as connection:
            return {
                name: sorted(map(repr, connection.execute(sa.select(table)).all()))
                for name, table in METADATA.tables.items()
            }

    def send(self, body: Any, path: str = CHAT, key: str | None = None, **headers: str) -> Got:
        shown = {"authorization": f"Bearer {self.mine if key is None else key}", **headers}
        return send(self.running.url, body, path, shown)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("bad")
    teacher = Model(says("good"))
    with models(teacher):
        raw = two(teacher, None)
        raw["tasks"]["u"] = raw["tasks"]["t"]
        raw |= {"log": {"url": f"sqlite:///{folder}/g.db"}, "keys_in_store": True, "batches": {}}
        parts = StoredParts(
            parse_as(GatewayFile, raw, "test"),
            Pseudonyms(b"0123456789abcdef"),
            lambda _: lambda text: text,
            1.0,
        )
        made = parts.parts
        assert made.key_store is not None
        mine = made.key_store.make("a", ["t", "feedback", "batches"], 1.0)
        theirs = made.key_store.make("b", ["*"], 2.0)
        named = {"log": made.log, "keys": made.keys, "batches": made.batches}
        named |= {"states": made.states, "key_store": made.key_store}
        with gateway(raw, **named) as running:
            first = send(running.url, ASK, headers={"authorization": f"Bearer {mine}"})
            assert first.status == 200
            request = first.headers["x-request-id"]
            ends = time.monotonic() + 10
            while parts._log.counts().written == 0 and time.monotonic() < ends:
                time.sleep(0.01)
            yield Stored(running, parts, mine, theirs, request, teacher)
        parts.close()


def said(**more: Any) -> dict[str, Any]:
    return {**ASK, **more}


MESSAGES: list[tuple[str, Any, int]] = [
    ("no JSON", b"{'model': 't'}", 400),
    ("no object", b'["t"]', 400),
    ("no UTF-8", b"\xff\xfe{}", 400),
    ("nothing", b"", 400),
    ("NaN", b'{"model": "t", "temperature": NaN}', 400),
    ("deep", DEEP, 400),
    ("deep inside", b'{"model":"t","messages":' + DEEP + b"}", 400),
    ("an endless number", b'{"model": ' + b"9" * 10_000 + b"}", 400),
    ("10 MB", b'{"model": "t", "x": "' + b"a" * 10_000_000 + b'"}', 413),
    ("unknown model", said(model="gpt-4"), 404),
    ("a model that the key may not name", said(model="u"), 404),
    ("model of a wrong type", said(model={"t": 1}), 400),
    ("model with a header", said(model="t\r\nx-evil: 1"), 404),
    ("model with SQL", said(model=SQL), 404),
    ("messages of a wrong type", said(messages="hello"), 400),
    ("a message of a wrong type", said(messages=[["user", "hello"]]), 400),
    ("content of a wrong type", said(messages=[{"role": "user", "content": 5}]), 400),
    ("an unknown role", said(messages=[{"role": "root", "content": ""}]), 400),
    ("too many messages", said(messages=ASK["messages"] * 1001), 400),
    ("too many answers", said(n=17), 400),
    ("too many tokens", said(max_tokens=10**9), 400),
    ("a long user", said(user="u" * 600), 400),
    ("stream of a wrong type", said(stream="yes"), 400),
]


@pytest.mark.parametrize(
    ("body", "code"), [case[1:] for case in MESSAGES], ids=[case[0] for case in MESSAGES]
)
def test_a_bad_request_asks_nobody_and_stores_nothing(stored: Stored, body: Any, code: int) -> None:
    before, asked = stored.rows(), len(stored.teacher.bodies)
    got = stored.send(body)
    assert got.status == code
    assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert "x-evil" not in got.headers
    assert got.headers["x-request-id"]
    assert stored.rows() == before
    assert len(stored.teacher.bodies) == asked


KEYS = ["", SQL, "sh-" + "0" * 12 + "-" + "A" * 43, "k" * 10_000, "é", "sh-%s-x", "null", "*"]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
@pytest.mark.parametrize("path", [CHAT, "/v1/feedback", "/v1/files", "/v1/batches"])
def test_a_wrong_key_opens_nothing(stored: Stored, key: str, path: str) -> None:
    before = stored.rows()
    for headers in ({}, {"x-api-key": key}, {"authorization": f"Basic {key}"}):
        shown = {"authorization": f"Bearer {key}"} | headers
        latin = {name: value.encode().decode("latin-1") for name, value in shown.items()}
        got = send(stored.running.url, ASK, path, latin)
        assert (got.status, got.json["error"]["code"]) == (401, "invalid_api_key")
        assert got.headers["www-authenticate"] == "Bearer"
    assert stored.rows() == before


FEEDBACK: list[tuple[str, Any, int]] = [
    ("NaN", b'{"request_id": "%s", "score": NaN}', 400),
    ("infinity", b'{"request_id": "%s", "score": 1e999}', 400),
    ("minus infinity", b'{"request_id": "%s", "score": -Infinity}', 400),
    ("too much", b'{"request_id": "%s", "score": 1.01}', 400),
    ("a text", b'{"request_id": "%s", "score": "1"}', 400),
    ("true", b'{"request_id": "%s", "score": true}', 400),
    ("nothing said", b'{"request_id": "%s"}', 400),
    ("both", b'{"request_id": "%s", "score": 1, "thumbs": "up"}', 400),
    ("sideways", b'{"request_id": "%s", "thumbs": "sideways"}', 400),
    ("a surprise", b'{"request_id": "%s", "thumbs": "up", "tenant": "b"}', 400),
    ("corrected of a wrong type", b'{"request_id": "%s", "corrected": ["x"]}', 400),
    ("detail of a wrong type", b'{"request_id": "%s", "thumbs": "up", "detail": 5}', 400),
    ("deep detail", b'{"request_id": "%s", "thumbs": "up", "detail": ' + DEEP + b"}", 400),
    ("no JSON", b"{", 400),
    ("10 MB", b'{"request_id": "%s", "corrected": "' + b"a" * 10_000_000 + b'"}', 413),
    ("an unknown request", b'{"request_id": "req_0", "thumbs": "up"}', 404),
    ("SQL", b'{"request_id": "\' OR 1=1 --", "thumbs": "up"}', 404),
    ("NUL", b'{"request_id": "a\\u0000b", "thumbs": "up"}', 404),
    ("half a character", b'{"request_id": "\\ud800", "thumbs": "up"}', 400),
    ("no request", b'{"request_id": 7, "thumbs": "up"}', 400),
    ("a long request", b'{"request_id": "' + b"r" * 200 + b'", "thumbs": "up"}', 400),
]


@pytest.mark.parametrize(
    ("raw", "code"), [case[1:] for case in FEEDBACK], ids=[case[0] for case in FEEDBACK]
)
def test_bad_feedback_is_refused_and_not_stored(stored: Stored, raw: bytes, code: int) -> None:
    before = stored.rows()
    got = stored.send(raw.replace(b"%s", stored.request.encode()), "/v1/feedback")
    assert got.status == code
    assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert stored.rows() == before


def test_feedback_by_another_tenant_looks_like_feedback_for_nothing(stored: Stored) -> None:
    before = stored.rows()
    foreign = {"request_id": stored.request, "thumbs": "down"}
    got = stored.send(foreign, "/v1/feedback", stored.theirs)
    nothing = stored.send({**foreign, "request_id": "req_0"}, "/v1/feedback", stored.theirs)
    assert (got.status, got.body) == (nothing.status, nothing.body)
    assert got.status == 404
    assert stored.rows() == before
    assert stored.send(foreign, "/v1/feedback").status == 201
    assert len(stored.rows()["outcomes"]) == 1


def test_a_key_that_was_revoked_opens_nothing(stored: Stored) -> None:
    store = stored.parts.parts.key_store
    assert store is not None
    key = store.make("c", ["*"], 3.0)
    assert stored.send(ASK, key=key).status == 200
    assert store.revoke(key.split("-")[1], 4.0)
    assert stored.send(ASK, key=key).status == 401


def test_headers_cannot_carry_others(stored: Stored) -> None:
    named = {"x-stillhouse-user": "a" * 600, "x-stillhouse-conversation": "c"}
    assert stored.send(ASK, **named).status == 400
    got = stored.send(ASK, **{"x-stillhouse-user": "\xe9\t'; --", "x-request-id": "mine"})
    assert got.status == 200
    assert got.headers["x-request-id"] != "mine"
    sent = stored.teacher.headers[-1]
    assert sent["x-request-id"] == got.headers["x-request-id"]
    assert not any("stillhouse" in name for name in sent)
    assert json.dumps(sent).count("é") == 0
