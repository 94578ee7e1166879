"""Cycles from window to promotion, with doubles: every way they end, and every way they stop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrain_doubles import (
    DAY,
    START,
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
from stillhouse.core.errors import BudgetError, RunFolderError, TeacherError, UserError
from stillhouse.core.forgotten import record_forgotten
from stillhouse.core.live import LiveAnswer
from stillhouse.core.progress import Silent
from stillhouse.retrain import cycle as cycle_module
from stillhouse.retrain import cycle_promote
from stillhouse.retrain.cycle import run_cycle
from stillhouse.retrain.cycle_files import HELD_OUT, NEW, WINDOW
from stillhouse.retrain.cycle_promote import say_apart
from stillhouse.retrain.gateway_admin import GatewayError
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry_records import Entry
from stillhouse.retrain.seams import GatewayStanding

pytestmark = pytest.mark.usefixtures("quick")


def after(day: int) -> Clock:
    return Clock(START + (day + 1) * DAY)


def test_a_first_cycle_promotes_a_student_and_leaves_its_journal(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    cycle = run_cycle(loop, "once")
    assert (cycle.step, cycle.outcome) == ("done", "promoted")
    live = loop.registry.live("mood")
    assert live is not None
    assert live.id == cycle.candidate
    assert live.lineage["cycle"] == 1
    (line,) = loop.files.journal()
    assert line.outcome == "promoted"
    assert line.asked == 30 + 30
    assert line.usd == pytest.approx(60 * USD)
    assert line.scores == {"0001": 1.0}
    assert line.average_forgetting is None
    assert not (loop.files.cycle(1) / WINDOW).exists()


def test_later_cycles_start_from_the_live_student_and_measure_forgetting(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0), *day_of_rows(1), *day_of_rows(2)])
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock)
    students = []
    for day in range(3):
        clock.now = START + (day + 1) * DAY
        assert run_cycle(loop, "once").outcome == "promoted"
        students.append(loop.registry.live("mood"))
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    assert [start is None for start in workshop.starts] == [True, False, False]
    lines = loop.files.journal()
    assert [line.parent for line in lines[1:]] == [students[0].id, students[1].id]
    assert set(lines[2].scores) == {"0001", "0002", "0003"}
    assert lines[2].average_forgetting == 0.0
    assert lines[2].backward_transfer == 0.0
    # Windows follow each other, and half of what was learnt before is replayed.
    assert lines[1].since == lines[0].until
    assert lines[1].replayed == 15
    held = {one.query.last_user_text for number in (1, 2, 3) for one in loop.files.held_out(number)}
    assert not held & {text for texts in workshop.trained for text in texts}
    assert max(workshop.paid.values()) == 1


def test_a_student_that_is_no_better_is_refused_in_words(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0), *day_of_rows(1)])
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock, margin=0.3)
    run_cycle(loop, "once")
    live = loop.registry.live("mood")
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.learns = False
    clock.now = START + 2 * DAY
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "refused"
    assert "student minus teacher is -" in cycle.verdict
    assert "lower bound" in cycle.verdict
    assert loop.registry.get("mood@live").id == live.id
    line = loop.files.journal()[-1]
    # The row of the matrix is that of the student which stays live.
    assert line.scores == line.incumbent_scores
    assert line.live == line.incumbent


def test_other_folders_beside_the_cycles_are_none(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    for name in ("0001.bak", "0002 (copy)", "1", "00001", "3\u00b2", "0004"):
        (loop.files.root / "cycles" / name).mkdir(parents=True)
    (loop.files.root / "cycles" / "0005").write_text("a file")
    assert loop.files.unfinished() is None
    cycle = run_cycle(loop, "once")
    assert (cycle.number, cycle.step) == (1, "done")
    assert loop.files.unfinished() is None
    (loop.files.root / "cycles" / "0001.bak" / "cycle.json").write_text("{")
    assert loop.files.unfinished() is None


def test_an_empty_window_does_nothing(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows([]), after(0))
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "nothing"
    assert "0 usable requests" in cycle.verdict
    assert loop.registry.entries() == []
    assert loop.files.journal()[0].usd == 0


def test_windows_below_the_least_add_up(tmp_path: Path) -> None:
    """Three days of 100 requests, at least 250: the third day's cycle has them all."""
    rows = Rows([one for day in range(3) for one in day_of_rows(day, 100)])
    clock = after(0)
    found = []
    for day in range(3):
        clock.now = START + (day + 1) * DAY
        cycle = run_cycle(loop_of(tmp_path, rows, clock, min_requests=250), "once")
        found.append((cycle.window["usable"], cycle.outcome))
    assert found == [(100, "nothing"), (200, "nothing"), (300, "promoted")]


