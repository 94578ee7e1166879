"""What a cycle's gate promises and what becomes of it where it cannot: windows that add up, golden
sets that are not there, students that no gate can be fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cycle_calibrate import MANY, after, gate_at, gated_loop, workshop_of

from retrain_doubles import DAY, START, FakeGateway, Rows, day_of_rows, loop_of
from stillhouse.core.errors import UserError
from stillhouse.core.risk_control import least_samples
from stillhouse.retrain.cycle import begun, run_cycle
from stillhouse.retrain_loops import look
from stillhouse.serve.gate_file import load_gate

pytestmark = pytest.mark.usefixtures("quick")


def test_a_golden_promise_without_a_golden_set_is_of_the_window(tmp_path: Path) -> None:
    loop = gated_loop(tmp_path, Rows([]), after(0))
    gate_at(tmp_path / "gate.json", source="golden samples of the run")
    promise = begun(loop, [], "").promise
    assert promise is not None
    assert promise.on == "window"


def test_a_golden_set_too_small_for_its_promise_is_told_before_anything_is_paid(
    tmp_path: Path,
) -> None:
    """One half of it chooses the threshold, so that it takes twice the least."""
    least = least_samples(0.05, 0.1)
    few = {"error": 0.05, "on": "golden"}
    loop = replace(
        gated_loop(tmp_path, Rows(day_of_rows(0, MANY)), after(0), fallback=few),
        golden=2 * least - 1,
    )
    with pytest.raises(UserError, match=rf"fallback.on: .* has {2 * least - 1} rows, one half"):
        run_cycle(loop, "once")
    assert loop.workshop.answers() == 0
    promise = begun(replace(loop, golden=2 * least), [], "").promise
    assert promise is not None
    assert promise.on == "golden"


def test_a_live_student_with_a_gate_wants_the_next_one_to_have_one(tmp_path: Path) -> None:
    """Before anything is paid; the verdict sets what both answer side by side."""
    rows = Rows([*day_of_rows(0, MANY), *day_of_rows(1, MANY)])
    clock = after(0)
    assert run_cycle(gated_loop(tmp_path, rows, clock), "once").outcome == "promoted"
    clock.now += DAY
    never = loop_of(tmp_path, rows, clock, gateway=FakeGateway(), fallback={"calibrate": "never"})
    assert begun(never, never.files.journal(), "").promise is None
    closed = replace(never, climbs_ungated=False)
    with pytest.raises(UserError, match=r"calibrate: is never, and the live student has a gate"):
        run_cycle(closed, "once")
    assert closed.files.unfinished() is None
    loop = loop_of(tmp_path, rows, clock, fallback={"held_out": 100})
    live = loop.registry.live("mood")
    assert live is not None
    coverage = load_gate(loop.registry.folder(live.id) / "gate.json").coverage
    cycle = run_cycle(loop, "once")
    assert cycle.fallback is not None
    assert cycle.fallback.live_coverage == coverage
    assert f"% alone, the live student {coverage:.1%}, from a confidence" in cycle.verdict


def test_windows_too_small_to_calibrate_by_add_up(tmp_path: Path) -> None:
    """A day has a third of what the promise takes: the third day's cycle has it all."""
    rows = Rows([one for day in range(4) for one in day_of_rows(day, 100)])
    clock = after(0)
    loop = gated_loop(tmp_path, rows, clock, fallback={"error": 0.05})
    usable = []
    for day in range(3):
        clock.now = START + (day + 1) * DAY
        cycle = run_cycle(loop, "every")
        assert cycle.since == clock.now - 30 * DAY or cycle.since < START
        usable.append(cycle.window["usable"])
        if cycle.outcome == "promoted":
            break
    assert usable == [100, 200, 300]
    assert cycle.outcome == "promoted", cycle.verdict
    assert [line.keeps_window for line in loop.files.journal()] == [True, True, False]
    # What was used is used: the next window begins where this one ended.
    clock.now += DAY
    assert begun(loop, loop.files.journal(), "").since == START + 3 * DAY


def test_what_is_held_out_follows_the_promise(tmp_path: Path) -> None:
    rows = Rows(day_of_rows(0, 3 * MANY))
    loop = gated_loop(tmp_path / "a", rows, after(0), fallback={"held_out": None, "error": 0.01})
    promise = begun(loop, [], "").promise
    assert promise is not None
    assert promise.held_out == 3 * least_samples(0.01, 0.1) > 300
    loop = gated_loop(tmp_path / "b", rows, after(0), fallback={"held_out": None})
    promise = begun(loop, [], "").promise
    assert promise is not None
    assert promise.held_out == 300
    loop = gated_loop(tmp_path / "c", rows, after(0), fallback={"error": 0.01})
    assert "raise retrain.fallback.held_out, which is 100, or promise less" in look(loop).said


def test_a_gate_that_cannot_be_fitted_ends_the_cycle_and_not_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = gated_loop(tmp_path, Rows(day_of_rows(0, MANY)), after(0))

    def broken(*_: Any) -> Any:
        raise ValueError("every feature must be finite")

    monkeypatch.setattr(workshop_of(loop), "calibrate", broken)
    cycle = run_cycle(loop, "once")
    assert (cycle.step, cycle.outcome) == ("done", "refused")
    assert "no gate can be fitted to the new student: every feature must be finite" in cycle.verdict
    assert loop.files.unfinished() is None
    assert loop.registry.entries() == []
