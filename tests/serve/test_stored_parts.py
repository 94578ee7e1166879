"""A gateway that keeps: its log, its states over a restart, and a second gateway beside it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_servers import Model, models, says, two
from test_gateway_process import started

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import export_calls, outcomes_since, served_since
from stillhouse.serve.stored_parts import StoredParts, begin
from stillhouse.serve.tables import open_database
from stillhouse.traffic.logs import LogReader

SECRET = b"0123456789abcdef"
STAGES = [{"kind": "shadow"}, {"kind": "canary", "share": 0.05}, {"kind": "full"}]


def kept(url: str) -> dict[str, Any]:
    return {"listen": {"port": 0}, "admin": {"port": 0}, "log": {"url": url}}


@contextmanager
def gateway(path: Path, raw: dict[str, Any]) -> Iterator[tuple[int, int, subprocess.Popen[str]]]:
    """A process; its two ports."""
    process = started(path, raw)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split(":")[-1].split("/")[0])
        yield port, int(process.stdout.readline().split(":")[-1]), process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def post(port: int, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", path, json.dumps(body), headers)
    reply = connection.getresponse()
    raw = reply.read()
    connection.close()
    return reply.status, dict(reply.getheaders()), json.loads(raw)


def ask(port: int, text: str, user: str) -> str:
    """The id of an answered request."""
    messages = [{"role": "user", "content": text}]
    status, headers, _ = post(
        port, "/v1/chat/completions", {"model": "t", "messages": messages, "user": user}
    )
    assert status == 200
    return headers["x-request-id"]


def test_what_was_answered_is_in_the_log_with_its_feedback_and_no_personal_data(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher, student = Model(says("good")), Model(says("well"))
    with models(teacher, student):
        raw = {**kept(url), **two(teacher, student, experiment={"stages": STAGES})}
        with gateway(tmp_path / "gateway.yaml", raw) as (port, _, process):
            request = ask(port, "write to ann@example.com", "ann")
            status, _, _ = post(port, "/v1/feedback", {"request_id": request, "thumbs": "up"})
            assert status == 201
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=20)
    assert not errors
    assert "0 dropped, 0 lost" in out
    engine = open_database(url)
    served = list(served_since(engine, "t", 0))
    assert {one.id for one in served if one.shadow_of is None} == {request}
    assert [one.outcome.score for one in outcomes_since(engine, "t", 0)] == [1.0]
    assert export_calls(engine, tmp_path / "calls.jsonl") == 1
    text = (tmp_path / "calls.jsonl").read_text()
    assert "<EMAIL_1>" in text
    assert "ann" not in text
    assert b"ann@example" not in b"".join(p.read_bytes() for p in tmp_path.glob("gateway.db*"))


def test_two_gateways_on_one_database_and_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher, student = Model(says("good")), Model(says("well"))
    with models(teacher, student):
        raw = {**kept(url), **two(teacher, student, experiment={"stages": STAGES})}
        with (
            gateway(tmp_path / "one.yaml", raw) as (_, admin, _),
            gateway(tmp_path / "two.yaml", raw) as (port, _, _),
        ):
            states = StoredStates(open_database(url))
            assert [one.decision.reason for one in states.audit("t")] == ["the experiment begins"]
            for _ in range(2):
                status, _, said = post(admin, "/tasks/t/approve", {}, authorization="Bearer a")
                assert status == 200, said
            ends = time.monotonic() + 15
            seen = 0
            while not student.bodies and time.monotonic() < ends:
                seen += 1
                ask(port, f"text {seen}", f"user {seen}")
            assert student.bodies, "the second gateway did not see what the first one did"
        with gateway(tmp_path / "one.yaml", raw):
            states.refresh()
            assert (states.get("t").stage, states.get("t").kind) == (2, "full")
            assert len(states.audit("t")) == 3


def file_of(stages: list[dict[str, Any]], threshold: float | None = None) -> GatewayFile:
    raw = {
        "upstreams": {"big": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}},
        "tasks": {
            "t": {
                "teacher": "big",
                "student": "big",
                "experiment": {"stages": stages},
                "fallback": {"threshold": threshold},
            }
        },
    }
    return parse_as(GatewayFile, raw, "gateway.yaml")


def test_the_file_changes_a_stage_and_not_how_far_the_experiment_is(tmp_path: Path) -> None:
    states = StoredStates(open_database(f"sqlite:///{tmp_path / 'gateway.db'}"))
    begin(states, file_of(STAGES), 10.0)
    first = states.get("t")
    assert (first.version, first.kind, first.since) == (1, "shadow", 10.0)
    begin(states, file_of(STAGES), 20.0)
    assert states.get("t") == first
    begin(states, file_of(STAGES, threshold=0.8), 30.0)
    changed = states.get("t")
    assert (changed.version, changed.stage, changed.since) == (2, 0, 10.0)
    assert changed.threshold == 0.8
    last = states.audit("t")[-1].decision
    assert (last.by, last.numbers["threshold"]) == ("gateway.yaml", 0.8)


def test_another_student_begins_at_the_first_stage(tmp_path: Path) -> None:
    states = StoredStates(open_database(f"sqlite:///{tmp_path / 'gateway.db'}"))
    begin(states, file_of(STAGES), 1.0)
    old = states.get("t")
    assert (old.student, old.counts_from) == ("big:m", 1)
    new = old.model_copy(update={"version": 2, "stage": 2, "kind": "full", "share": 1.0})
    assert states.swap(1, new, states.audit("t")[-1].decision)
    raw = file_of(STAGES).model_dump(mode="json")
    raw["upstreams"]["big"]["model"] = "m2"
    begin(states, parse_as(GatewayFile, raw, "gateway.yaml"), 9.0)
    found = states.get("t")
    assert (found.stage, found.kind, found.since, found.counts_from) == (0, "shadow", 9.0, 3)
    decision = states.audit("t")[-1].decision
    assert (decision.from_stage, decision.to_stage) == (2, 0)
    assert "another student" in decision.reason


def test_what_the_file_changes_begins_the_evidence_anew(tmp_path: Path) -> None:
    states = StoredStates(open_database(f"sqlite:///{tmp_path / 'gateway.db'}"))
    begin(states, file_of(STAGES), 1.0)
    begin(states, file_of(STAGES, threshold=0.5), 2.0)
    assert (states.get("t").counts_from, states.get("t").since) == (2, 1.0)


def test_a_plan_that_is_shorter_than_the_experiment_is_far_is_refused(tmp_path: Path) -> None:
    states = StoredStates(open_database(f"sqlite:///{tmp_path / 'gateway.db'}"))
    begin(states, file_of(STAGES), 1.0)
    old = states.get("t")
    new = old.model_copy(update={"version": old.version + 1, "stage": 2, "kind": "full"})
    decision = states.audit("t")[-1].decision
    assert states.swap(old.version, new, decision)
    with pytest.raises(UserError, match=r"tasks\.t\.experiment\.stages: the experiment stands"):
        begin(states, file_of(STAGES[:2]), 2.0)


def test_what_is_too_old_is_deleted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher = Model(says("good"))
    with models(teacher):
        raw = {**kept(url), **two(teacher, None)}
        with gateway(tmp_path / "gateway.yaml", raw) as (port, _, process):
            ask(port, "hello", "ann")
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        file = parse_as(GatewayFile, {**raw, "log": {"url": url, "retention_days": 1}}, "g")
        stored = StoredParts(file, Pseudonyms(SECRET), lambda kinds: str, time.time())
        try:
            stored.refresh(time.time())
            assert len(list(served_since(open_database(url), "t", 0))) == 1
            stored.refresh(time.time() + 3 * 86_400)
            assert list(served_since(open_database(url), "t", 0)) == []
        finally:
            stored.close()


def test_the_admin_exports_the_log_and_has_a_user_forgotten(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher = Model(says("good"))
    key = {"authorization": "Bearer a"}
    with models(teacher):
        raw = {**kept(url), **two(teacher, None)}
        with gateway(tmp_path / "gateway.yaml", raw) as (port, admin, _):

            def exported(query: str = "") -> tuple[int, str]:
                connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=20)
                connection.request("GET", f"/log{query}", headers=key)
                reply = connection.getresponse()
                text = reply.read().decode()
                connection.close()
                return reply.status, text

            for number in range(250):
                user = "ann" if number % 5 else "bob"
                request = ask(port, f"text {number}", user)
            assert post(port, "/v1/feedback", {"request_id": request, "thumbs": "up"})[0] == 201
            assert post(admin, "/users/forget", {"tenant": "", "user": "ann"})[0] == 401
            status, text = exported()
            assert status == 200
            assert len(text.splitlines()) == 250
            (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")
            assert len(list(LogReader([tmp_path / "log.jsonl"]))) == 250
            assert exported("?task=other") == (200, "")
            assert exported("?since=9e9") == (200, "")
            assert exported("?since=never")[0] == 400
            status, _, gone = post(admin, "/users/forget", {"tenant": "", "user": "ann"}, **key)
            assert (status, gone) == (200, {"requests": 200, "outcomes": 1})
            assert len(exported()[1].splitlines()) == 50
            assert post(admin, "/users/forget", {"user": "bob"}, **key)[0] == 400


def test_keys_are_made_listed_and_revoked_by_the_admin(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gateway.db'}"
    teacher = Model(says("good"))
    admin_key = {"authorization": "Bearer a"}
    body = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}
    with models(teacher):
        raw = {**kept(url), "keys_in_store": True, **two(teacher, None)}
        with gateway(tmp_path / "gateway.yaml", raw) as (port, admin, _):
            chat = "/v1/chat/completions"
            assert post(port, chat, body)[0] == 401
            assert post(admin, "/keys", {"tenant": "shop"})[0] == 401
            for bad in ({}, {"tenant": ""}, {"tenant": "x", "scopes": []}, {"tenant": 1}):
                assert post(admin, "/keys", bad, **admin_key)[0] == 400
            for unknown in (["other"], ["t", "feedbakc"], ["\ud800"]):
                asked = {"tenant": "shop", "scopes": unknown}
                status, _, told = post(admin, "/keys", asked, **admin_key)
                assert (status, told["error"]["param"]) == (400, "scopes")
                assert told["error"]["message"] == (
                    f"There is no scope {unknown[-1]!r}; there are *, feedback, batches, "
                    "and the tasks t."
                )
            made = {"tenant": "x", "scopes": ["*", "feedback", "batches", "t"]}
            assert post(admin, "/keys", made, **admin_key)[0] == 201
            status, _, made = post(admin, "/keys", {"tenant": "shop", "scopes": ["t"]}, **admin_key)
            assert status == 201
            mine = {"authorization": f"Bearer {made['key']}"}
            assert post(port, chat, body, **mine)[0] == 200
            identity = made["key"].split("-")[1]
            assert post(admin, f"/keys/{identity}/revoke", {}, **admin_key)[0] == 200
            assert post(admin, f"/keys/{identity}/revoke", {}, **admin_key)[0] == 404
            assert post(port, chat, body, **mine)[0] == 401
    raw_bytes = b"".join(p.read_bytes() for p in tmp_path.glob("gateway.db*"))
    assert made["key"].split("-", 2)[2].encode() not in raw_bytes
