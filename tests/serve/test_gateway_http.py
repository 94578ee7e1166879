"""The gateway between real clients and real servers on loopback, with faults."""

from __future__ import annotations

import http.client
import json
import threading
import time
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import pytest
from gateway_servers import (
    ADMIN,
    FULL,
    OFF,
    SHADOW,
    Answer,
    Model,
    Running,
    breaks_off,
    garbage,
    gateway,
    hang,
    models,
    reset,
    says,
    status,
    two,
)

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.feedback import outcome_of
from stillhouse.serve.in_memory import MemoryLog

ASK: dict[str, Any] = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}


class Got:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    url: str,
    body: Any = None,
    path: str = "/v1/chat/completions",
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> Got:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    raw = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
    try:
        connection.request(
            method, path, raw, {"content-type": "application/json", **(headers or {})}
        )
        return Got(connection.getresponse())
    finally:
        connection.close()


def texts(got: Got) -> str:
    events = [one[6:] for one in got.body.decode().split("\n\n") if one.startswith("data: ")]
    chunks = [json.loads(one) for one in events if one != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def test_a_plain_request_goes_to_the_teacher_under_its_own_name_and_key() -> None:
    teacher = Model(says("good"))
    with models(teacher), gateway(two(teacher, None)) as running:
        got = send(running.url, ASK, headers={"authorization": "Bearer of-the-client"})
        assert got.status == 200
        assert got.json["choices"][0]["message"]["content"] == "good"
        assert got.headers["x-request-id"].startswith("req_")
        assert got.headers["x-stillhouse-variant"] == "teacher"
        assert teacher.bodies == [{**ASK, "model": "big-1"}]
        assert teacher.headers[0]["authorization"] == "Bearer sk-of-big"
        ((call, served),) = running.wait_for(1)
    assert served.id == call.id == got.headers["x-request-id"]
    assert (served.prompt_tokens, served.completion_tokens) == (10, 2)
    assert served.cost_usd == pytest.approx((10 * 10 + 2 * 20) / 1e6)
    assert call.model_validate(call.model_dump()) == call
    assert served.model_validate(served.model_dump()) == served


def test_usage_in_a_stream_is_asked_for_and_stripped_unless_the_client_wants_it() -> None:
    teacher = Model(says("good"))
    with models(teacher), gateway(two(teacher, None)) as running:
        bare = send(running.url, {**ASK, "stream": True})
        full = send(running.url, {**ASK, "stream": True, "stream_options": {"include_usage": True}})
        logged = running.wait_for(2)
    assert teacher.bodies[0]["stream_options"] == {"include_usage": True}
    assert b"usage" not in bare.body
    assert b'"prompt_tokens": 10' in full.body
    assert texts(bare) == texts(full) == "good"
    assert bare.body.endswith(b"data: [DONE]\n\n")
    assert bare.headers["content-type"] == "text/event-stream"
    assert {served.prompt_tokens for _, served in logged} == {10}
    assert logged[0][0].response["choices"][0]["message"]["content"] == "good"


BAD: list[tuple[bytes, int, str | None]] = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[]", 400, None),
    (b'{"model": NaN}', 400, None),
    (b'{"model": 1' + b"0" * 5000 + b"}", 400, None),
    (b"\xff\xfe", 400, None),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400, None),
    (b'{"model":"t","messages":' + b"[" * 200 + b"]" * 200 + b"}", 400, None),
    (b'{"model":"t"}', 400, "messages"),
    (json.dumps({**ASK, "model": 3}).encode(), 400, "model"),
    (json.dumps({**ASK, "model": "other"}).encode(), 404, "model"),
    (json.dumps({**ASK, "model": "t\r\nx-evil: 1"}).encode(), 404, "model"),
    (json.dumps({**ASK, "messages": []}).encode(), 400, "messages"),
    (json.dumps({**ASK, "messages": [1]}).encode(), 400, "messages[0].role"),
    (
        json.dumps({**ASK, "messages": [{"role": ["user"], "content": ""}]}).encode(),
        400,
        "messages[0].role",
    ),
    (json.dumps({**ASK, "messages": ASK["messages"] * 1001}).encode(), 400, "messages"),
    (json.dumps({**ASK, "stream": "yes"}).encode(), 400, "stream"),
    (json.dumps({**ASK, "n": 1000}).encode(), 400, "n"),
    (json.dumps({**ASK, "max_tokens": -1}).encode(), 400, "max_tokens"),
    (json.dumps({**ASK, "user": 5}).encode(), 400, "user"),
    (json.dumps({**ASK, "temperature": True}).encode(), 400, "temperature"),
]


