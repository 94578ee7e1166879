"""Uploads: forms of every wrong kind, limits, clients that leave; nothing is left behind."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import sqlalchemy as sa
from batch_gateways import batching, client_of, jsonl, line
from gateway_servers import Model, Running, gateway, models, says, two
from hypothesis import given
from hypothesis import strategies as st
from test_gateway_http import Got, send

from stillhouse.serve.batch_lines import BadLineError, asked, split_lines
from stillhouse.serve.batches import BatchWork
from stillhouse.serve.files import PART_BYTES

KEY = {"authorization": "Bearer key-a"}
MULTIPART = "multipart/form-data; boundary=XX"


def form(*parts: tuple[str, bytes], end: bytes = b"--XX--\r\n") -> bytes:
    """A form of (disposition, content)."""
    found = b""
    for disposition, content in parts:
        head = f"--XX\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
        found += head.encode() + content + b"\r\n"
    return found + end


FILE = ('name="file"; filename="a.jsonl"', b"{}\n")
PURPOSE = ('name="purpose"', b"batch")


def posted(running: Running, body: bytes, kind: str = MULTIPART) -> Got:
    return send(running.url, body, "/v1/files", {**KEY, "content-type": kind})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, BatchWork]]:
    teacher = Model(says("x"))
    with models(teacher):
        folder = tmp_path_factory.mktemp("uploads")
        section = {"file_bytes": 3_000_000, "tenant_bytes": 7_000_000, "uploads": 2}
        with batching(folder, two(teacher, None), **section) as found:
            yield found


def rows(work: BatchWork) -> int:
    with work.files._engine.connect() as connection:
        return sum(
            connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in ("files", "file_parts")
        )


BAD: list[tuple[bytes, str, int, str | None]] = [
    (b"", MULTIPART, 400, "invalid_form"),
    (b"{}", "application/json", 400, "invalid_form"),
    (form(FILE, PURPOSE), "multipart/form-data", 400, "invalid_form"),
    (form(FILE, PURPOSE), "multipart/form-data; boundary=" + "b" * 300, 400, "invalid_form"),
    (form(FILE, PURPOSE), "multipart/form-data; boundary=YY", 400, "invalid_form"),
    (b"no form at all", MULTIPART, 400, "invalid_form"),
    (form(FILE, PURPOSE, end=b""), MULTIPART, 400, "invalid_form"),
    (form(PURPOSE), MULTIPART, 400, None),
    (form(FILE), MULTIPART, 400, "invalid_value"),
    (form(FILE, ('name="purpose"', b"vision")), MULTIPART, 400, "invalid_value"),
    (form(FILE, ('name="purpose"', b"\xff")), MULTIPART, 400, "invalid_value"),
    (form(FILE, FILE, PURPOSE), MULTIPART, 400, "invalid_value"),
    (form(FILE, PURPOSE, PURPOSE), MULTIPART, 400, "unknown_parameter"),
    (form(FILE, ('name="path"', b"/etc/passwd"), PURPOSE), MULTIPART, 400, "unknown_parameter"),
    (form(('name="file"', b"x"), PURPOSE), MULTIPART, 400, "unknown_parameter"),
    (form(('name="file"; filename="a"', b""), PURPOSE), MULTIPART, 400, None),
    (form(('name="purpose"', b"b" * 2000), FILE), MULTIPART, 400, None),
    (form((f'name="{"n" * 9000}"', b"x"), FILE), MULTIPART, 400, "invalid_form"),
    (
        form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"7200")),
        MULTIPART,
        400,
        "invalid_value",
    ),
    (
        form(
            FILE,
            PURPOSE,
            ('name="expires_after[anchor]"', b"created_at"),
            ('name="expires_after[seconds]"', b"1"),
        ),
        MULTIPART,
        400,
        "invalid_value",
    ),
    (form((FILE[0], b"x" * 3_000_001), PURPOSE), MULTIPART, 413, "file_too_long"),
    (form((FILE[0], b"x" * 3_100_000), PURPOSE), MULTIPART, 413, "file_too_long"),
]


def test_a_form_that_is_none_is_refused_and_leaves_nothing(
    served: tuple[Running, BatchWork],
) -> None:
    running, work = served
    before = rows(work)
    for body, kind, code, named in BAD:
        got = posted(running, body, kind)
        assert (got.status, got.json["error"]["code"]) == (code, named), body[:90]
        assert set(got.json["error"]) == {"message", "type", "param", "code"}
    assert rows(work) == before


def test_a_file_comes_back_as_it_was_sent(served: tuple[Running, BatchWork]) -> None:
    running, _ = served
    content = bytes(range(256)) * 9000  # more than two parts; boundaries within it
    content += b"\r\n--X\r\n--XX"[:9]
    with client_of(running) as client:
        made = client.files.create(
            file=("../../etc/pass\nwd\u0000.jsonl", content),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert len(content) > 2 * PART_BYTES
        assert made.bytes == len(content)
        assert made.filename == "pass%0Awd%00.jsonl"  # as the client writes it
        assert made.expires_at == pytest.approx(made.created_at + 7200, abs=1)
        assert client.files.content(made.id).content == content
        assert client.files.delete(made.id).deleted
        raw = posted(running, form(('name="file"; filename="../a/ev\x01il"', b"x"), PURPOSE))
        assert raw.json["filename"] == "evil"
        assert client.files.delete(raw.json["id"]).deleted


def test_what_a_tenant_stores_is_bounded(served: tuple[Running, BatchWork]) -> None:
    running, work = served
    with client_of(running) as a, client_of(running, "key-b") as b:
        made = [a.files.create(file=("a", b"x" * 2_400_000), purpose="batch") for _ in range(2)]
        with pytest.raises(openai.APIStatusError) as full:
            a.files.create(file=("a", b"x" * 2_400_000), purpose="batch")
        assert (full.value.status_code, full.value.code) == (413, "storage_full")
        assert b.files.create(file=("a", b"x"), purpose="batch").bytes == 1
        for one in made:
            a.files.delete(one.id)
    assert work.files.used("a") == 0


def opened(running: Running, head: str) -> socket.socket:
    parts = urlsplit(running.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)
    request = "POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer key-a\r\n"
    connection.sendall((request + f"content-type: {MULTIPART}\r\n{head}\r\n").encode())
    return connection


def test_a_client_that_leaves_in_the_middle_leaves_nothing_and_gives_its_place_back(
    served: tuple[Running, BatchWork],
) -> None:
    running, work = served
    before = rows(work)
    sockets = [opened(running, "content-length: 2000000\r\n") for _ in range(2)]
    for one in sockets:
        one.sendall(form(FILE, end=b"")[:-2] + b"x" * 1_200_000)
    ends = time.monotonic() + 5
    while rows(work) < before + 4 and time.monotonic() < ends:
        time.sleep(0.02)
    third = posted(running, form(FILE, PURPOSE))
    assert (third.status, third.headers["retry-after"]) == (429, "5")
    for one in sockets:
        one.close()
    while rows(work) > before and time.monotonic() < ends:
        time.sleep(0.02)
    assert rows(work) == before
    good = posted(running, form(FILE, PURPOSE))
    assert good.status == 200


def test_a_body_without_end_is_cut_off(served: tuple[Running, BatchWork]) -> None:
    running, work = served
    before = rows(work)
    connection = opened(running, "transfer-encoding: chunked\r\n")
    whole = form(FILE, PURPOSE)
    chunk = b"%x\r\n" % len(whole) + whole + b"\r\n"
    filler = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    try:
        connection.sendall(chunk)
        for _ in range(60):
            connection.sendall(filler)
    except OSError:
        pass
    reply = http.client.HTTPResponse(connection)
    try:
        reply.begin()
        assert reply.status == 413
    except OSError:  # cut off while it was still sending
        pass
    connection.close()
    ends = time.monotonic() + 5
    while rows(work) > before and time.monotonic() < ends:
        time.sleep(0.02)
    assert rows(work) == before


def test_without_a_store_the_paths_say_what_is_missing() -> None:
    teacher = Model(says("x"))
    with models(teacher), gateway(two(teacher, None)) as running:
        for method, path in (
            ("POST", "/v1/files"),
            ("GET", "/v1/files/file-1/content"),
            ("GET", "/v1/batches"),
            ("POST", "/v1/batches/b/cancel"),
        ):
            got = send(running.url, b"", path, method=method)
            assert (got.status, got.json["error"]["code"]) == (404, "no_batches")
            assert "log.url" in got.json["error"]["message"]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_lines_are_the_same_however_a_file_is_cut(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(one for one in cuts if one < len(data))})
    parts = [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
    whole = data.removeprefix(b"\xef\xbb\xbf")
    expected = [
        (number, one.strip()) for number, one in enumerate(whole.split(b"\n"), 1) if one.strip()
    ]
    if data.startswith(b"\xef"):  # the mark at the start comes whole: parts are long
        parts = [data]
    assert list(split_lines([part for part in parts if part], 1000)) == expected


FIELDS = st.sampled_from(["custom_id", "method", "url", "body", "x"])
VALUES = st.sampled_from(["c", "POST", "/v1/chat/completions", {}, [], None, 1, True, ""])


@given(
    st.binary(max_size=200)
    | st.builds(lambda one: json.dumps(one).encode(), st.dictionaries(FIELDS, VALUES))
)
def test_any_line_is_a_request_or_says_what_is_wrong(raw: bytes) -> None:
    found: Any = outcome(raw)
    if isinstance(found, BadLineError):
        assert found.error.line == 7
        assert found.error.code
    else:
        assert isinstance(found.body, dict)


def outcome(raw: bytes) -> Any:
    try:
        return asked(7, raw, "/v1/chat/completions", 20)
    except BadLineError as bad:
        return bad


def test_a_line_is_read_as_openai_writes_it() -> None:
    found = asked(3, jsonl(line(3)).strip(), "/v1/chat/completions", 20)
    assert (found.number, found.custom_id, found.body["model"]) == (3, "c3", "t")
    with pytest.raises(BadLineError, match="deeper"):
        asked(1, b'{"body":' + b"[" * 40 + b"]" * 40 + b"}", "/v1/embeddings", 20)
