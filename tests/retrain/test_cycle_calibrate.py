"""A cycle gives its student a gate of its own: what is drawn for it, promised, written and said."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrain_doubles import (
    DAY,
    START,
    TASK,
    USD,
    Clock,
    FakeGateway,
    FakeWorkshop,
    Killed,
    Rows,
    day_of_rows,
    loop_of,
    row,
)
from stillhouse.core.errors import DataError, UserError
from stillhouse.core.forgotten import record_forgotten
from stillhouse.core.progress import Silent
from stillhouse.core.risk_control import least_samples
from stillhouse.core.tasks import GenerationTask
from stillhouse.retrain.cycle import begun, run_cycle
from stillhouse.retrain.cycle_files import CALIBRATION, HELD_OUT, TO_CALIBRATE
from stillhouse.retrain.gateway_admin import GatewayError
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry_gate import gate_of, gate_words
from stillhouse.retrain_loops import look
from stillhouse.serve.gate_file import Calibrator, GateFile, load_gate, save_gate

pytestmark = pytest.mark.usefixtures("quick")
MANY = 600  # requests a day: of 30 to judge and 100 to calibrate by, some are left


def after(day: int) -> Clock:
    return Clock(START + (day + 1) * DAY)


def gate_at(path: Path, **more: Any) -> Path:
    """A gate.json of the student before."""
    own = Calibrator(features=("logit",), means=(0,), scales=(1,), weights=(1,), bias=0, n=10)
    raw = {"calibrator": own, "threshold": 0.9, "coverage": 0.5, "n": 10, "delta": 0.1}
    save_gate(path, GateFile(error=0.1, **{**raw, **more}))
    return path


def gated_loop(root: Path, rows: Rows, clock: Clock, **more: Any) -> Loop:
    """A loop whose gateway.yaml has a calibrator: an error of 10% at delta 10%."""
    path = root / "gate.json"
    if not path.exists():
        gate_at(path)
    fallback = {"held_out": 100, **more.pop("fallback", {})}
    return loop_of(root, rows, clock, calibrator=path, fallback=fallback, **more)


def workshop_of(loop: Loop) -> FakeWorkshop:
    assert isinstance(loop.workshop, FakeWorkshop)
    return loop.workshop


def texts(samples: Any) -> set[str]:
    return {one.query.last_user_text for one in samples}


def test_a_gated_task_gives_its_new_student_a_gate(tmp_path: Path) -> None:
    loop = gated_loop(tmp_path, Rows(day_of_rows(0, MANY)), after(0))
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "promoted", cycle.verdict
    live = loop.registry.live("mood")
    assert live is not None
    # Part of the content-addressed files, as the gateway finds it.
    gate = load_gate(loop.registry.folder(live.id) / "gate.json")
    assert (gate.error, gate.delta) == (0.1, 0.1)
    assert gate.threshold is not None
    assert loop.registry.verify() == []
    assert live.digest == cycle.digest
    assert loop.files.journal()[-1].live == live.digest
    # What came of it is in the report, for machines and for people.
    found = cycle.fallback
    assert found is not None
    assert (found.threshold, found.coverage, found.n) == (gate.threshold, gate.coverage, 100)
    assert f"it answers {100 * gate.coverage:.1f}% alone, from a confidence of" in cycle.verdict
    assert "wrong in at most 10% of that with probability 0.9 (100 held-out" in cycle.verdict
    assert live.metrics["fallback"]["threshold"] == gate.threshold  # type: ignore[index,call-overload]
    line = loop.files.journal()[-1]
    assert (line.fallback, line.promise) == (found, cycle.promise)
    assert line.promise is not None
    assert line.promise.like == "gateway.yaml's calibrator"
    assert gate_words(loop.registry, live) == f"{gate.threshold:.3f}, error 10%"
    # The student was asked once about each set, under the digest that it has with its gate.
    assert loop.files.scores(live.digest, 1) is not None


def test_what_chooses_the_threshold_has_done_nothing_else(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0, MANY), *day_of_rows(1, MANY)])
    clock = after(0)
    loop = gated_loop(tmp_path, rows, clock, new=90)
    seen: list[set[str]] = []
    for day in (0, 1):
        clock.now = START + (day + 1) * DAY
        assert run_cycle(loop, "once").outcome == "promoted"
        seen.append(texts(loop.files.calibration(day + 1)))
    workshop = workshop_of(loop)
    judging = [texts(loop.files.held_out(number)) for number in (1, 2)]
    learnt = {text for some in workshop.trained for text in some}
    for number in (0, 1):
        fits, tests = workshop.calibrated[number]
        assert texts(tests) == seen[number]
        assert len(tests) == 100
        assert not texts(tests) & texts(fits)
        assert not texts(tests) & (judging[0] | judging[1] | learnt)
    # What judged, and what an earlier threshold was chosen on, shapes the confidence.
    assert texts(workshop.calibrated[0].fits) == judging[0]
    assert texts(workshop.calibrated[1].fits) == judging[0] | judging[1] | seen[0]
    assert texts(workshop.calibrated[1].fits[:30]) == judging[1]  # the newest first
    # Who judges is drawn as without a gate.
    plain = loop_of(tmp_path / "plain", rows, after(0), new=90)
    run_cycle(plain, "once")
    assert texts(plain.files.held_out(1)) == judging[0]
    assert plain.files.calibration(1) == []
    assert workshop.paid.total() == len(workshop.paid)


def test_who_is_gated_and_by_whose_promise(tmp_path: Path) -> None:
    rows, clock = Rows(day_of_rows(0, MANY)), after(0)
    ungated = loop_of(tmp_path / "a", rows, clock)
    cycle = run_cycle(ungated, "once")
    assert (cycle.promise, cycle.fallback) == (None, None)
    live = ungated.registry.live("mood")
    assert live is not None
    assert gate_of(ungated.registry, live) is None
    assert gate_words(ungated.registry, live) == "none"
    assert "fallback" not in cycle.verdict

    always = loop_of(tmp_path / "b", rows, clock, fallback={"calibrate": "always", "held_out": 120})
    promise = begun(always, [], "").promise
    assert promise is not None
    assert (promise.error, promise.delta, promise.window, promise.like) == (0.05, 0.05, None, "")
    assert run_cycle(always, "once").outcome == "promoted"
    # From now on the live student has a gate, and the next one is promised the same.
    clock.now += DAY
    later = loop_of(tmp_path / "b", rows, clock)
    promise = begun(later, later.files.journal(), "").promise
    assert promise is not None
    assert promise.like == "the live student's gate.json"
    assert promise.acceptable == 1.0

    never = gated_loop(tmp_path / "c", rows, after(0), fallback={"calibrate": "never"})
    assert begun(never, [], "").promise is None
    other = gated_loop(tmp_path / "d", rows, after(0), fallback={"error": 0.02, "delta": 0.2})
    promise = begun(other, [], "").promise
    assert promise is not None
    assert (promise.error, promise.delta) == (0.02, 0.2)
    gate_at(tmp_path / "d" / "gate.json", source="golden samples of the run")
    other = replace(other, golden=MANY)
    promise = begun(other, [], "").promise
    assert promise is not None
    assert promise.on == "golden"
    assert look(other).plan is not None
    assert look(other).plan.parts.calibrate == []  # type: ignore[union-attr]
    (tmp_path / "d" / "gate.json").write_text("{}")
    with pytest.raises(DataError, match="is no gate"):
        begun(other, [], "")


def test_a_text_needs_a_score_from_which_it_is_acceptable(tmp_path: Path) -> None:
    loop = gated_loop(tmp_path, Rows([]), after(0))
    workshop = workshop_of(loop)
    workshop.task = GenerationTask(kind="generation")  # type: ignore[misc, assignment]
    with pytest.raises(UserError, match=r"retrain.fallback.acceptable: is missing: which rouge"):
        begun(loop, [], "")
    gate_at(tmp_path / "gate.json", acceptable=0.4)
    promise = begun(loop, [], "").promise
    assert promise is not None
    assert (promise.acceptable, promise.window) == (0.4, None)
    assert FakeWorkshop.task is TASK


def test_too_few_requests_say_so_before_anything_is_paid(tmp_path: Path) -> None:
    loop = gated_loop(tmp_path, Rows(day_of_rows(0, 100)), after(0), fallback={"error": 0.05})
    assert "at least 80" in look(loop).said
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "nothing"
    assert least_samples(0.05, 0.1) == 80
    assert "beside the 30 that judge 33 can be held out within the budget: to promise" in (
        cycle.verdict
    )
    assert "an error of 5% with probability 0.9 takes at least 80, of a student that is never" in (
        cycle.verdict
    )
    assert "no student is trained, since without a gate it would answer nothing alone" in (
        cycle.verdict
    )
    assert "\n" not in cycle.verdict
    assert workshop_of(loop).paid.total() == 0
    assert loop.registry.entries() == []


def test_the_budget_is_shared_and_what_is_dear_is_not_passed_over(tmp_path: Path) -> None:
    """Cheaper requests in place of dear ones would be other traffic than is promised for."""
    rows = Rows(day_of_rows(0, MANY))
    loop = gated_loop(tmp_path / "a", rows, after(0), budget_usd=2 * 90 * USD)
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "promoted", cycle.verdict
    assert cycle.choice["calibrate"] == 60
    assert cycle.usd <= 2 * 90 * USD + 1e-9
    dear = [row(n, START + n, teacher_cost_usd=USD if n % 2 else 50 * USD) for n in range(MANY)]
    other = gated_loop(tmp_path / "b", Rows(dear), after(0), budget_usd=2 * 90 * USD)
    cycle = run_cycle(other, "once")
    assert cycle.outcome == "nothing"
    assert "can be held out within the budget: to promise an error of 10%" in cycle.verdict


def test_a_student_that_no_threshold_lets_through_is_refused(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0, MANY), *day_of_rows(1, MANY)])
    clock, told = after(0), list[str]()

    class Told(Silent):
        def say(self, text: str) -> None:
            told.append(text)

    # Loose margins: all else lets it pass.
    loop = gated_loop(tmp_path, rows, clock, margin=0.9, incumbent_margin=0.9, max_forgetting=0.9)
    loop = replace(loop, progress=Told())
    first = run_cycle(loop, "once")
    assert first.outcome == "promoted"
    workshop_of(loop).learns = False
    clock.now += DAY
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "refused"
    assert [check.against for check in cycle.checks if not check.passed] == ["error"]
    assert (
        "no threshold keeps an error of 10% with probability 0.9: 100 held-out requests are "
        in (cycle.verdict)
    )
    assert "about 777 would do (retrain.fallback.held_out); the live student stays" in cycle.verdict
    assert cycle.candidate is None
    assert loop.registry.get("mood@live").id == first.candidate
    assert cycle.fallback is not None
    assert (cycle.fallback.threshold, cycle.fallback.wanted) == (None, 777)
    assert not (loop.files.cycle(2) / "entry" / "gate.json").exists()
    assert load_gate(loop.files.cycle(2) / "calibrate" / "gate.json").threshold is None
    assert sum("window 0002: fallback: no threshold keeps" in one for one in told) == 1


def test_answers_that_the_teacher_did_not_give_may_leave_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = gated_loop(tmp_path, Rows(day_of_rows(0, MANY)), after(0))
    workshop = workshop_of(loop)
    ask = workshop.ask

    def some(folder: Path, queries: Any, limit: float | None) -> Any:
        found = ask(folder, queries, limit)
        kept = dict(list(found.answers.items())[:40])
        return found._replace(answers=kept)

    monkeypatch.setattr(workshop, "ask", some)
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "refused"
    assert "of 100 requests that were to choose a threshold: to promise an error" in cycle.verdict
    assert workshop.trained == []


def test_forgotten_users_choose_no_threshold(tmp_path: Path) -> None:
    rows = Rows([row(n, START + n, user="gone" if n % 3 == 0 else "here") for n in range(MANY)])
    clock = after(0)
    loop = gated_loop(tmp_path, rows, clock)
    run_cycle(loop, "once")
    folder = loop.files.cycle(1)
    for name in (TO_CALIBRATE, CALIBRATION, HELD_OUT):
        assert '"gone"' in (folder / name).read_text(encoding="utf-8")
    record_forgotten(loop.files.root, "gone", "done")
    clock.now += 2 * DAY
    rows.all += day_of_rows(1, MANY)
    run_cycle(loop, "once")
    for name in (TO_CALIBRATE, CALIBRATION, HELD_OUT):
        assert '"gone"' not in (folder / name).read_text(encoding="utf-8")
    gone = {one.messages[0].content for one in rows.all if one.user == "gone"}
    assert not gone & texts(workshop_of(loop).calibrated[1].fits)


def test_the_gateway_may_refuse_a_student_without_a_gate(tmp_path: Path) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)

    def refuses(*_: Any) -> None:
        raise GatewayError("gateway: status 422: it cannot climb: no gate", 422, "no_gate")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "offer", refuses)
        cycle = run_cycle(loop, "once")
    assert cycle.outcome == "refused"
    assert "lets no student climb that has no gate" in cycle.verdict
    assert cycle.candidate is not None
    assert loop.registry.get(cycle.candidate).stage == "retired"


@pytest.mark.parametrize(
    "at", ["calibrate/gate.json", "entry/gate.json", "to_calibrate.jsonl", "calibration.jsonl"]
)
def test_killed_at_any_of_its_writes_the_gate_is_the_same(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(day_of_rows(0, 400))
    plain = gated_loop(tmp_path / "whole", rows, after(0))
    run_cycle(plain, "once")
    root = tmp_path / "killed"
    (root / "loop" / "mood").mkdir(parents=True)
    workshop = FakeWorkshop(root / "loop" / "mood")
    replace_, killed_at = os.replace, list[str]()

    def killing(source: Any, target: Any) -> None:
        replace_(source, target)
        if str(target).endswith(at) and len(killed_at) < 2:
            killed_at.append(str(target))
            raise Killed

    monkeypatch.setattr(os, "replace", killing)
    for _ in range(2):
        with pytest.raises(Killed):
            run_cycle(gated_loop(root, rows, after(0), workshop=workshop), "once")
    done = run_cycle(gated_loop(root, rows, after(0), workshop=workshop), "once")
    monkeypatch.setattr(os, "replace", replace_)
    killed = gated_loop(root, rows, after(0), workshop=workshop)
    assert done.outcome == "promoted"
    assert killed.files.journal() == plain.files.journal()
    assert [e.id for e in killed.registry.entries()] == [e.id for e in plain.registry.entries()]
    assert set(workshop.paid.values()) == {1}
    entry = killed.files.cycle(1) / "entry"
    assert sorted(path.name for path in entry.iterdir()) == ["gate.json", "words.json"]
    assert json.loads((entry / "gate.json").read_text())["threshold"] is not None