def test_bad_input_is_refused_in_openais_shape_and_asks_nobody() -> None:
    teacher = Model(says("good"))
    with models(teacher), gateway(two(teacher, None)) as running:
        for raw, code, param in BAD:
            got = send(running.url, raw)
            assert (got.status, got.json["error"]["param"]) == (code, param), raw[:60]
            assert set(got.json["error"]) == {"message", "type", "param", "code"}
            assert got.headers["x-request-id"]
            assert "x-evil" not in got.headers
        long = b'{"model": "t", "x": "' + b"a" * 10_000_000 + b'"}'
        told = send(running.url, None, headers={"content-length": "10000000"})
        assert told.status == 413
        assert send(running.url, long).status == 413
        assert send(running.url, ASK, path="/v1/nothing").status == 404
        assert send(running.url, None, method="GET").status == 405
        assert "error" in send(running.url, None, method="GET").json
        assert not running.log.calls
    assert not teacher.bodies


def test_lone_surrogates_and_other_scripts_pass_through() -> None:
    teacher = Model(says("好"))
    with models(teacher), gateway(two(teacher, None)) as running:
        raw = b'{"model":"t","user":"\\ud800","messages":[{"role":"user",'
        raw += b'"content":"\\ud83d \xc3\xa9"}]}'
        got = send(running.url, raw)
    assert got.json["choices"][0]["message"]["content"] == "好"
    assert teacher.bodies[0]["messages"][0]["content"] == "\ud83d é"


def test_keys_open_only_their_own_tasks() -> None:
    teacher = Model(says("good"))
    with models(teacher):
        raw = two(teacher, None)
        raw["tasks"]["u"] = raw["tasks"]["t"]
        raw["clients"] = [
            {"tenant": "a", "sha256": sha256(b"key-a").hexdigest(), "scopes": ["t", "feedback"]},
            {"tenant": "b", "sha256": sha256(b"key-b").hexdigest()},
        ]
        with gateway(raw) as running:
            a, b = ({"authorization": f"Bearer key-{one}"} for one in "ab")
            for wrong in ({}, {"authorization": "Bearer ' OR 1=1 --"}, {"x-api-key": "k" * 9999}):
                got = send(running.url, ASK, headers=wrong)
                assert (got.status, got.json["error"]["code"]) == (401, "invalid_api_key")
            mine = send(running.url, ASK, headers=a)
            assert mine.status == 200
            assert send(running.url, ASK, headers={"x-api-key": "key-a"}).status == 200
            assert send(running.url, {**ASK, "model": "u"}, headers=a).status == 404
            listed = send(running.url, path="/v1/models", headers=a, method="GET").json
            assert [one["id"] for one in listed["data"]] == ["t"]
            assert send(running.url, path="/v1/models/u", headers=b, method="GET").status == 200
            assert send(running.url, path="/v1/models/u", headers=a, method="GET").status == 404

            running.wait_for(2)
            said = {"request_id": mine.headers["x-request-id"], "thumbs": "up"}
            feedback = {"path": "/v1/feedback", "headers": a}
            assert send(running.url, said, **feedback).status == 201  # type: ignore[arg-type]
            for bad, code in (
                ({**said, "request_id": "req_nobody"}, 404),
                ({**said, "thumbs": "sideways"}, 400),
                ({"request_id": "r", "score": 2}, 400),
                ({"request_id": "r"}, 400),
                (b'{"request_id": "r", "score": NaN}', 400),
                (b'{"request_id": "r", "score": 1e999}', 400),
            ):
                assert send(running.url, bad, **feedback).status == code  # type: ignore[arg-type]
            foreign = send(running.url, said, path="/v1/feedback", headers=b)
            assert foreign.status == 404
            assert [one.score for one in running.log.outcomes] == [1.0]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", [status(500), status(302, {"location": "/x"}), reset, garbage])
