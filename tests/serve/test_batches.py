"""Files and batches through a real gateway: the official client, tenants, limits, ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from aiohttp import web
from batch_gateways import ASK, batching, begun, client_of, ended, jsonl, line, lines_of
from gateway_servers import ADMIN, FULL, Model, hang, models, says, status, two
from test_gateway_http import send

from stillhouse.serve.guards import Slots

KEY_A = {"authorization": "Bearer key-a"}


def test_a_batch_is_answered_by_the_current_variant_and_logged_like_live_requests(
    tmp_path: Path,
) -> None:
    teacher, student = Model(says("big")), Model(says("small"))
    content = jsonl(line(1, user="ann"), line(2), line(3, n=0))
    with models(teacher, student):
        raw = two(teacher, student, **FULL)
        with batching(tmp_path, raw) as (running, _), client_of(running) as client:
            made = begun(client, content)
            assert (made.status, made.object, made.endpoint) == (
                "validating",
                "batch",
                "/v1/chat/completions",
            )
            done = ended(client, made.id)
            assert done.status == "completed"
            assert done.model == "t"
            assert done.metadata == {"why": "labels"}
            counts = done.request_counts
            assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
            assert done.usage.total_tokens == 24
            assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
            good, bad = (lines_of(client, one) for one in (done.output_file_id, done.error_file_id))
            files = {one.id: one for one in client.files.list()}
            listed = client.batches.list().data
            logged = running.wait_for(2)
    assert [one["custom_id"] for one in good] == ["c1", "c2"]
    first = good[0]["response"]
    assert (first["status_code"], first["variant"], good[0]["error"]) == (200, "student", None)
    assert openai.types.chat.ChatCompletion.model_validate(first["body"])
    assert first["body"]["choices"][0]["message"]["content"] == "small"
    assert bad[0]["response"]["status_code"] == 400
    assert bad[0]["response"]["body"]["error"]["param"] == "n"
    assert {one["id"].startswith("batch_req_") for one in good + bad} == {True}
    assert not teacher.bodies
    assert {body["messages"][0]["content"] for body in student.bodies} == {"text 1", "text 2"}
    by_id = {served.id: (call, served) for call, served in logged}
    assert set(by_id) == {one["response"]["request_id"] for one in good}
    assert {served.tenant for _, served in logged} == {"a"}
    assert {call.user for call, _ in logged} == {"ann", None}
    assert [one.id for one in listed] == [made.id]
    out = files[done.output_file_id]
    assert (out.purpose, out.bytes) == ("batch_output", len(jsonl_size(good)))
    assert out.expires_at is not None
    assert files[made.input_file_id].bytes == len(content)


def jsonl_size(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in lines)


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        ("/v1/completions", {"model": "t", "prompt": "a"}, "/v1/completions"),
        ("/v1/embeddings", {"model": "t", "input": ["a"]}, "/v1/embeddings"),
    ],
)
def test_the_older_endpoints_are_batched_too(
    tmp_path: Path, endpoint: str, body: dict[str, Any], path: str
) -> None:
    teacher = Model(says("x"))
    content = jsonl({"custom_id": "c", "method": "POST", "url": endpoint, "body": body})
    with (
        models(teacher),
        batching(tmp_path, two(teacher, None)) as (running, _),
        client_of(running) as client,
    ):
        done = ended(client, begun(client, content, endpoint).id)
        assert len(lines_of(client, done.output_file_id)) == 1
    assert teacher.paths == [path]


FAULTS: list[tuple[bytes, str, str | None, int | None]] = [
    (b"{", "invalid_json_line", None, 1),
    (b"\n\n[1]\n", "invalid_json_line", None, 3),
    (b"\xff\xfe\n", "invalid_json_line", None, 1),
    (b"\n \n", "empty_file", None, None),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "invalid_json_line", None, 1),
    (jsonl(line(1), {**line(2), "custom_id": 7}), "invalid_custom_id", "custom_id", 2),
    (jsonl(line(1), line(1)), "duplicate_custom_id", "custom_id", 2),
    (jsonl({**line(1), "method": "GET"}), "invalid_method", "method", 1),
    (jsonl({**line(1), "url": "http://169.254.169.254/"}), "invalid_url", "url", 1),
    (jsonl({**line(1), "body": "x"}), "missing_required_parameter", "body", 1),
    (jsonl(line(1, model="other")), "model_not_found", "body.model", 1),
    (jsonl(line(1, model=["t"])), "model_not_found", "body.model", 1),
    (jsonl(line(1, stream=True)), "stream_not_supported", "body.stream", 1),
    (jsonl(*map(line, range(4))), "too_many_requests", None, None),
    (jsonl(line(1, x="y" * 80_000)), "line_too_long", None, 1),
]


def test_a_file_with_a_fault_fails_the_batch_and_asks_nobody(tmp_path: Path) -> None:
    teacher = Model(says("x"))
    with models(teacher):
        raw = {**two(teacher, None), "limits": {"body_bytes": 70_000}}
        with batching(tmp_path, raw, requests=3) as (running, _), client_of(running) as client:
            for content, code, param, number in FAULTS:
                done = ended(client, begun(client, content).id)
                assert done.status == "failed", content[:60]
                [found] = done.errors.data
                assert (found.code, found.param, found.line) == (code, param, number)
                assert done.output_file_id is None
            many = ended(client, begun(client, b"{\n" * 2).id)
            assert len(many.errors.data) == 2
    assert not teacher.bodies


def test_files_are_a_tenants_own(tmp_path: Path) -> None:
    teacher = Model(hang)
    with models(teacher), batching(tmp_path, two(teacher, None)) as (running, work):
        a, b, narrow = (client_of(running, f"key-{one}") for one in "abt")
        with a, b, narrow:
            made = begun(a, jsonl(line(1)))
            name = made.input_file_id
            for refused in (
                lambda: b.files.retrieve(name),
                lambda: b.files.content(name),
                lambda: b.files.delete(name),
                lambda: b.batches.retrieve(made.id),
                lambda: b.batches.cancel(made.id),
                lambda: a.files.retrieve("file-nothing"),
                lambda: a.files.retrieve("'; DROP TABLE files; --"),
                lambda: a.files.retrieve("\0"),
                lambda: a.batches.retrieve("\udcff\0".encode("utf-8", "replace").decode()),
            ):
                with pytest.raises(openai.NotFoundError):
                    refused()
            with pytest.raises(openai.BadRequestError) as foreign:
                b.batches.create(
                    input_file_id=name,
                    endpoint="/v1/chat/completions",
                    completion_window="24h",
                )
            assert foreign.value.code == "file_not_found"
            for scoped in (narrow.files.list, narrow.batches.list):
                with pytest.raises(openai.PermissionDeniedError):
                    scoped()
            assert not b.files.list().data
            assert not b.batches.list().data
            with pytest.raises(openai.ConflictError) as used:
                a.files.delete(name)
            assert used.value.code == "file_in_use"
            a.batches.cancel(made.id)
            teacher.answer = says("x")
            assert ended(a, made.id).status == "cancelled"
            assert a.files.delete(name).deleted
            with pytest.raises(openai.NotFoundError):
                a.files.retrieve(name)
            with pytest.raises(openai.ConflictError):
                a.batches.cancel(made.id)
        with work.files._engine.connect() as connection:
            left = connection.execute(sa.text("SELECT count(*) FROM file_parts")).scalar()
            lines = connection.execute(sa.text("SELECT count(*) FROM batch_lines")).scalar()
    assert left == 1  # the error file's
    assert lines == 0


def test_lists_are_paged(tmp_path: Path) -> None:
    teacher = Model(says("x"))
    with (
        models(teacher),
        batching(tmp_path, two(teacher, None)) as (running, _),
        client_of(running) as client,
    ):
        made = [begun(client, jsonl(line(1))).id for _ in range(5)]
        for one in made:
            ended(client, one)
        assert [one.id for one in client.batches.list(limit=2)] == made[::-1]
        page = client.files.list(limit=2, order="asc", purpose="batch")
        assert page.has_more
        assert len([*page]) == 5
        assert len([*client.files.list(purpose="batch_output")]) == 5
        assert not client.files.list(purpose="vision").data
        for wrong in ({"limit": 0}, {"limit": 101}, {"after": "batch_x"}, {"after": "\0"}):
            with pytest.raises(openai.BadRequestError):
                client.batches.list(**wrong)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError):
            client.files.list(order="up")  # type: ignore[arg-type]


BAD_BATCHES: list[tuple[dict[str, Any], str]] = [
    ({}, "input_file_id"),
    ({"input_file_id": 1}, "input_file_id"),
    ({"input_file_id": "\0"}, "input_file_id"),
    ({"input_file_id": "f", "endpoint": "/v1/responses"}, "endpoint"),
    ({"input_file_id": "f", "endpoint": ["/v1/embeddings"]}, "endpoint"),
    ({"input_file_id": "f", "endpoint": "/v1/embeddings"}, "completion_window"),
    ({"completion_window": "24h", "metadata": {"a": 1}}, "metadata"),
    ({"completion_window": "24h", "metadata": {"a": "\ud800"}}, "metadata"),
    ({"completion_window": "24h", "metadata": dict.fromkeys(map(str, range(17)), "")}, "metadata"),
    ({"completion_window": "24h", "output_expires_after": 5}, "output_expires_after"),
    (
        {
            "completion_window": "24h",
            "output_expires_after": {"anchor": "created_at", "seconds": 60},
        },
        "output_expires_after",
    ),
    ({"completion_window": "24h"}, "input_file_id"),
    ({"surprise": 1}, "surprise"),
]


def test_a_batch_that_cannot_be_is_refused_by_the_parameters_name(tmp_path: Path) -> None:
    teacher = Model(says("x"))
    with models(teacher), batching(tmp_path, two(teacher, None)) as (running, work):
        for body, param in BAD_BATCHES:
            whole = {"input_file_id": "file-0", "endpoint": "/v1/embeddings", **body}
            if param in ("input_file_id", "endpoint") and "completion_window" not in body:
                whole = body
            got = send(running.url, whole, "/v1/batches", KEY_A)
            assert (got.status, got.json["error"]["param"]) == (400, param), body
        assert not work.batches.unfinished()


def test_an_end_by_hand_leaves_every_line_in_one_of_the_files(tmp_path: Path) -> None:
    held = threading.Event()
    good = says("x")

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["messages"][0]["content"] == "text 0":
            return await good(request, body)
        await asyncio.to_thread(held.wait, 10)
        return await good(request, body)

    teacher = Model(slow)
    with (
        models(teacher),
        batching(tmp_path, two(teacher, None), concurrent=2) as (running, _),
        client_of(running) as client,
    ):
        made = begun(client, jsonl(*map(line, range(6))))
        ends = time.monotonic() + 10
        while client.batches.retrieve(made.id).request_counts.completed < 1:
            assert time.monotonic() < ends
            time.sleep(0.02)
        key = {"authorization": f"Bearer {ADMIN}"}
        assert send(running.admin, path="/batches", method="GET").status == 401
        shown = send(running.admin, path="/batches", headers=key, method="GET").json
        assert [(one["id"], one["tenant"]) for one in shown["batches"]] == [(made.id, "a")]
        path = f"/batches/{made.id}/cancel"
        assert send(running.admin, {}, path, key).json["status"] == "cancelling"
        teacher.answer = good
        runner = running.gateway._batches
        assert runner is not None
        while not any(job.halt for job in runner._jobs.values()) and time.monotonic() < ends:
            time.sleep(0.01)
        held.set()
        done = ended(client, made.id)
        good_lines = lines_of(client, done.output_file_id)
        bad_lines = lines_of(client, done.error_file_id)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    assert done.cancelled_at is not None
    assert {one["error"]["code"] for one in bad_lines} == {"batch_cancelled"}
    assert {one["response"] for one in bad_lines} == {None}
    named = sorted(one["custom_id"] for one in good_lines + bad_lines)
    assert named == [f"c{number}" for number in range(6)]
    assert 1 <= len(good_lines) < 6
    counts = done.request_counts
    assert (counts.completed, counts.failed) == (len(good_lines), len(bad_lines))


def test_a_batch_expires(tmp_path: Path) -> None:
    teacher = Model(status(503))
    with models(teacher):
        raw, section = two(teacher, None), {"window_h": 0.5 / 3600}
        with batching(tmp_path, raw, **section) as (running, _), client_of(running) as client:
            done = ended(client, begun(client, jsonl(line(1), line(2))).id)
            bad = lines_of(client, done.error_file_id)
    assert (done.status, done.output_file_id) == ("expired", None)
    assert done.expired_at is not None
    assert [one["error"]["code"] for one in bad] == ["batch_expired"] * 2


def test_what_was_not_paid_for_is_asked_again_and_what_may_have_been_only_so_often(
    tmp_path: Path,
) -> None:
    tries: dict[str, int] = {}
    good = says("x")

    async def moody(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = body["messages"][0]["content"]
        tries[text] = tries.get(text, 0) + 1
        if text == "text 1" and tries[text] < 3:
            return await status(503)(request, body)
        if text == "text 2":
            return web.json_response({"unlike": "an answer"})
        return await good(request, body)

    teacher = Model(moody)
    with models(teacher):
        raw = two(teacher, None)
        raw["upstreams"]["big"]["retry"] = {"attempts": 1}
        with batching(tmp_path, raw, attempts=2) as (running, _), client_of(running) as client:
            done = ended(client, begun(client, jsonl(line(1), line(2), line(3))).id)
            [bad] = lines_of(client, done.error_file_id)
    assert done.request_counts.completed == 2
    assert tries == {"text 1": 3, "text 2": 2, "text 3": 1}
    assert bad["response"]["status_code"] == 502
    assert bad["response"]["body"]["error"]["code"] == "garbage"


def test_lines_are_few_at_a_time_and_give_way_to_live_requests(tmp_path: Path) -> None:
    now = {"in": 0, "most": 0}
    good = says("x")
    let_go = threading.Event()

    async def counted(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body["messages"][0]["content"] == "hello":
            await asyncio.to_thread(let_go.wait, 10)
            return await good(request, body)
        now["in"] += 1
        now["most"] = max(now["most"], now["in"])
        await asyncio.sleep(0.03)
        now["in"] -= 1
        return await good(request, body)

    teacher = Model(counted)
    content = jsonl(*map(line, range(8)))
    with models(teacher), ThreadPoolExecutor(1) as pool:
        raw = two(teacher, None)
        raw["upstreams"]["big"]["deadlines"]["total_s"] = 20
        with (
            batching(tmp_path, raw, concurrent=3, live_most=0) as (running, _),
            client_of(running) as client,
        ):
            ended(client, begun(client, content).id)
            assert now["most"] == 3
            now["most"] = 0
            live = pool.submit(send, running.url, ASK, headers=KEY_A)
            ends = time.monotonic() + 5
            while len(teacher.bodies) == 8 and time.monotonic() < ends:
                time.sleep(0.01)
            ended(client, begun(client, content).id)
            let_go.set()
            assert live.result().status == 200
    assert now["most"] == 1


def test_a_busy_upstream_is_left_to_live_requests() -> None:
    async def run() -> None:
        slots = Slots(4, 4, 1)
        assert slots.spare
        for _ in range(2):
            await slots.take()
        assert slots.spare
        await slots.take()
        assert not slots.spare
        lone = Slots(1, 1, 1)
        assert lone.spare
        await lone.take()
        assert not lone.spare

    asyncio.run(run())
