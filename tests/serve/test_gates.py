"""Calibrated confidence at the gateway: who answers, what is asked for it, what the log keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_servers import (
    ADMIN,
    FULL,
    SHADOW,
    USAGE,
    Answer,
    Model,
    chat_body,
    chunk,
    gateway,
    models,
    says,
    sse,
    status,
    two,
)
from test_gateway_http import Got, send, texts

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.recipe_file import parse_as
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.novelty import Novelty, load_novelty
from stillhouse.serve.features import answer_features, texts_of
from stillhouse.serve.gate_file import (
    Calibrator,
    Consistency,
    GateFile,
    NoveltyFile,
    Window,
    load_gate,
    save_gate,
    sha256_of,
)
from stillhouse.serve.gates import check_student, gate_of, threshold_of
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import TaskSection

ASK: dict[str, Any] = {"model": "t", "messages": [{"role": "user", "content": "dull"}]}
WRITE = GenerationTask(kind="generation")


def on(feature: str, weight: float = 1.0, bias: float = 0.0) -> Calibrator:
    return Calibrator(
        features=(feature,), means=(0.0,), scales=(1.0,), weights=(weight,), bias=bias, n=10
    )


def gate_file(folder: Path, **more: Any) -> Path:
    """P is the student's own probability of its answer; it answers from 0.9 on."""
    raw = {"calibrator": on("logit"), "threshold": 0.9, "coverage": 0.5, "n": 10, "task": WRITE}
    save_gate(folder / "gate.json", GateFile(error=0.05, delta=0.05, **{**raw, **more}))
    return folder / "gate.json"


def who(got: Got) -> tuple[str, str | None]:
    return got.headers["x-stillhouse-variant"], got.headers.get("x-stillhouse-fallback")


def gated(teacher: Model, student: Model, path: Path, **more: Any) -> dict[str, Any]:
    return two(teacher, student, fallback={"calibrator": str(path), **more}, **FULL)


@pytest.fixture
def pair() -> Iterator[tuple[Model, Model]]:
    teacher, student = Model(says("the teacher's")), Model(says("good", -0.01))
    with models(teacher, student):
        yield teacher, student


def test_the_probability_decides_and_is_logged(pair: tuple[Model, Model], tmp_path: Path) -> None:
    teacher, student = pair
    with gateway(gated(teacher, student, gate_file(tmp_path))) as running:
        assert who(send(running.url, ASK)) == ("student", None)
        student.answer = says("good", -0.5)
        got = send(running.url, ASK)
        assert who(got) == ("teacher", "low-confidence")
        logged = running.wait_for(2)
        assert running.states.get("t").threshold == 0.9
    assert student.bodies[0]["top_logprobs"] == 2
    (_, sure), (_, unsure) = logged
    assert sure.confidence == pytest.approx(math.exp(-0.01))
    assert unsure.confidence == pytest.approx(math.exp(-0.5))
    assert sure.features["mean_logprob"] == pytest.approx(-0.01)
    assert (unsure.variant, unsure.fell_back) == ("teacher", True)


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_answer_is_better_than_none_while_the_teacher_is_down(
    pair: tuple[Model, Model], tmp_path: Path, stream: bool
) -> None:
    teacher, student = pair
    student.answer, ask = says("good", -0.5), {**ASK, "stream": stream}
    with gateway(gated(teacher, student, gate_file(tmp_path))) as running:
        teacher.answer = status(500)
        got = send(running.url, ask)
        assert (got.status, who(got)) == (200, ("student", "teacher-down"))
        (last,) = running.wait_for(1)
        assert (last[1].variant, last[1].fell_back, last[1].error) == ("student", True, None)
        key = {"authorization": f"Bearer {ADMIN}"}
        assert send(running.admin, {}, path="/tasks/t/kill", headers=key).status == 200
        assert send(running.url, ask).status == 502
    off = {"student_when_teacher_down": False}
    with gateway(gated(teacher, student, gate_file(tmp_path), **off)) as running:
        assert send(running.url, ask).status == 502