def test_a_teacher_that_is_down_is_answered_for_and_a_lone_one_gives_502(
    fault: Answer, streamed: bool
) -> None:
    teacher, student = Model(fault), Model(says("small"))
    ask = {**ASK, "stream": streamed}
    with models(teacher, student):
        with gateway(two(teacher, student, **OFF)) as running:
            got = send(running.url, ask)
            assert got.status == 200
            assert got.headers["x-stillhouse-fallback"] == "teacher-down"
            assert got.headers["x-stillhouse-variant"] == "student"
            assert b"small" in got.body or texts(got) == "small"
        with gateway(two(teacher, None)) as running:
            got = send(running.url, ask)
            assert got.status == 502
            assert got.json["error"]["type"] == "server_error"
            ((_, served),) = running.wait_for(1)
            assert served.error
    assert set(teacher.paths) == {"/v1/chat/completions"}


@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_student_refuses_while_the_teacher_is_down_is_not_the_clients_fault(
    streamed: bool,
) -> None:
    teacher, student = Model(status(503)), Model(status(400))
    with models(teacher, student), gateway(two(teacher, student, **OFF)) as running:
        got = send(running.url, {**ASK, "stream": streamed})
        assert student.paths, "the student was not asked"
        assert got.status in {502, 503}
        assert got.json["error"]["type"] == "server_error"
        ((_, served),) = running.wait_for(1)
        assert served.status == got.status


def test_a_user_named_by_half_a_character_is_logged_and_such_a_reason_is_refused() -> None:
    teacher, student = Model(says("big")), Model(says("small"))
    with models(teacher, student), gateway(two(teacher, student, **OFF)) as running:
        assert send(running.url, json.dumps({**ASK, "user": "\ud800"}).encode()).status == 200
        ((_, served),) = running.wait_for(1)
        assert served.user
        key = {"authorization": f"Bearer {ADMIN}"}
        for path in ("/tasks/t/kill", "/tasks/t/candidate"):
            got = send(running.admin, b'{"reason": "\\ud800"}', path, key)
            assert (got.status, got.json["error"]["param"]) == (400, "reason")


@pytest.mark.parametrize(
    "said", [b'"corrected": "\\ud800"', b'"score": 1, "detail": {"\\ud800": 1}']
)
def test_feedback_that_could_not_be_read_again_is_refused(said: bytes) -> None:
    with pytest.raises(ApiError) as found:
        outcome_of(json.loads(b'{"request_id": "r", %b}' % said), 0.0)
    assert found.value.status == 400


def test_a_student_that_is_down_or_refuses_is_answered_for_by_the_teacher() -> None:
    teacher, student = Model(says("big")), Model(reset)
    with models(teacher, student), gateway(two(teacher, student, **FULL)) as running:
        got = send(running.url, ASK)
        assert got.headers["x-stillhouse-fallback"] == "student-down"
        assert b'"big"' in got.body
        student.answer = status(400)
        assert b'"big"' in send(running.url, ASK).body
        student.answer = says("small")
        assert b'"small"' in send(running.url, ASK).body


def test_a_killed_student_answers_nothing_even_when_the_teacher_is_down() -> None:
    teacher, student = Model(status(500)), Model(says("small"))
    with models(teacher, student), gateway(two(teacher, student, **FULL)) as running:
        key = {"authorization": f"Bearer {ADMIN}"}
        kill = {"path": "/tasks/t/kill", "headers": key}
        assert send(running.admin, {"reason": "incident"}, path="/tasks/t/kill").status == 401
        done = send(running.admin, {"reason": "incident"}, **kill)  # type: ignore[arg-type]
        assert done.json["killed"] is True
        assert send(running.admin, {}, **kill).status == 409  # type: ignore[arg-type]
        assert send(running.url, ASK).status == 502
        stale = send(running.admin, {"version": 0}, path="/tasks/t/revive", headers=key)
        assert stale.status == 409
        assert send(running.admin, b"", path="/tasks/t/revive", headers=key).status == 200
        assert b"small" in send(running.url, ASK).body
        assert [one.action for one in running.states.decisions] == ["kill", "revive"]
        shown = send(running.admin, path="/state", headers=key, method="GET").json
        assert shown["tasks"]["t"]["version"] == 2
        page = send(running.admin, path="/metrics", headers=key, method="GET").body.decode()
    assert 'stillhouse_requests_total{operation="chat",status="200",task="t"' in page
    assert 'stillhouse_breaker{upstream="big"}' in page


