"""Students in processes behind the gateway: what is asked, what fails over, what is started again.

The processes are real; the student in them is a fake that does what a request's words say.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gateway_servers import FULL, OFF, SHADOW, Model, Running, gateway, models, says, status
from test_gateway_http import Got, send, texts

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.recipe_file import parse_as
from stillhouse.serve import student_pool, student_process
from stillhouse.serve.gateway_file import GatewayFile, load_gateway

TASK = {"kind": "classification", "labels": ["good", "bad"], "prompt": "Review: {text}"}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([own, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(student_process, "MODULE", "fake_student")
    monkeypatch.setattr(student_pool, "PAUSE_S", (0.05, 0.1))
    monkeypatch.setattr(student_pool, "LOOK_S", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def raw(teacher: Model, folder: Path, *, plan: Any = None, **section: Any) -> dict[str, Any]:
    small = {"kind": "student", "path": str(folder), "head": "label", "task": TASK, **section}
    return {
        "upstreams": {"big": {"base_url": teacher.url, "model": "big-1"}, "small": small},
        "tasks": {"t": {"teacher": "big", "student": "small", **FULL, **(plan or {})}},
    }


@pytest.fixture
def serving(folder: Path) -> Iterator[Callable[..., Any]]:
    """Starts gateways with a fake student and a teacher who says `teacher`."""
    teacher = Model(says("teacher"))
    with models(teacher):

        def start(**given: Any) -> Any:
            return gateway(raw(teacher, folder, **given))

        yield start


def ask(running: Running, words: str, **more: Any) -> Got:
    messages = [{"role": "user", "content": f"Review: {words}"}]
    return send(running.url, {"model": "t", "messages": messages, **more})


def who(got: Got) -> tuple[str, str | None]:
    return got.headers["x-stillhouse-variant"], got.headers.get("x-stillhouse-fallback")


def content(got: Got) -> str:
    return str(got.json["choices"][0]["message"]["content"])


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def test_a_label_is_answered_as_the_chat_api_has_it(serving: Callable[..., Any]) -> None:
    with serving(model="films-1") as running:
        plain = ask(running, "a bad film", n=2)
        assert (plain.status, who(plain)) == (200, ("student", None))
        body = plain.json
        assert [c["message"]["content"] for c in body["choices"]] == ["bad", "bad"]
        assert body["object"] == "chat.completion"
        assert (body["model"], body["system_fingerprint"]) == ("films-1", "fp_fake")
        assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        assert body["choices"][0]["logprobs"] is None
        told = ask(running, "a film", logprobs=True, top_logprobs=1)
        (token,) = told.json["choices"][0]["logprobs"]["content"]
        assert token["token"] == "good"
        assert token["bytes"] == list(b"good")
        assert token["logprob"] == pytest.approx(-0.01005, abs=1e-4)
        assert [other["token"] for other in token["top_logprobs"]] == ["good"]
        stream = ask(running, "bad", stream=True, stream_options={"include_usage": True})
        assert texts(stream) == "bad"
        assert b'"total_tokens"' in stream.body
        assert stream.body.endswith(b"data: [DONE]\n\n")
        ((call, served), *_) = running.wait_for(3)
        assert call.model == "student:films-1"
        assert served.upstream == "small"
    parts = [{"type": "text", "text": "Review: bad"}]
    with serving() as running:
        got = send(running.url, {"model": "t", "messages": [{"role": "user", "content": parts}]})
        assert (content(got), who(got)[0]) == ("bad", "student")
        anthropic = {
            "model": "t",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "Review: bad"}],
        }
        got = send(running.url, anthropic, path="/v1/messages")
        assert got.json["content"][0]["text"] == "bad"


OTHER_REQUESTS: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": {"type": "json_object"}},
    {"modalities": ["text", "audio"]},
    {"messages": [{"role": "user", "content": "no review at all"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "tool", "content": "Review: x"}]},
]


def test_what_is_not_for_the_student_is_the_teachers(serving: Callable[..., Any]) -> None:
    with serving() as running:
        for more in OTHER_REQUESTS:
            for stream in (False, True):
                got = ask(running, "good", **more, stream=stream)
                assert who(got) == ("teacher", "student-down"), more
                assert (texts(got) if stream else content(got)) == "teacher"
        for path, body in (
            ("completions", {"prompt": "x"}),
            ("completions", {"prompt": "x", "stream": True}),
        ):
            got = send(running.url, {"model": "t", **body}, path=f"/v1/{path}")
            assert who(got)[0] == "teacher"


def test_what_the_student_cannot_do_waits_for_a_teacher_that_is_down(folder: Path) -> None:
    down = Model(status(500))
    with models(down), gateway(raw(down, folder, plan=OFF)) as running:
        got = ask(running, "good", response_format={"type": "json_object"})
        assert got.status == 502  # the request is good: it may be tried again
        assert got.json["error"]["type"] == "server_error"
        assert got.json["error"]["code"] == "upstream_500"
        assert who(ask(running, "good")) == ("student", "teacher-down")


def test_a_process_that_ends_is_started_again(serving: Callable[..., Any]) -> None:
    with serving(workers=2) as running:
        pool = running.gateway.students[0].pool
        before = set(pool.pids)
        assert len(before) == 2
        got = ask(running, "crash")
        assert (content(got), who(got)) == ("teacher", ("teacher", "student-down"))
        assert who(ask(running, "good")) == ("student", None)  # the other one
        until(lambda: pool.restarts == 1 and len(set(pool.pids) - before) == 1)
        until(lambda: all(one.open for one in pool.processes))
        assert who(ask(running, "good")) == ("student", None)
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: pool.restarts == 3)
        until(lambda: who(ask(running, "good")) == ("student", None))


def test_a_process_that_hangs_is_killed_and_its_requests_fail_over(
    serving: Callable[..., Any],
) -> None:
    with serving(hang_s=0.4) as running:
        pool = running.gateway.students[0].pool
        began = time.monotonic()
        got = ask(running, "hang")
        assert who(got) == ("teacher", "student-down")
        assert time.monotonic() - began < 20
        until(lambda: who(ask(running, "good")) == ("student", None))
        assert pool.restarts == 1
        assert who(ask(running, "slow good"))[0] in ("student", "teacher")


def test_a_failing_request_fails_alone(serving: Callable[..., Any]) -> None:
    with serving() as running:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            # The first holds the student up, so that the others wait and share a batch.
            words = ["slow good", *["bad"] * 5, "fail", "good"]
            found = list(threads.map(lambda one: ask(running, one), words))
        assert [who(one)[0] for one in found] == ["student"] * 6 + ["teacher", "student"]
        assert [content(one) for one in found[1:6]] == ["bad"] * 5


def test_what_waits_is_answered_together_up_to_the_limit(serving: Callable[..., Any]) -> None:
    with serving(max_batch=4) as running:
        with concurrent.futures.ThreadPoolExecutor(13) as threads:
            first = threads.submit(ask, running, "slow good")
            time.sleep(0.1)
            found = list(threads.map(lambda _: ask(running, "good"), range(12)))
        sizes = [one.json["usage"]["prompt_tokens"] for one in found]
        assert first.result().json["usage"]["prompt_tokens"] == 1
        assert max(sizes) <= 4
        assert sum(1 / size for size in sizes) < 12  # fewer batches than requests
        assert {who(one) for one in found} == {("student", None)}


def test_deadlines_and_a_full_queue(serving: Callable[..., Any]) -> None:
    queue = {"concurrent": 1, "waiting": 0, "wait_s": 1}
    with (
        serving(queue=queue, deadlines={"total_s": 5}) as running,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(ask, running, "slow good")
        pool = running.gateway.students[0].pool
        until(lambda: pool.processes[0].load == 1)
        assert who(ask(running, "good")) == ("teacher", "student-down")
        assert who(first.result()) == ("student", None)
    deadlines = {"first_token_s": 0.1, "total_s": 5}
    with serving(deadlines=deadlines) as running:
        assert who(ask(running, "slow good", stream=True)) == ("teacher", "student-down")
        until(lambda: who(ask(running, "good")) == ("student", None))


def test_a_client_that_leaves_cancels_what_waits(serving: Callable[..., Any]) -> None:
    with serving(max_batch=1) as running:
        pool = running.gateway.students[0].pool
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            first = threads.submit(ask, running, "slow good")
            time.sleep(0.1)
            gone = http.client.HTTPConnection("127.0.0.1", int(running.url.rsplit(":", 1)[1]))
            body = {"model": "t", "messages": [{"role": "user", "content": "Review: crash"}]}
            gone.request("POST", "/v1/chat/completions", json.dumps(body))
            time.sleep(0.1)
            gone.close()
            assert who(first.result()) == ("student", None)
        assert who(ask(running, "good")) == ("student", None)
        assert pool.restarts == 0  # the request that would have ended it was never begun


def test_shadow_answers_come_from_processes_too(serving: Callable[..., Any]) -> None:
    with serving(plan=SHADOW) as running:
        assert who(ask(running, "bad")) == ("teacher", None)
        ((_, shown), (call, shadow)) = running.wait_for(2)
        assert (shown.variant, shadow.variant, shadow.shadow_of) == ("teacher", "student", shown.id)
        assert call.response["choices"][0]["message"]["content"] == "bad"


def test_the_end_of_the_gateway_is_the_end_of_its_processes(serving: Callable[..., Any]) -> None:
    with serving(workers=2) as running:
        processes = [psutil.Process(pid) for pid in running.gateway.students[0].pool.pids]
        assert len(processes) == 2
        # A signal to the whole group is the gateway's to hear.
        for one in processes:
            one.send_signal(signal.SIGTERM)
        assert who(ask(running, "good")) == ("student", None)
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert len(gone) == 2
    assert not alive


def test_another_student_under_the_same_path_is_not_taken(
    serving: Callable[..., Any], folder: Path
) -> None:
    with serving() as running:
        pool = running.gateway.students[0].pool
        (folder / "mark").write_text("fp_other")
        assert who(ask(running, "crash"))[0] == "teacher"
        until(lambda: pool.restarts >= 2)
        assert who(ask(running, "good")) == ("teacher", "student-down")
        (folder / "mark").unlink()
        until(lambda: who(ask(running, "good")) == ("student", None))


def test_what_is_wrong_with_a_section_is_said_in_one_line(tmp_path: Path) -> None:
    def load(section: dict[str, Any]) -> GatewayFile:
        tasks = {"t": {"teacher": "small"}}
        return parse_as(GatewayFile, {"upstreams": {"small": section}, "tasks": tasks}, "g.yaml")

    with pytest.raises(RecipeError, match=r"upstreams\.small\.worker: unknown key.*workers"):
        load({"kind": "student", "path": "x", "worker": 2})
    with pytest.raises(RecipeError, match=r"upstreams\.small\.base: unknown key.*base_url"):
        load({"base": "http://x/v1", "model": "m"})
    with pytest.raises(RecipeError, match=r"upstreams\.small\.task\.labels"):
        load({"kind": "student", "path": "x", "task": {"kind": "classification", "labels": []}})
    with pytest.raises(RecipeError, match="'kind' must be one of"):
        load({"kind": "studnt", "path": "x"})
    (tmp_path / "g.yaml").write_text(
        "upstreams: {small: {kind: student, path: runs/x}}\n"
        "tasks: {t: {teacher: small, fallback: {calibrator: gate.json}}}\n"
    )
    found = load_gateway(tmp_path / "g.yaml")
    assert found.upstreams["small"].path == tmp_path / "runs" / "x"  # type: ignore[union-attr]
    assert found.tasks["t"].fallback.calibrator == tmp_path / "gate.json"


def test_a_student_that_cannot_be_opened_stops_the_start(folder: Path, tmp_path: Path) -> None:
    teacher = Model(says("teacher"))
    with models(teacher):
        for section, message in (
            ({"path": str(tmp_path / "none")}, "upstreams.small.path: there is no such folder"),
            ({"task": None}, "upstreams.small.task: is missing"),
            ({"task": {"kind": "generation"}}, "of a label student is a classification"),
        ):
            with pytest.raises(UserError, match=message), gateway(raw(teacher, folder, **section)):
                pass
        (folder / "slow").touch()
        with (
            pytest.raises(UserError, match=r"not open after 0\.3 seconds"),
            gateway(raw(teacher, folder, start_s=0.3)),
        ):
            pass