def test_the_files_threshold_gives_way_to_gateway_yamls(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    teacher, student = pair
    student.answer = says("good", -0.5)
    path = gate_file(tmp_path)
    with gateway(gated(teacher, student, path, threshold=0.5)) as running:
        assert who(send(running.url, ASK))[0] == "student"
        assert running.states.get("t").threshold == 0.5
    student.answer = says("good", -1e-9)
    for fallback in ({}, {"threshold": 1}):
        with gateway(
            gated(teacher, student, gate_file(tmp_path, threshold=None), **fallback)
        ) as running:
            assert who(send(running.url, ASK)) == ("teacher", "low-confidence")


def test_what_a_calibrator_misses_is_not_guessed(pair: tuple[Model, Model], tmp_path: Path) -> None:
    teacher, student = pair
    with gateway(gated(teacher, student, gate_file(tmp_path, calibrator=on("agreement")))) as run:
        assert who(send(run.url, ASK)) == ("teacher", "low-confidence")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_gets_the_alternatives_that_it_asked_for(
    pair: tuple[Model, Model], tmp_path: Path, stream: bool
) -> None:
    teacher, student = pair
    two_ways = [{"token": "a", "logprob": -0.01}, {"token": "b", "logprob": -5.0}]

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            whole = chat_body("a")
            whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = two_ways
            return web.json_response(whole)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        one = chunk("a", "stop")
        one["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = two_ways
        await response.write(sse(one) + b"data: [DONE]\n\n")
        return response

    student.answer = answer
    with gateway(gated(teacher, student, gate_file(tmp_path))) as running:
        for wanted, count in (
            ({}, None),
            ({"logprobs": True}, 0),
            ({"logprobs": True, "top_logprobs": 1}, 1),
        ):
            got = send(running.url, {**ASK, **wanted, "stream": stream})
            assert who(got)[0] == "student"
            if count is None:
                assert b"logprobs" not in got.body
                continue
            raw = got.body.split(b"\n\n")[0].removeprefix(b"data: ")
            (token,) = json.loads(raw)["choices"][0]["logprobs"]["content"]
            assert len(token["top_logprobs"]) == count
    assert {body["top_logprobs"] for body in student.bodies} == {2}


def speaks(*logprobs: float) -> Answer:
    """A stream whose tokens have these log-probabilities."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        role = chunk("")
        role["choices"][0] = {"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}
        await response.write(sse(role))
        for logprob in logprobs:
            await response.write(sse(chunk("x", logprob=logprob)))
        end = chunk("")
        end["choices"][0] = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await response.write(sse(end, USAGE) + b"data: [DONE]\n\n")
        return response

    return answer


def test_the_head_of_a_stream_has_a_gate_of_its_own(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    teacher, student = pair
    head = Window(tokens=3, calibrator=on("min_logprob", 1, 3), threshold=0.9, coverage=1, n=9)
    path = gate_file(tmp_path, window=head, calibrator=on("min_logprob", 1, 1))
    stream = {**ASK, "stream": True}
    with gateway(gated(teacher, student, path)) as running:
        # After its first three tokens it is on its way, whatever comes.
        student.answer = speaks(-0.1, -0.2, -0.3, -9, -9)
        got = send(running.url, stream)
        assert (who(got), texts(got)) == (("student", None), "xxxxx")
        student.answer = speaks(-0.1, -0.2, -2, -0.1, -0.1)
        got = send(running.url, stream)
        assert (who(got), texts(got)) == (("teacher", "low-confidence"), "the teacher's")
        # So is a stream that ends within; a plain answer has the other calibrator.
        student.answer = speaks(-0.3)
        assert who(send(running.url, stream)) == ("student", None)
        student.answer = says("good", -0.3)
        assert who(send(running.url, ASK)) == ("teacher", "low-confidence")
        (_, shown), *_ = running.wait_for(4)
    assert shown.features["min_logprob"] == -9  # the log keeps the features of all of it
    assert shown.confidence == pytest.approx(1 / (1 + math.exp(-2.7)))


def test_a_stream_without_a_gate_for_its_head_is_held_to_its_end(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    teacher, student = pair
    with gateway(gated(teacher, student, gate_file(tmp_path))) as running:
        student.answer = speaks(*[-0.01] * 30, -9)
        got = send(running.url, {**ASK, "stream": True})
        assert (who(got), texts(got)) == (("teacher", "low-confidence"), "the teacher's")
        student.answer = speaks(*[-0.01] * 30)
        assert texts(send(running.url, {**ASK, "stream": True})) == "x" * 30


def several(own: str, *others: str) -> Answer:
    """Says one thing plainly, and other things where several samples are asked for."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        said = others if body.get("n") else (own,)
        assert not body.get("stream")
        whole = chat_body(own)
        first = whole["choices"][0]
        whole["choices"] = [
            {**first, "index": i, "message": {**first["message"], "content": text}}
            for i, text in enumerate(said)
        ]
        return web.json_response(whole)

    return answer


@pytest.mark.parametrize("stream", [False, True])
def test_samples_that_agree_make_it_sure(
    pair: tuple[Model, Model], tmp_path: Path, stream: bool
) -> None:
    teacher, student = pair
    often = Consistency(samples=4, sampling_temperature=0.7)
    task = ClassificationTask(kind="classification", labels=("good", "bad"))
    path = gate_file(tmp_path, calibrator=on("agreement", 8, -5), consistency=often, task=task)
    raw = gated(teacher, student, path)
    raw["upstreams"]["small"]["price"] = {"input": 1e6, "output": 0}
    with gateway(raw) as running:
        student.answer = several("good", "Good.", "good", "good", "good!")
        got = send(running.url, {**ASK, "stream": stream})
        assert who(got) == ("student", None)
        assert (texts(got) if stream else got.json["choices"][0]["message"]["content"]) == "good"
        student.answer = several("good", "good", "bad", "bad", "?")
        assert who(send(running.url, {**ASK, "stream": stream})) == ("teacher", "low-confidence")
        (_, sure), (_, unsure) = running.wait_for(2)
    assert sure.features["agreement"] == 1
    assert unsure.features["agreement"] == 0.25
    assert (sure.prompt_tokens, sure.cost_usd) == (10, 20)  # the samples are paid for too
    plain = [body for body in student.bodies if not body.get("n")]
    drawn = [body for body in student.bodies if body.get("n")]
    assert [(body["n"], body["temperature"]) for body in drawn] == [(4, 0.7)] * 2
    assert not any("logprobs" in body or body.get("stream") for body in drawn)
    assert all(body["logprobs"] for body in plain)


def test_a_request_unlike_the_training_texts_goes_to_the_teacher(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    teacher, student = pair
    seen = [f"a film about {what}" for what in ("crooks", "cooks", "cats", "trains", "the sea")]
    novelty = Novelty.of_texts([*seen, *seen])
    novelty.save(tmp_path / "novelty.npz")
    again = load_novelty(tmp_path / "novelty.npz")
    asked = ["a film about cats", "a film about cars", "invoice 7721 is overdue", ""]
    near = again.familiarity(asked)
    assert near == pytest.approx(novelty.familiarity(asked), abs=2e-3)
    assert near[0] == pytest.approx(1, abs=1e-3)
    assert near[0] > near[1] > near[2]
    kept = NoveltyFile(file="novelty.npz", sha256=sha256_of(tmp_path / "novelty.npz"))
    task = GenerationTask(kind="generation", prompt="Sum up: {text}")
    path = gate_file(tmp_path, calibrator=on("familiarity", 20, -10), novelty=kept, task=task)
    with gateway(gated(teacher, student, path)) as running:
        for text, variant in ((asked[0], "student"), (asked[2], "teacher")):
            messages = [{"role": "user", "content": f"Sum up: {text}"}]
            assert who(send(running.url, {"model": "t", "messages": messages}))[0] == variant
        # Not of the task's form: nothing is known of it.
        assert who(send(running.url, ASK)) == ("teacher", "low-confidence")
    (tmp_path / "novelty.npz").write_bytes(b"other")
    with pytest.raises(DataError, match=r"novelty.npz: is gone or changed"):
        load_gate(path)
    with pytest.raises(DataError, match="no training texts"):
        load_novelty(tmp_path / "novelty.npz")


def test_shadow_answers_are_judged_and_shown_to_nobody(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    teacher, student = pair
    student.answer = says("bad", -0.5)
    raw = two(teacher, student, fallback={"calibrator": str(gate_file(tmp_path))}, **SHADOW)
    with gateway(raw) as running:
        assert who(send(running.url, ASK)) == ("teacher", None)
        _, (_, shadow) = running.wait_for(2)
    assert shadow.confidence == pytest.approx(math.exp(-0.5))
    assert shadow.features["tokens"] == 1


def test_clients_of_the_other_api_are_gated_too(pair: tuple[Model, Model], tmp_path: Path) -> None:
    teacher, student = pair
    ask = {**ASK, "max_tokens": 9}
    with gateway(gated(teacher, student, gate_file(tmp_path))) as running:
        assert who(send(running.url, ask, path="/v1/messages")) == ("student", None)
        student.answer = says("good", -0.5)
        got = send(running.url, {**ask, "stream": True}, path="/v1/messages")
        assert who(got) == ("teacher", "low-confidence")


def test_a_calibrator_of_another_student_is_refused(tmp_path: Path) -> None:
    fallback = {"calibrator": str(gate_file(tmp_path, student="fp_1"))}
    task = TaskSection.model_validate({"teacher": "a", "student": "b", "fallback": fallback})
    check_student("t", task, "fp_1")
    check_student("t", task, None)  # a server that says nothing of itself
    with pytest.raises(UserError, match=r"tasks\.t\.fallback\.calibrator: was fitted for .*fp_1"):
        check_student("t", task, "fp_2")
    assert threshold_of(task) == 0.9
    missing = TaskSection.model_validate(
        {"teacher": "a", "student": "b", "fallback": {"calibrator": str(tmp_path / "none.json")}}
    )
    with pytest.raises(DataError, match=r"none.json: cannot be read.*stillhouse calibrate"):
        threshold_of(missing)


def test_no_gate_is_made_where_none_is_asked_for(pair: tuple[Model, Model]) -> None:
    teacher, student = pair
    raw = two(teacher, student, **FULL)
    with gateway(raw) as running:
        assert who(send(running.url, ASK))[0] == "student"
        assert running.wait_for(1)[0][1].features == {}
    assert "logprobs" not in student.bodies[0]
    assert gate_of(parse_as(GatewayFile, raw, "test")) is None


def test_features_of_a_label_are_of_all_classes() -> None:
    def label(*p: float) -> dict[str, Any]:
        body = chat_body("a", math.log(p[0]))
        top = [{"token": str(n), "logprob": math.log(one)} for n, one in enumerate(p)]
        body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = top
        return body

    found = answer_features(label(0.7, 0.2, 0.1))
    assert found["logit"] == pytest.approx(math.log(0.7 / 0.3))
    assert found["margin"] == pytest.approx(math.log(0.7 / 0.2))
    assert found["certainty"] == pytest.approx(
        sum(p * math.log(p) for p in (0.7, 0.2, 0.1)), abs=1e-9
    )
    # Two of many tokens of a text are no belief over classes.
    assert "certainty" not in answer_features(label(0.5, 0.2))
    assert answer_features({"choices": [{"logprobs": {"content": [{"logprob": "x"}]}}]}) == {}
    assert answer_features({}) == {}
    assert texts_of(b"{") == ([], (0, 0))
    assert texts_of(json.dumps(chat_body("a")).encode()) == (["a"], (10, 2))