def test_upstreams_refusal_of_the_request_itself_is_passed_on_and_not_retried() -> None:
    teacher = Model(status(400))
    with models(teacher), gateway(two(teacher, None)) as running:
        assert send(running.url, ASK).json["error"]["message"] == "no"
        assert send(running.url, {**ASK, "stream": True}).status == 400
    assert len(teacher.bodies) == 2


def test_a_retry_before_the_first_byte_mends_one_fault() -> None:
    good = says("good")
    teacher = Model(good)
    tries: list[int] = []

    async def second(request: Any, body: Any) -> Any:
        tries.append(1)
        return await (reset if len(tries) == 1 else good)(request, body)

    teacher.answer = second
    with models(teacher), gateway(two(teacher, None)) as running:
        assert send(running.url, ASK).status == 200
    assert len(tries) == 2


def test_deadlines_hold_and_the_breaker_opens() -> None:
    teacher = Model(hang)
    with models(teacher):
        raw = two(teacher, None)
        raw["upstreams"]["big"]["deadlines"] = {"first_token_s": 0.2, "total_s": 0.3}
        raw["upstreams"]["big"]["breaker"] = {"failures": 2, "open_s": 30}
        with gateway(raw) as running:
            assert send(running.url, ASK).status == 504
            assert send(running.url, {**ASK, "stream": True}).status == 504
            got = send(running.url, ASK)
            assert (got.status, got.json["error"]["code"]) == (503, "breaker_open")
            assert int(got.headers["retry-after"]) >= 1
    assert len(teacher.bodies) == 2


def test_a_full_queue_gives_429_and_a_long_wait_503() -> None:
    teacher = Model(hang)
    with models(teacher):
        raw = two(teacher, None)
        raw["upstreams"]["big"]["queue"] = {"concurrent": 1, "waiting": 1, "wait_s": 0.3}
        with gateway(raw) as running:
            first = start(running)
            second = start(running)
            time.sleep(0.1)
            third = send(running.url, ASK)
            assert (third.status, third.headers["retry-after"]) == (429, "1")
            assert Got(second.getresponse()).status == 503
            first.close()
            second.close()