def test_a_clock_that_went_backwards_is_one_line(tmp_path: Path) -> None:
    clock = after(0)
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), clock)
    run_cycle(loop, "once")
    clock.now -= 10
    with pytest.raises(UserError, match=r"clock: stands 10 s before the end of the last window"):
        run_cycle(loop, "once")


def test_two_at_once_are_impossible(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    with loop.files.locked(), pytest.raises(RunFolderError, match="another retraining"):
        run_cycle(loop, "once")
    assert run_cycle(loop, "once").outcome == "promoted"


def test_a_teacher_that_is_gone_pauses_the_cycle(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    count = 0

    def cut() -> None:
        nonlocal count
        count += 1
        workshop.down = count == 40

    workshop.step = cut
    with pytest.raises(TeacherError, match="no connection"):
        run_cycle(loop, "once")
    state = loop.files.unfinished()
    assert state is not None
    assert state.step == "ask"
    workshop.down = False
    assert run_cycle(loop, "once").outcome == "promoted"
    assert set(workshop.paid.values()) == {1}
    assert loop.files.journal()[0].asked == 60


def test_another_teacher_is_refused_before_much_is_paid(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0), *day_of_rows(1)])
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock)
    run_cycle(loop, "once")
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.revision = "teacher-2"
    paid = workshop.paid.total()
    clock.now = START + 2 * DAY
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "refused"
    assert "teacher-2" in cycle.verdict
    assert "taught by teacher-1" in cycle.verdict
    assert workshop.paid.total() == paid + 2
    assert cycle.usd == pytest.approx(2 * USD)


def test_the_teacher_of_the_first_run_is_the_one_that_is_kept(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.first = ["teacher-0"]
    assert "taught by teacher-0" in run_cycle(loop, "once").verdict


def test_a_fingerprint_of_the_backend_is_no_other_teacher(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    workshop.first = ["teacher-1@fp_abc"]
    assert run_cycle(loop, "once").outcome == "promoted"


def test_the_budget_bounds_what_a_cycle_pays(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), budget_usd=0.7)
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "promoted"
    assert cycle.usd == pytest.approx(0.6)
    other = loop_of(tmp_path / "b", Rows(day_of_rows(0)), after(0), budget_usd=0.5, new=90)
    # Half of it may go to what is held out: 25 requests, which are too few to judge by.
    cycle = run_cycle(other, "once")
    assert cycle.outcome == "nothing"
    assert "25 of them can be held out within the budget" in cycle.verdict
    third = loop_of(tmp_path / "c", Rows(day_of_rows(0)), after(0), budget_usd=0.64, new=90)
    cycle = run_cycle(third, "once")
    assert cycle.outcome == "promoted"
    assert cycle.usd <= 0.64 + 1e-9
    assert cycle.choice["too_dear"] > 0


def test_a_budget_that_prices_do_not_foresee_stops_with_all_kept(tmp_path: Path) -> None:
    rows = Rows(day_of_rows(0, teacher_cost_usd=USD / 10))
    loop = loop_of(tmp_path, rows, after(0), budget_usd=0.45)
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    with pytest.raises(BudgetError):
        run_cycle(loop, "once")
    assert workshop.spent_usd() <= 0.45 + 1e-9


def test_the_budget_of_the_month_is_kept(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0), *day_of_rows(1), *day_of_rows(41)])
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock, monthly_usd=0.6)
    run_cycle(loop, "once")
    clock.now = START + 2 * DAY
    with pytest.raises(UserError, match=r"monthly_usd: is spent: \$0.60"):
        run_cycle(loop, "once")
    clock.now = START + 42 * DAY
    assert run_cycle(loop, "once").outcome == "promoted"


