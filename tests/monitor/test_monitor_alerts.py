"""Alerts: persistence, quiet time, growth, storms; and what an alert says."""

from __future__ import annotations

from typing import Any

from stillhouse.core.loop_monitor import AlertsSection
from stillhouse.core.statistics import Interval
from stillhouse.monitor.alerts import (
    AlertState,
    Span,
    drift_findings,
    judge_findings,
    shortened,
)
from stillhouse.monitor.drift_records import CauseFinding, DriftReport, Example, TestResult
from stillhouse.monitor.records import Alert, Finding

HOUR = 3600.0


def finding(key: str = "fidelity:agreement", **fields: Any) -> Finding:
    values: dict[str, Any] = {
        "key": key,
        "kind": "fidelity",
        "cause": key.partition(":")[2],
        "flagged": True,
        "summary": "agreement is 80%",
        "effect": 0.1,
        "bound": 0.05,
        "interval": Interval(estimate=0.8, low=0.7, high=0.9, n=100),
    }
    return Finding(**(values | fields))


class Course:
    """Windows one after another."""

    def __init__(self, persist: tuple[int, int] = (1, 1), **section: Any) -> None:
        self.section = AlertsSection.model_validate(section)
        self.persist = persist
        self.state = AlertState()
        self.number = 0

    def window(self, *findings: Finding, now: float) -> list[Alert]:
        self.number += 1
        span = Span("reviews", self.number, now - HOUR, now)
        alerts, self.state = judge_findings(
            span, findings, self.state, section=self.section, persist=self.persist, now=now
        )
        return alerts


def test_k_of_m_windows_the_newest_included() -> None:
    course = Course((2, 3))
    said = [
        bool(course.window(finding(flagged=flagged), now=n * 100 * HOUR))
        for n, flagged in enumerate([True, False, False, True, False, True, True, False])
    ]
    assert said == [False, False, False, False, False, True, True, False]
    assert course.state.severity is None  # the newest window is fine


def test_windows_in_which_it_was_not_tested_do_not_count() -> None:
    course = Course((2, 2))
    assert not course.window(finding(), now=0)
    assert not course.window(now=100)
    assert course.state.severity is None
    assert course.window(finding(), now=200)


def test_the_same_cause_is_quiet_unless_it_grew() -> None:
    course = Course(quiet_hours=24, grew=1.5)
    assert course.window(finding(effect=0.1), now=0)
    assert not course.window(finding(effect=0.14), now=HOUR)
    assert course.state.severity == "warning"
    assert course.window(finding(effect=0.16), now=2 * HOUR)
    assert not course.window(finding(effect=0.2), now=3 * HOUR)
    assert course.window(finding(effect=0.2, severity="critical"), now=4 * HOUR)
    assert course.window(finding(effect=0.2, severity="critical"), now=29 * HOUR)
    assert course.window(finding(key="fidelity:other"), now=29.5 * HOUR)


def test_a_clock_that_went_back_silences_nothing_for_ever() -> None:
    course = Course(quiet_hours=24)
    assert course.window(finding(), now=1000 * HOUR)
    assert course.window(finding(), now=HOUR)


def test_a_storm_is_one_alert_and_none_is_lost_count_of() -> None:
    course = Course(most_per_hour=3, quiet_hours=0)
    many = [
        finding(f"fidelity:{n}", severity="critical" if n == 7 else "warning") for n in range(9)
    ]
    alerts = course.window(*many, now=0)
    assert [one.cause for one in alerts] == ["7", "0", "1", "alert_storm"]
    assert alerts[-1].evidence["held_back"] == {"fidelity": 6}
    assert alerts[-1].severity == "warning"  # the critical one was sent by itself
    assert course.window(*many, now=60) == []
    assert course.window(now=120) == []
    later = course.window(now=HOUR + 1)
    assert [one.cause for one in later] == ["alert_storm"]
    assert later[0].evidence["held_back"] == {"fidelity": 9}
    assert course.window(now=2 * HOUR + 2) == []


def test_an_alert_says_cause_evidence_examples_and_what_to_do() -> None:
    course = Course(examples=1, example_chars=20)
    examples = ({"request": "r1", "at": 3.0, "text": "x" * 50}, {"request": "r2"})
    (alert,) = course.window(finding(examples=examples, p_adjusted=0.001), now=9 * HOUR)
    assert alert.evidence["effect"] == 0.1
    assert alert.evidence["interval"] == {"estimate": 0.8, "low": 0.7, "high": 0.9, "n": 100}
    assert alert.evidence["windows"] == [1, 1]
    assert alert.examples == ({"request": "r1", "at": 3.0, "text": "x" * 19 + "…"},)
    assert "retrain" in alert.action
    assert alert.window == (8 * HOUR, 9 * HOUR)
    assert Alert.model_validate_json(alert.to_json()) == alert


def test_the_same_window_gives_the_same_id() -> None:
    first = Course().window(finding(), now=0)
    again = Course().window(finding(), now=50)
    assert first[0].id == again[0].id


def test_a_drift_report_becomes_findings_with_its_causes() -> None:
    test = TestResult(
        name="mmd",
        family="input",
        measure="distance",
        statistic=1,
        p=0.001,
        p_corrected=0.004,
        effect=0.4,
        low=0.3,
        high=0.5,
        least=0.1,
        n_reference=10,
        n_window=10,
        signal=True,
        persists=True,
    )
    cause = CauseFinding(
        cause="input_shift",
        strength=4.0,
        tests=("mmd",),
        summary="other topics",
        action="retrain",
        examples=(Example(id="r1", text="goal", score=1.0),),
    )
    report = DriftReport(
        alarm=True,
        cause="input_shift",
        summary="s",
        action="a",
        evidence={"words": ["goal"]},
        causes=(cause,),
        tests=(test,),
    )
    (found,) = drift_findings(report)
    assert (found.kind, found.severity, found.p_adjusted) == ("input_shift", "warning", 0.004)
    assert found.evidence["words"] == ["goal"]
    assert drift_findings(report.model_copy(update={"alarm": False})) == []


def test_examples_are_cut() -> None:
    section = AlertsSection(examples=2, example_chars=20)
    found = shortened([{"text": "short"}, {"text": "y" * 21}, {"text": "third"}], section)
    assert found == ({"text": "short"}, {"text": "y" * 19 + "…"})