def start(running: Running, ask: Any = None) -> http.client.HTTPConnection:
    parts = urlsplit(running.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("POST", "/v1/chat/completions", json.dumps(ask or ASK).encode())
    return connection


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_cancels_upstream(streamed: bool) -> None:
    teacher = Model(breaks_off("a", "silent") if streamed else hang)
    with models(teacher), gateway(two(teacher, None)) as running:
        connection = start(running, {**ASK, "stream": streamed})
        ends = time.monotonic() + 5
        while not teacher.bodies and time.monotonic() < ends:
            time.sleep(0.01)
        time.sleep(0.1)
        connection.close()
        while not teacher.cancelled and time.monotonic() < ends:
            time.sleep(0.01)
        ((_, served),) = running.wait_for(1)
    assert teacher.cancelled == 1
    assert served.status == 499


@pytest.mark.parametrize("end", ["reset", "ended", "silent"])
def test_a_stream_that_breaks_off_ends_with_an_error_and_never_with_another_model(end: str) -> None:
    teacher, student = Model(breaks_off("half", end)), Model(says("small"))
    with models(teacher, student), gateway(two(teacher, student, **OFF)) as running:
        got = send(running.url, {**ASK, "stream": True})
        ((call, served),) = running.wait_for(1)
    events = got.body.decode().strip().split("\n\n")
    assert json.loads(events[0][6:])["choices"][0]["delta"]["content"] == "half"
    assert json.loads(events[-1][6:])["error"]["type"] == "server_error"
    assert len(events) == 2
    assert not student.bodies
    assert served.error
    assert call.response is None


def test_shadow_calls_are_unseen_and_do_not_delay() -> None:
    teacher, student = Model(says("big")), Model(says("small"))
    with models(teacher, student), gateway(two(teacher, student, **SHADOW)) as running:
        got = send(running.url, {**ASK, "stream": True})
        assert texts(got) == "big"
        (_, seen), (call, shadow) = running.wait_for(2)
        assert shadow.shadow_of == seen.id
        assert (shadow.variant, shadow.arm) == ("student", "shadow")
        assert call.response["choices"][0]["message"]["content"] == "small"
        student.answer = hang
        before = time.monotonic()
        assert b"big" in send(running.url, ASK).body
        assert time.monotonic() - before < 1.5  # the student hangs for its whole deadline of 2 s


@pytest.mark.parametrize("streamed", [False, True])
def test_an_unsure_student_gives_way_before_the_first_byte(streamed: bool) -> None:
    teacher, student = Model(says("big")), Model(says("small", logprob=-2))
    with models(teacher, student):
        raw = two(teacher, student, **FULL, fallback={"threshold": 0.5, "window_tokens": 3})
        with gateway(raw) as running:
            unsure = send(running.url, {**ASK, "stream": streamed})
            student.answer = says("small", logprob=-0.1)
            sure = send(running.url, {**ASK, "stream": streamed})
            logged = running.wait_for(2)
    assert unsure.headers["x-stillhouse-fallback"] == "low-confidence"
    assert (texts(unsure) if streamed else unsure.json["choices"][0]["message"]["content"]) == "big"
    assert (texts(sure) if streamed else sure.json["choices"][0]["message"]["content"]) == "small"
    assert b"logprob" not in sure.body
    assert student.bodies[0]["logprobs"] is True
    assert [served.fell_back for _, served in logged] == [True, False]
    assert logged[0][1].confidence < 0.5 < logged[1][1].confidence


class Stuck(MemoryLog):
    """A log whose database does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def owner(self, request: str) -> str | None:
        self.go_on.wait(20)
        return None


def test_a_database_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.serve.app.STORE_S", 0.1)
    teacher, log = Model(says("good")), Stuck()
    with models(teacher), gateway(two(teacher, None), log=log) as running:
        got = send(running.url, {"request_id": "r", "thumbs": "up"}, path="/v1/feedback")
        assert (got.status, got.json["error"]["type"]) == (503, "server_error")
        assert send(running.url, ASK).status == 200
        log.go_on.set()


def test_an_answering_path_takes_post_alone() -> None:
    teacher = Model(says("good"))
    with models(teacher), gateway(two(teacher, None)) as running:
        for path in ("/v1/chat/completions", "/v1/messages"):
            assert send(running.url, path=path, method="GET").status == 405
        assert send(running.url, ASK, path="/v1/chat/completions/").status in (307, 404)
        assert send(running.url, path="/v2", method="GET").json["error"]["type"]
    assert not teacher.bodies


def test_completions_and_embeddings_pass_through() -> None:
    async def answer(request: Any, body: Any) -> Any:
        return await says("x")(request, body)

    teacher = Model(answer)
    with models(teacher), gateway(two(teacher, None)) as running:
        assert send(running.url, {"model": "t", "prompt": "a"}, "/v1/completions").status == 200
        assert send(running.url, {"model": "t", "input": ["a"]}, "/v1/embeddings").status == 200
        assert send(running.url, {"model": "t", "input": []}, "/v1/embeddings").status == 400
        assert send(running.url, {"model": "t"}, "/v1/completions").status == 400
    assert teacher.paths == ["/v1/completions", "/v1/embeddings"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_without_end_is_cut_off(streamed: bool) -> None:
    teacher = Model(says("x" * 2000))
    with models(teacher):
        raw = {**two(teacher, None), "limits": {"answer_bytes": 1000}}
        with gateway(raw) as running:
            got = send(running.url, {**ASK, "stream": streamed})
    assert b"answer_too_long" in got.body
    assert len(got.body) < 2000