def test_answers_of_the_log_are_not_paid_again(tmp_path: Path) -> None:
    def answered(number: int) -> dict[str, Any]:
        text = row(number, 0.0).messages[0].content
        label = "bad" if number % 2 == 0 else "good"
        return {"text": text, "teacher": LiveAnswer(id="t", text=label, latency_ms=1)}

    rows = Rows([row(number, START + number, **answered(number)) for number in range(120)])
    folder = tmp_path / "loop" / "mood"
    folder.mkdir(parents=True)
    workshop = FakeWorkshop(folder, reuses=True)
    cycle = run_cycle(loop_of(tmp_path, rows, after(0), workshop), "once")
    assert cycle.outcome == "promoted"
    assert workshop.paid.total() == 0
    assert (cycle.asked, cycle.usd) == (0, 0.0)
    # Beliefs are needed: what is learnt is asked, what is held out is known all the same.
    other = FakeWorkshop(tmp_path / "b" / "loop" / "mood")
    cycle = run_cycle(loop_of(tmp_path / "b", rows, after(0), other), "once")
    assert other.paid.total() == 30


def test_forgotten_users_are_in_nothing(tmp_path: Path) -> None:
    rows = Rows(
        [*day_of_rows(0)]
        + [row(n, START + n, topic=1, user="gone" if n % 3 == 0 else "here") for n in range(90)]
    )
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock, new=60)
    record_forgotten(loop.files.root, "gone", "done")
    cycle = run_cycle(loop, "once")
    assert cycle.window["of_forgotten_users"] == 30
    kept = "".join(
        path.read_text(encoding="utf-8")
        for path in loop.files.root.rglob("*.jsonl")
        if path.name != "forgotten.jsonl"
    )
    assert '"here"' in kept
    assert '"gone"' not in kept
    # One that is forgotten later leaves what was kept, and is not replayed.
    record_forgotten(loop.files.root, "here", "done")
    clock.now = START + 3 * DAY
    rows.all += day_of_rows(2)
    run_cycle(loop, "once")
    for name in (NEW, HELD_OUT):
        text = (loop.files.cycle(1) / name).read_text(encoding="utf-8")
        assert '"here"' not in text
    workshop = loop.workshop
    assert isinstance(workshop, FakeWorkshop)
    of_here = {r.messages[0].content for r in rows.all if r.user == "here"}
    assert of_here & set(workshop.trained[0])
    assert not of_here & set(workshop.trained[1])


def test_a_user_forgotten_between_scores_and_gate_leaves_both_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows([row(n, START + n, user="gone" if n % 10 == 0 else "here") for n in range(150)])
    loop = loop_of(tmp_path, rows, after(0), held_out=45)
    gate_step = cycle_module._STEPS["gate"]

    def killed(*_: Any) -> Any:
        raise Killed

    monkeypatch.setitem(cycle_module._STEPS, "gate", killed)
    with pytest.raises(Killed):
        run_cycle(loop, "once")
    record_forgotten(loop.files.root, "gone", "done")
    monkeypatch.setitem(cycle_module._STEPS, "gate", gate_step)
    cycle = run_cycle(loop, "once")
    assert cycle.outcome == "promoted"
    assert 30 <= cycle.checks[0].difference["n"] < 45
    assert cycle.checks[0].difference["n"] == len(loop.files.held_out(1))


def test_a_registry_that_was_tampered_with_stops_it(tmp_path: Path) -> None:
    rows = Rows([*day_of_rows(0), *day_of_rows(1)])
    clock = after(0)
    loop = loop_of(tmp_path, rows, clock)
    run_cycle(loop, "once")
    live = loop.registry.live("mood")
    assert live is not None
    path = tmp_path / "registry" / "objects" / live.digest / "words.json"
    os.chmod(path, 0o644)
    path.write_text("{}", encoding="utf-8")
    clock.now = START + 2 * DAY
    with pytest.raises(UserError, match="other files than were added"):
        run_cycle(loop, "once")


# --- the gateway ---------------------------------------------------------------------------------


