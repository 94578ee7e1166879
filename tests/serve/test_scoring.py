"""Pairs scored on their way: by a task's scorer, by a judge behind an upstream, by corrections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from gateway_servers import ADMIN, Model, chat_body, gateway, models, says, two
from scipy.special import ndtri
from test_gateway_http import send

from gateway_stores import call_of, served_of
from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.answer_text import answer_text, asked
from stillhouse.serve.corrected import CorrectedScoring
from stillhouse.serve.evidence_sections import EvidenceSection
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.in_memory import MemoryLog
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.scoring import Scoring
from stillhouse.serve.stored_calls import outcomes_since
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

LABELS = {"kind": "classification", "labels": ["fresh", "rotten"]}
SCORER = {"source": "scorer", "task": LABELS, "unit_hours": 0}
KEY = {"authorization": f"Bearer {ADMIN}"}
ASK = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.serve.controller.EVERY_S", 0.1)
    monkeypatch.setattr("stillhouse.serve.server.REFRESH_S", 0.1)


def judge(**more: Any) -> dict[str, Any]:
    task = {"kind": "generation"}
    return {"source": "judge", "task": task, "judge": {"upstream": "judge", **more}}


def experiment(evidence: dict[str, Any], **more: Any) -> dict[str, Any]:
    stages = [{"kind": "shadow", "min_requests": 1}, {"kind": "full"}]
    return {"stages": stages, "teacher_only": 0, "evidence": evidence, **more}


def shown(url: str) -> dict[str, Any]:
    got = send(url, None, "/experiments/t", KEY, "GET")
    assert got.status == 200
    return dict(got.json)


def until(what: Callable[[], bool], seconds: float = 15.0) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_gateway_scores_its_shadow_answers_and_shows_what_it_knows() -> None:
    teacher, student = Model(says("fresh")), Model(says("Fresh."))
    with models(teacher, student):
        raw = two(teacher, student, experiment=experiment(SCORER))
        with gateway(raw) as running:
            assert shown(running.admin)["words"].startswith("no answer of this stage")
            for _ in range(3):
                assert send(running.url, ASK).status == 200
            until(lambda: len(student.bodies) == 3)
            student.answer = says("rotten")
            assert send(running.url, ASK).status == 200
            # the loop looks every few seconds
            until(lambda: (shown(running.admin)["numbers"] or {}).get("values") == 4, 20)
            found = shown(running.admin)["numbers"]
    assert (found["student"], found["teacher"], found["requests"]) == (0.75, 1.0, 4)


def test_a_student_takes_over_by_itself() -> None:
    """Real servers, real requests: from shadow to full on agreement with the teacher."""
    teacher, student = Model(says("fresh")), Model(says("fresh"))
    stages = [
        {"kind": "shadow", "min_requests": 20},
        {"kind": "canary", "share": 0.5, "min_requests": 20},
        {"kind": "full"},
    ]
    with models(teacher, student):
        plan = experiment(SCORER, stages=stages, sticky="request")
        with gateway(two(teacher, student, experiment=plan)) as running:
            for _ in range(1500):
                assert send(running.url, ASK).status == 200
                if running.states.get("t").kind == "full":
                    break
            found = shown(running.admin)
            before = len(teacher.bodies)
            for _ in range(5):
                send(running.url, ASK)
            assert len(teacher.bodies) == before
    assert [(one["action"], one["to_stage"]) for one in found["decisions"]] == [
        ("advance", 1),
        ("advance", 2),
    ]
    assert all(one["numbers"]["p_better"] <= 0.05 for one in found["decisions"])


def test_shadow_answers_that_would_have_given_way_say_so() -> None:
    teacher, student = Model(says("fresh")), Model(says("rotten", logprob=-3))
    with models(teacher, student):
        raw = two(teacher, student, experiment=experiment(SCORER), fallback={"threshold": 0.5})
        with gateway(raw) as running:
            send(running.url, ASK)
            until(lambda: (shown(running.admin)["numbers"] or {}).get("values") == 1, 20)
            found = shown(running.admin)["numbers"]
    assert (found["student"], found["teacher"], found["bare"]) == (1.0, 1.0, 0.0)


def test_the_admin_shows_an_experiment_to_nobody_else() -> None:
    teacher = Model(says("fresh"))
    with models(teacher), gateway(two(teacher, None)) as running:
        bad = send(running.admin, None, "/experiments/t", {}, "GET")
        unknown = send(running.admin, None, "/experiments/x", KEY, "GET")
        assert (bad.status, unknown.status) == (401, 404)
        assert shown(running.admin)["plan"] is None


def preferring(word: str) -> Any:
    """A judge that prefers the answer with a word in it, wherever it stands, and can say so."""

    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = body["messages"][-1]["content"]
        first, second = (part.split("-----")[2] for part in text.split("ANSWER ")[1:3])
        said = "tie" if (word in first) == (word in second) else "A" if word in first else "B"
        return web.json_response(chat_body(said))

    return answer


def judged(raw: dict[str, Any], asker: Model) -> dict[str, Any]:
    raw["upstreams"]["judge"] = {"base_url": asker.url, "model": "judge-1"}
    return raw


def test_a_judge_is_asked_in_both_orders_and_its_preferences_are_scores() -> None:
    teacher, student, asker = Model(says("good")), Model(says("bad")), Model(preferring("good"))
    with models(teacher, student, asker):
        raw = judged(two(teacher, student, experiment=experiment(judge())), asker)
        with gateway(raw) as running:
            inner = running.log._log  # type: ignore[attr-defined]
            # of the same text as the teacher's nobody is asked
            for number, text in enumerate(["bad", "good too", "good"]):
                student.answer = says(text)
                send(running.url, ASK)
                until(lambda done=2 * number + 2: len(inner.outcomes) == done)  # type: ignore[misc]
            scores = [(one.kind, one.score) for one in inner.outcomes]
    assert scores == [("judge", one) for one in (1.0, 0.0, 0.5, 0.5, 0.5, 0.5)]
    assert len(asker.bodies) == 4
    assert "big-1" not in json.dumps(asker.bodies)


def gold(path: Path, good: str, bad: str, number: int = 30) -> str:
    lines = [
        {"text": f"question {n}", "answer": f"{word} {n}", "good": word == good}
        for n in range(number)
        for word in (good, bad)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("likes", "trusted"), [("good", True), ("bad", False), ("none", False)])
def test_a_judge_is_tested_on_its_gold_set_first(tmp_path: Path, likes: str, trusted: bool) -> None:
    teacher, student, asker = Model(says("good")), Model(says("bad")), Model(preferring(likes))
    with models(teacher, student, asker):
        section = judge(gold=gold(tmp_path / "gold.jsonl", "good", "bad"))
        raw = judged(two(teacher, student, experiment=experiment(section)), asker)
        with gateway(raw) as running:
            send(running.url, ASK)
            until(lambda: len(asker.bodies) >= 60)
            if trusted:
                inner = running.log._log  # type: ignore[attr-defined]
                until(lambda: len(inner.outcomes) == 2)
            else:
                until(lambda: "better than chance" in shown(running.admin)["words"], 20)
            trust = running.log.trust("t")  # type: ignore[attr-defined]
    assert getattr(trust, "tested", False) is trusted
    if trusted:
        # Tango's bound of 30 pairs without a mistake, one-sided at a fifth of alpha
        z2 = float(ndtri(0.99)) ** 2
        assert trust.net == pytest.approx((30 - z2) / (30 + z2), abs=1e-6)


def test_a_gold_set_that_cannot_be_read_is_said_and_nothing_else_breaks(tmp_path: Path) -> None:
    teacher, student, asker = Model(says("good")), Model(says("bad")), Model(preferring("good"))
    with models(teacher, student, asker):
        section = judge(gold=str(tmp_path / "none.jsonl"))
        raw = judged(two(teacher, student, experiment=experiment(section)), asker)
        with gateway(raw) as running:
            assert send(running.url, ASK).status == 200
            until(lambda: "gold set" in shown(running.admin)["words"], 20)
    assert not asker.bodies


def scoring(**evidence: Any) -> tuple[Scoring, MemoryLog]:
    file = parse_as(
        GatewayFile,
        {
            "upstreams": {"big": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}},
            "tasks": {
                "reviews": {
                    "teacher": "big",
                    "student": "big",
                    "experiment": {"evidence": SCORER | evidence},
                }
            },
        },
        "test",
    )
    log = MemoryLog()
    return Scoring(log, file.tasks), log


def answers(number: int, text: str | None, **fields: Any) -> tuple[Any, Any]:
    response = None if text is None else {"choices": [{"message": {"content": text}}]}
    error = "down" if text is None else None
    told = served_of(number, arm="shadow", error=error, **fields)
    return call_of(number, id=told.id, response=response, error=error), told


def shadow(number: int, text: str | None) -> tuple[Any, Any]:
    return answers(number, text, id=f"r{number}-s", shadow_of=f"r{number}", variant="student")


def test_what_gave_no_answer_or_no_label_scores_nothing() -> None:
    scores, log = scoring()
    for number, (teacher, student) in enumerate(
        [("fresh", "fresh"), ("fresh", None), ("what?", "what?"), ("fresh", "rotten")]
    ):
        scores.offer(*answers(number, teacher))
        scores.offer(*shadow(number, student))
    scores.offer(*answers(9, "fresh"))  # not shadowed
    scores.offer(*shadow(8, "fresh"))  # its teacher's answer is not known any more
    asyncio.run(scores.flush())
    found = {one.request: one.score for one in log.outcomes}
    assert found == {
        "r0": 1.0,
        "r0-s": 1.0,
        "r1": 1.0,
        "r1-s": 0.0,
        "r2": 0.0,
        "r2-s": 0.0,
        "r3": 1.0,
        "r3-s": 0.0,
    }
    assert len(log.calls) == 10


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.serve.scoring.REMEMBERED", 3)
    monkeypatch.setattr("stillhouse.serve.scoring.WAITING", 2)
    scores, log = scoring()
    for number in range(5):
        scores.offer(*answers(number, "fresh"))
    for number in range(5):
        scores.offer(*shadow(number, "fresh"))
    asyncio.run(scores.flush())
    assert {one.request for one in log.outcomes} >= {"r3", "r4"}
    assert "r0" not in {one.request for one in log.outcomes}


def test_corrected_answers_are_what_both_are_measured_by(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/x.db")
    log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None)
    for number, (teacher, student) in enumerate([("fresh", "rotten"), ("fresh", "fresh")]):
        log.offer(*answers(number, teacher))
        log.offer(*shadow(number, student))
    assert log.flush(10)
    section = EvidenceSection(**{**SCORER, "reference": "corrected"})
    assert section.task is not None
    corrections = CorrectedScoring(engine, log, section.task)
    log.outcome(Outcome(request="r0", kind="corrected", score=0.0, corrected="Rotten", at=1.0))
    log.outcome(Outcome(request="r1", kind="feedback", score=0.0, at=1.0))
    for _ in range(2):  # what is scored is not scored again
        corrections(outcomes_since(engine, "reviews", 0.0))
    found = outcomes_since(engine, "reviews", 0.0, {"scorer"})
    assert {one.served.id: one.outcome.score for one in found} == {"r0": 0.0, "r0-s": 1.0}
    CorrectedScoring(engine, log, section.task)(outcomes_since(engine, "reviews", 0.0))
    assert len(outcomes_since(engine, "reviews", 0.0, {"scorer"})) == 2
    log.close()
    engine.dispose()


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ({"choices": [{"message": {"content": "a"}}]}, "a"),
        ({"choices": [{"text": "b"}]}, "b"),
        ({"content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}, "cd"),
        (
            {"choices": [{"message": {"tool_calls": [{"function": {"arguments": '{"x":1}'}}]}}]},
            '{"x":1}',
        ),
        ({"content": [{"type": "tool_use", "input": {"x": 1}}]}, '{"x": 1}'),
        ({"choices": []}, None),
        ({"data": []}, None),
        (None, None),
        ({"choices": [{"message": None}]}, None),
        ({"content": "text"}, None),
    ],
)
def test_the_text_of_an_answer_in_any_shape(response: Any, text: str | None) -> None:
    assert answer_text(response) == text


def test_the_chat_that_was_asked() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    found = asked({"system": "s", "messages": [{"role": "user", "content": parts}]})
    assert [(one.role, one.content) for one in found] == [("system", "s"), ("user", "a")]
    assert asked({"prompt": "p"})[0].content == "p"
    assert asked({"messages": [{"role": "assistant", "content": "x"}]}) == ()
    assert asked({}) == ()
    assert asked({"messages": [{"role": "odd", "content": None}]})[0].role == "user"
