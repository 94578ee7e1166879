"""Overview, experiment and drift: from sources to templates. Knows no database.

Views are plain functions: Starlette runs them in threads, where sources may block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.monitor.dashboard.charts import Chart, Colour, Level, Series, chart
from stillhouse.monitor.dashboard.overview import HOUR_S, Overview, is_open, money_of, overview
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.shown import ExperimentShown, NumbersShown, WindowShown
from stillhouse.monitor.dashboard.sources import Sources

MONTH_H = 30 * 24
SHOWN_WINDOWS = 60
SHOWN_ALERTS = 20
_FIGURES: tuple[tuple[str, Colour], ...] = (
    ("agreement", "student"),
    ("accuracy", "pass"),
    ("ece", "fail"),
    ("student_share", "quiet"),
)


class Views:
    """Pages of figures.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, sources: Sources, pages: Pages, clock: Callable[[], float]) -> None:
        self._from, self._pages, self._clock = sources, pages, clock

    def overview(self, request: Request) -> Response:
        """The first page."""
        now = self._clock()
        return self._pages.html(
            request,
            "overview.html",
            here="overview",
            found=self._overview(now),
            at=now,
            charts=self._courses_of_money(now),
        )

    def parts(self, base: str) -> Mapping[str, str]:
        """What is sent of the overview as it changes."""
        found = self._overview(self._clock())
        scope = {"root_path": base}
        return {
            name: self._pages.text(scope, f"part_{name}.html", found=found)
            for name in ("numbers", "alerts", "tasks")
        }

    def experiment(self, request: Request) -> Response:
        """One task's experiment."""
        task = self._pages.task(request)
        if not task:
            return self._pages.no_task(request, "experiment")
        found = self._from.experiments.whole(task)
        return self._pages.html(
            request,
            "experiment.html",
            here="experiment",
            task=task,
            found=found,
            actions=actions_of(found),
            charts=[one for one in (sequence(found), scores(found)) if one is not None],
        )

    def drift(self, request: Request) -> Response:
        """Windows and alerts of one task."""
        task = self._pages.task(request)
        if not task:
            return self._pages.no_task(request, "drift")
        watch = self._from.watch
        windows = list(watch.windows(task))[-SHOWN_WINDOWS:] if watch is not None else []
        alerts = list(watch.alerts(task))[-SHOWN_ALERTS:][::-1] if watch is not None else []
        newest = windows[-1] if windows else None
        return self._pages.html(
            request,
            "drift.html",
            here="drift",
            task=task,
            watched=watch is not None,
            windows=windows[::-1],
            newest=newest,
            alerts=[(one, newest is None or is_open(one, newest)) for one in alerts],
            charts=[one for one in (course_of_windows(windows), effects(windows)) if one],
        )

    def _overview(self, now: float) -> Overview:
        return overview(self._from, now)

    def _courses_of_money(self, now: float) -> list[Chart]:
        """What was paid and who answered by the day, of the last 30 days."""
        since = int(now // HOUR_S) - MONTH_H
        known = set(self._from.tasks)
        sums = [one for one in self._from.usage.days(since) if one.task in known]
        money = [
            (hour * HOUR_S, money_of([one for one in sums if one.hour == hour]))
            for hour in sorted({one.hour for one in sums})
        ]
        answered: dict[Colour, dict[int, int]] = {"teacher": {}, "student": {}}
        for one in sums:
            if not one.shadow:
                by = answered[one.variant]
                by[one.hour] = by.get(one.hour, 0) + one.requests
        found = [
            chart(
                "Cost by the day: teacher alone, and as it was",
                [
                    Series("teacher alone", "teacher", [(at, m.teacher_usd) for at, m in money]),
                    Series("as it was", "student", [(at, m.spent_usd) for at, m in money]),
                ],
                x="day (UTC)",
                y="USD",
                x_kind="time",
                y_kind="usd",
            ),
            chart(
                "Requests by the day, by who answered",
                [
                    Series(who, who, [(h * HOUR_S, float(n)) for h, n in sorted(by.items())])
                    for who, by in answered.items()
                ],
                x="day (UTC)",
                y="requests",
                x_kind="time",
                y_kind="count",
            ),
        ]
        return [one for one in found if one is not None]


def sequence(found: ExperimentShown) -> Chart | None:
    """The confidence sequence of the stage that stands: bounds that hold at all looks together."""
    looks = [one for one in found.course if one.since == found.since and one.slack is not None]
    points = [(float(one.requests), one.slack) for one in looks if one.slack is not None]
    band = [
        (float(one.requests), one.low, one.high)
        for one in looks
        if one.low is not None and one.high is not None
    ]
    levels = [Level("at the margin", 0.0, "fail")]
    equal = looks[-1].equal if looks else None
    if equal is not None:
        levels.append(Level("as good as the teacher", equal, "teacher"))
    return chart(
        "Slack of the student's arm: above zero it loses less than the margin",
        [Series("slack", "student", points, band=band)],
        x="requests of this stage",
        y="slack",
        levels=levels,
    )


def scores(found: ExperimentShown) -> Chart | None:
    """Scores of all stages, over time."""

    def line(name: str, colour: Colour, of: Callable[[NumbersShown], float | None]) -> Series:
        points = [(one.at, value) for one in found.course if (value := of(one)) is not None]
        return Series(name, colour, points)

    return chart(
        "Scores over time, all stages",
        [
            line("teacher", "teacher", lambda one: one.teacher),
            line("student with its fallbacks", "student", lambda one: one.student),
            line("student alone", "twin", lambda one: one.bare)._replace(dashed=True),
        ],
        x="time (UTC)",
        y="score",
        x_kind="time",
        y_kind="share",
        levels=[],
    )


def actions_of(found: ExperimentShown) -> list[str]:
    """What may be done by hand now."""
    if not found.has_student or found.kind == "off":
        return []
    actions = ["revive" if found.killed else "kill"]
    if not found.killed and found.stage + 1 < len(found.plan):
        actions.append("approve")
    if found.held:
        actions.append("retry")
    if found.stage > 0:
        actions.append("rollback")
    return actions


def course_of_windows(windows: list[WindowShown]) -> Chart | None:
    """Figures of the windows with their intervals."""
    series = []
    for name, colour in _FIGURES:
        points, band = [], []
        for one in windows:
            figure = one.figure(name)
            if figure is not None and figure.interval is not None:
                points.append((one.until, figure.interval.estimate))
                band.append((one.until, figure.interval.low, figure.interval.high))
        series.append(Series(name.replace("_", " "), colour, points, band=band))
    return chart(
        "Windows: figures with their intervals",
        series,
        x="window's end (UTC)",
        y="share",
        x_kind="time",
        y_kind="share",
    )


def effects(windows: list[WindowShown]) -> Chart | None:
    """Drift tests: effect over the effect that counts."""
    names: dict[str, list[tuple[float, float]]] = {}
    for one in windows:
        for test in one.drift.tests if one.drift is not None else ():
            if test.effect is not None and test.least:
                names.setdefault(test.name, []).append((one.until, test.effect / test.least))
    colours: tuple[Colour, ...] = ("student", "teacher", "pass", "twin", "note", "quiet")
    return chart(
        "Drift: each test's effect, over the effect that counts",
        [
            Series(name.replace("_", " "), colours[number % len(colours)], points)
            for number, (name, points) in enumerate(names.items())
        ],
        x="window's end (UTC)",
        y="times what counts",
        x_kind="time",
        levels=[Level("counts", 1.0, "fail")],
    )