def test_the_gateway_decides_and_the_registry_follows(tmp_path: Path) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)
    cycle = run_cycle(loop, "once")
    assert cycle.step == "decide"
    assert cycle.candidate is not None
    assert loop.registry.get(cycle.candidate).stage == "shadow"
    assert loop.registry.live("mood") is None
    gateway.now = GatewayStanding("climbing", "canary", "good so far")
    assert run_cycle(loop, "once").step == "decide"
    assert loop.registry.get(cycle.candidate).stage == "canary"
    gateway.now = GatewayStanding("full", "full", "non-inferior after 900 pairs")
    done = run_cycle(loop, "once")
    assert (done.step, done.outcome) == ("done", "promoted")
    assert loop.registry.live("mood") == loop.registry.get(cycle.candidate)
    assert "900 pairs" in loop.registry.history("mood")[-1].reason
    assert len(gateway.offered) == 1


def test_a_roll_back_at_the_gateway_is_a_refusal(tmp_path: Path) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)
    cycle = run_cycle(loop, "once")
    gateway.now = GatewayStanding("rolled_back", "off", "worse than allowed after 120 pairs")
    done = run_cycle(loop, "once")
    assert done.outcome == "refused"
    assert "worse than allowed after 120 pairs" in done.verdict
    assert cycle.candidate is not None
    assert loop.registry.get(cycle.candidate).stage == "retired"


def test_a_candidate_that_climbs_for_ever_is_withdrawn(tmp_path: Path) -> None:
    gateway, clock = FakeGateway(), after(0)
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), clock, gateway=gateway, wait="5d")
    run_cycle(loop, "once")
    clock.now += 6 * DAY
    done = run_cycle(loop, "once")
    assert done.outcome == "refused"
    assert "after 5d it is still at the stage shadow" in done.verdict
    assert gateway.withdrawn == 1


def test_a_student_made_live_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)
    run_cycle(loop, "once")
    other = tmp_path / "other"
    other.mkdir()
    (other / "words.json").write_text(json.dumps({"x": "good"}), encoding="utf-8")
    entry = loop.registry.add(other, task="mood", lineage={}, metrics={})
    loop.registry.promote(entry.id, reason="by hand", by="somebody")
    gateway.now = GatewayStanding("full", "full", "")
    done = run_cycle(loop, "once")
    assert done.outcome == "refused"
    assert f"{entry.id} was made live meanwhile" in done.verdict
    # The gateway, which had it at full, is not left apart from the registry.
    ((name, reason),) = gateway.back
    assert (name, "was made live meanwhile" in reason) == (entry.id, True)
    assert f"answers with {entry.id} again" in loop.files.journal()[-1].verdict
    assert loop.registry.live("mood") == loop.registry.get(entry.id)


def by_hand(loop: Loop, root: Path) -> Entry:
    """Somebody makes another student live."""
    (root / "other").mkdir()
    (root / "other" / "words.json").write_text(json.dumps({"x": "good"}), encoding="utf-8")
    entry = loop.registry.add(root / "other", task="mood", lineage={}, metrics={})
    return loop.registry.promote(entry.id, reason="by hand", by="somebody")


def test_a_gateway_that_is_away_or_refuses_is_not_forgotten(tmp_path: Path) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)
    run_cycle(loop, "once")
    live = by_hand(loop, tmp_path)
    gateway.now = GatewayStanding("full", "full", "")
    standing = gateway.standing
    asked = []

    def once(task: str, name: str) -> GatewayStanding:
        asked.append(name)
        gateway.away = len(asked) > 1
        return standing(task, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "standing", once)
        with pytest.raises(GatewayError, match="refuses connections"):
            run_cycle(loop, "once")
    assert (loop.files.journal(), gateway.back) == ([], [])
    gateway.away, gateway.refuses = False, "gateway: status 422: path must be below a root"
    done = run_cycle(loop, "once")
    assert (done.step, done.outcome) == ("done", "refused")
    assert "the gateway still answers with it (gateway: status 422" in done.verdict
    assert "stillhouse registry promote REF --loop" in done.verdict
    assert loop.registry.get("mood@live").id == live.id


