"""One check of one task: judges the windows that are complete, and raises and delivers alerts.

A window is judged once: its report, its alerts and the state are committed together (`state`), so
that the next check goes on where one was killed. What cannot be had (canaries, a channel) becomes a
finding, and the rest goes on. Knows the parts; computes no figure itself.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from stillhouse.core.live import LiveRow, LiveRows
from stillhouse.monitor.alerts import Source, Span, drift_findings, judge_findings
from stillhouse.monitor.baselines import Baselines, RunData
from stillhouse.monitor.canaries import Replay
from stillhouse.monitor.data_checks import CLOCK_SLACK_S, of_clocks, of_silence, problem
from stillhouse.monitor.delivery import Channel, deliver_all
from stillhouse.monitor.drift import detect
from stillhouse.monitor.drift_records import DriftReport, Embed, Observation
from stillhouse.monitor.gauges import gauges, write_gauges
from stillhouse.monitor.judge import judge
from stillhouse.monitor.pools import RANDOM, Kept, Setting
from stillhouse.monitor.records import Alert, Finding, Severity, WindowReport
from stillhouse.monitor.samples import main_student
from stillhouse.monitor.state import Past, Place, Undelivered, WatchState
from stillhouse.monitor.striking import gone, placed, strike_canaries, without_texts
from stillhouse.monitor.windows import HOUR_S, Window, windows

DAY_S: Final = 86_400.0
AHEAD_MOST: Final = 1000
# Drift looks at inputs against nothing where there is no reference: canaries alone are tested.
NOTHING: Final = (Observation(id="-", at=0.0),)


class Watched(NamedTuple):
    """A task that is watched, and all that is needed for it.

    `replay` asks the canaries again, given the number of the replay; `None`: there are none.
    `held_out` are the ids of the run's samples, which canaries may be of.
    """

    setting: Setting
    rows: LiveRows
    place: Place
    run: RunData | None = None
    embed: Embed | None = None
    language: Callable[[str], str | None] | None = None
    channels: Sequence[Channel] = ()
    replay: Callable[[int], Replay] | None = None
    held_out: frozenset[str] | None = None


class Checked(NamedTuple):
    """What a check did. `severity` is the worst of what holds now, alerted again or not; `more`:
    windows are left for the next check."""

    task: str
    reports: list[WindowReport]
    alerts: list[Alert]
    severity: Severity | None
    undelivered: int
    more: bool


def check(watched: Watched, now: float) -> Checked:
    """Judge all complete windows since the last check.

    Args:
        now: Unix seconds.

    Raises:
        RunFolderError: another check is at work on the task, or the folder cannot be written.
        StillhouseError: the log cannot be read.
    """
    with watched.place.locked():
        return _Check(watched, now).run()


class _Check:
    """A check at work; the folder's lock is held."""

    def __init__(self, watched: Watched, now: float) -> None:
        self._w, self._now = watched, now
        self._section = watched.setting.section
        self._name = watched.setting.name
        self._state = watched.place.load()
        self._base = Baselines(watched.setting, watched.rows, watched.run, watched.language)
        self._reports: list[WindowReport] = []
        self._alerts: list[Alert] = []
        self._seen: set[str | None] = set()
        self._replay: Replay | None = None

    def run(self) -> Checked:
        strike_canaries(self._w.place.root, self._name, self._w.rows, self._w.held_out)
        earlier = self._base.earlier(self._state.past)
        problems = self._around(earlier.late)
        self._state = self._state.model_copy(update={"past": earlier.past})
        self._ask_canaries()
        more = self._windows(deque(earlier.kept, maxlen=self._section.window.lookback))
        if self._replay is not None:
            self._canaries_alone(self._replay)
        problems += [problem(cause, told) for cause, told in self._state.canary_problems]
        if any(one.tries for one in self._state.undelivered):
            waiting = len(self._state.undelivered)
            problems.append(problem("undelivered", f"{waiting} alerts wait to be delivered"))
        span = Span(self._name, 0, self._now, self._now)
        # A clock that went back must not be forgotten by the check that noticed it.
        self._commit(span, problems, self._state, "problems")
        self._after()
        return Checked(
            self._name,
            self._reports,
            self._alerts,
            self._state.alerting.severity,
            len(self._state.undelivered),
            more,
        )

    def _around(self, late: int) -> list[Finding]:
        ahead = self._w.rows.rows(self._name, since=self._now + CLOCK_SLACK_S)
        count = sum(1 for _ in itertools.islice(ahead, AHEAD_MOST))
        last = self._w.rows.newest(self._name, 1)
        newest = last[-1].at if last else None
        return [
            *of_clocks(self._now, self._state.checked_at, count, late),
            *of_silence(self._now, newest, self._section.window.silent_hours),
        ]

    # --- canaries -------------------------------------------------------------------------------

    def _ask_canaries(self) -> None:
        section, last = self._section.canaries, self._state.canaries_at
        if section is None or self._w.replay is None:
            return
        if last is not None and last <= self._now < last + section.every_hours * HOUR_S:
            return
        number = self._state.canaries_number + 1
        found = self._w.replay(number)
        update: dict[str, object] = {"canary_problems": found.problems}
        # Without the teacher's answers it is not done: the next check asks for what is missing.
        if found.teacher or not found.problems:
            update |= {"canaries_at": self._now, "canaries_number": number}
            self._replay = found if found.teacher or found.student else None
        self._state = self._state.model_copy(update=update)

    def _canaries_alone(self, replay: Replay) -> None:
        self._replay = None
        if self._section.drift is None:
            return
        drift = self._drift(NOTHING, (), replay, self._state)
        state = self._state.model_copy(update={"persistence": drift.persistence})
        span = Span(self._name, 0, self._now, self._now)
        self._commit(span, self._found(drift, ()), state, "canaries")

    # --- windows --------------------------------------------------------------------------------

    def _windows(self, earlier: deque[Kept]) -> bool:
        """Judge them one by one; whether there are more than one check judges."""
        section, since = self._section.window, self._state.cursor
        until = self._now - section.settle_s
        begin = since if since is not None else self._now - section.first_days * DAY_S
        found = windows(self._w.rows.rows(self._name, begin, until), section, since, until)
        ahead = next(found, None)
        for _ in range(section.per_check):
            if ahead is None:
                return False
            window, ahead = ahead, next(found, None)
            self._one(window, earlier, last=ahead is None)
        return ahead is not None

    def _one(self, window: Window, earlier: deque[Kept], *, last: bool) -> None:
        number = self._state.number + 1
        student, _ = main_student(window.rows)
        state, lost = self._reference_for(student)
        report, kept = judge(
            self._w.setting,
            window,
            number,
            list(earlier),
            reference=self._base.reference(state, student),
            now=self._now,
        )
        earlier.append(kept)
        findings = [*report.findings, *lost]
        replay, by_canaries, drift = None, list[Finding](), None
        reference: tuple[Observation, ...] = ()
        if self._section.drift is not None and window.rows:
            reference = self._base.observations(state, student)
        compared = self._base.compared(state, student) if reference else None
        if compared is None or compared != state.compared:
            begun = state.persistence and state.persistence.begun_anew()
            state = state.model_copy(update={"persistence": begun, "compared": compared})
        if reference:
            if last:
                replay, self._replay = self._replay, None
            drift = self._drift(reference, window.rows, replay, state, student)
            state = state.model_copy(update={"persistence": drift.persistence})
            caused = self._found(drift, window.rows)
            by_canaries = [one for one in caused if replay and one.kind != "input_shift"]
            findings += [one for one in caused if one not in by_canaries]
        report = report.model_copy(
            update={
                "findings": tuple(
                    one.model_copy(update={"examples": ()}) for one in (*findings, *by_canaries)
                ),
                "drift": None if drift is None else without_texts(drift),
            }
        )
        span = Span(self._name, number, window.since, window.until)
        state = self._moved_on(state, window, kept, number)
        self._commit(span, findings, state, "active", report)
        if replay is not None:
            self._commit(span, by_canaries, self._state, "canaries")

    def _reference_for(self, student: str | None) -> tuple[WatchState, list[Finding]]:
        state = self._base.held_for(self._state, student)
        if student in self._seen:
            return state, []
        self._seen.add(student)
        state, lost = self._base.renewed(state, student)
        text = "the log no longer holds the requests of the student's first windows"
        return state, [problem("reference_gone", text)] if lost else []

    def _moved_on(self, state: WatchState, window: Window, kept: Kept, number: int) -> WatchState:
        past = Past(
            number=number,
            since=window.since,
            until=window.until,
            requests=window.requests,
            random=sum(one.population in RANDOM for one in kept.samples.pairs),
            student=kept.student,
        )
        if window.rows:
            state = self._base.grown(state, past)
        lookback = self._section.window.lookback
        recent = (*state.past, past)[-lookback:] if lookback else ()
        return state.model_copy(update={"number": number, "cursor": window.until, "past": recent})

    def _drift(
        self,
        reference: Sequence[Observation],
        rows: Sequence[LiveRow],
        replay: Replay | None,
        state: WatchState,
        student: str | None = None,
    ) -> DriftReport:
        return detect(
            reference,
            self._base.observed(rows),
            self._section.drift,
            embed=self._w.embed,
            teacher_canaries=() if replay is None else replay.teacher,
            student_canaries=() if replay is None else replay.student,
            persistence=state.persistence,
            earlier=lambda count: self._base.before(state, student, count),
        )

    @staticmethod
    def _found(drift: DriftReport, rows: Sequence[LiveRow]) -> list[Finding]:
        times = {row.id: row.at for row in rows}
        return [
            one.model_copy(update={"examples": placed(one.examples, times)})
            for one in drift_findings(drift)
        ]

    # --- what is kept ---------------------------------------------------------------------------

    def _commit(
        self,
        span: Span,
        findings: Sequence[Finding],
        state: WatchState,
        place: Source,
        report: WindowReport | None = None,
    ) -> None:
        raised = judge_findings(
            span,
            findings,
            state.alerting,
            section=self._section.alerts,
            persist=self._section.bounds.persist,
            now=self._now,
            place=place,
        )
        waiting = [
            Undelivered(alert=alert.id, channel=channel.name)
            for alert in raised.alerts
            for channel in self._w.channels
        ]
        state = state.model_copy(
            update={
                "alerting": raised.state,
                "undelivered": (*state.undelivered, *waiting),
                "checked_at": self._now,
            }
        )
        reports = [] if report is None else [report]
        self._state = self._w.place.commit(state, reports, raised.alerts)
        self._reports += reports
        self._alerts += raised.alerts

    def _after(self) -> None:
        """Deletion, delivery and gauges: what can be done again."""
        place = self._w.place
        place.strike(gone(self._name, self._w.rows, place.alerts()))
        if self._state.undelivered:
            by_id = {alert.id: alert for alert in place.alerts()}
            left = deliver_all(self._w.channels, self._state.undelivered, by_id)
            self._state = self._state.model_copy(update={"undelivered": tuple(left)})
            place.save(self._state)
        newest = self._reports[-1] if self._reports else place.newest_report()
        text = gauges(
            self._name,
            newest,
            severity=self._state.alerting.severity,
            checked_at=self._now,
            undelivered=len(self._state.undelivered),
        )
        write_gauges(place.root, text)