def test_a_gateway_and_a_registry_that_are_apart_are_told_of(tmp_path: Path) -> None:
    gateway, said = FakeGateway(), list[str]()

    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    loop = loop_of(tmp_path, Rows([*day_of_rows(0), *day_of_rows(1)]), after(0), gateway=gateway)
    loop = replace(loop, progress=Told())
    first = run_cycle(loop, "once").candidate
    assert first is not None
    gateway.now = GatewayStanding("full", "full", "")
    run_cycle(loop, "once")
    live = by_hand(loop, tmp_path)
    assert not [one for one in said if "the gateway answers with" in one]
    clock = loop.clock
    assert isinstance(clock, Clock)
    for answers, away, lines in ((first, True, 0), (live.id, False, 0), (first, False, 1)):
        clock.now += DAY
        gateway.answers, gateway.away = answers, away
        said.clear()
        say_apart(loop)
        assert len(said) == lines
    assert f"answers with {first}, the registry's live student is {live.id}" in said[0]
    clock.now += DAY
    said.clear()
    run_cycle(loop, "once")
    assert "the gateway answers with" in said[0]


def test_a_candidate_offered_by_a_run_that_was_killed_is_withdrawn_when_refused(
    tmp_path: Path,
) -> None:
    gateway = FakeGateway()
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0), gateway=gateway)
    offer = gateway.offer

    def killed(*given: Any) -> None:
        offer(*given)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway, "offer", killed)
        with pytest.raises(Killed):
            run_cycle(loop, "once")
    by_hand(loop, tmp_path)
    done = run_cycle(loop, "once")
    assert (done.outcome, gateway.withdrawn) == ("refused", 1)
    assert "it was withdrawn from the gateway" in done.verdict


def test_a_student_made_live_at_the_last_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(tmp_path, Rows(day_of_rows(0)), after(0))
    other = tmp_path / "other"
    other.mkdir()
    (other / "words.json").write_text(json.dumps({"x": "good"}), encoding="utf-8")
    entry = loop.registry.add(other, task="mood", lineage={}, metrics={})
    look = cycle_promote._still_against_the_live_one
    looks: list[str] = []

    def look_then_lose(loop: Any, cycle: Any) -> None:
        look(loop, cycle)
        looks.append(cycle.step)
        if cycle.step == "decide":
            loop.registry.promote(entry.id, reason="by hand", by="somebody")

    monkeypatch.setattr(cycle_promote, "_still_against_the_live_one", look_then_lose)
    done = run_cycle(loop, "once")
    assert looks == ["offer", "decide"]
    assert f"{entry.id} was made live meanwhile" in done.verdict
    live = loop.registry.live("mood")
    assert live is not None
    assert live.id == entry.id


# --- kills ---------------------------------------------------------------------------------------


def _run_until_done(loop_again: Callable[[], Any]) -> Any:
    for _ in range(400):
        try:
            return run_cycle(loop_again(), "once")
        except Killed:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_killed_at_any_write_it_goes_on_and_pays_nothing_twice(
    tmp_path: Path, gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `gap`-th rename of a finished file into place is followed by a kill, for ever."""
    rows = Rows([*day_of_rows(0, 100), *day_of_rows(1, 100)])
    clock, whole = after(0), tmp_path / "whole"
    plain = loop_of(whole, rows, clock)
    for day in (0, 1):
        clock.now = START + (day + 1) * DAY
        run_cycle(plain, "once")

    folder = tmp_path / "killed" / "loop" / "mood"
    folder.mkdir(parents=True)
    workshop = FakeWorkshop(folder)
    replace, count, alive = os.replace, 0, False

    def killing(source: Any, target: Any) -> None:
        nonlocal count, alive
        replace(source, target)
        count += Path(target).name != "paid.json"
        if count % gap == 0 and alive:
            alive = False
            raise Killed

    monkeypatch.setattr(os, "replace", killing)

    def again() -> Any:
        nonlocal alive
        alive = count < 50  # a gap of one would never let two writes pass
        return loop_of(tmp_path / "killed", rows, clock, workshop)

    for day in (0, 1):
        clock.now = START + (day + 1) * DAY
        _run_until_done(again)
    monkeypatch.setattr(os, "replace", replace)
    killed = loop_of(tmp_path / "killed", rows, clock, workshop)
    assert killed.files.journal() == plain.files.journal()
    assert set(workshop.paid.values()) == {1}
    assert [e.id for e in killed.registry.entries()] == [e.id for e in plain.registry.entries()]
    assert killed.registry.live("mood").id == plain.registry.live("mood").id  # type: ignore[union-attr]
    assert killed.registry.verify() == []
