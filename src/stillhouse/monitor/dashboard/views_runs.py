"""Runs with their learning curves, and the frontier of quality against cost.

Knows no file: asks for what was read.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.evaluate.fallback_frontier import FallbackFrontier
from stillhouse.evaluate.studies import FrontierStudy
from stillhouse.monitor.dashboard.charts import Chart, Colour, Level, Series, chart
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.shown import RunShown
from stillhouse.monitor.dashboard.sources import Sources


class Runs:
    """Their pages."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._from, self._pages = sources, pages

    def listed(self, request: Request) -> Response:
        """All runs."""
        runs = [] if self._from.runs is None else self._from.runs.listed()
        return self._pages.html(request, "runs.html", here="runs", runs=runs)

    def run(self, request: Request) -> Response:
        """One run."""
        name = request.query_params.get("name", "")
        found = None if self._from.runs is None else self._from.runs.run(name)
        if found is None:
            return self._pages.html(
                request,
                "message.html",
                404,
                here="runs",
                title="No such run",
                text="It may have been deleted; the list of runs has those that are there.",
            )
        charts = [one for one in curves(found) if one is not None]
        return self._pages.html(request, "run.html", here="runs", run=found, charts=charts)

    def frontier(self, request: Request) -> Response:
        """Quality against cost."""
        part = self._from.frontiers
        studies = {} if part is None else part.studies()
        fallbacks = {} if part is None else part.fallbacks()
        return self._pages.html(
            request,
            "frontier_page.html",
            here="frontier",
            studies=[(name, one, study_chart(one)) for name, one in studies.items()],
            fallbacks=[(name, one, fallback_chart(one)) for name, one in fallbacks.items()],
        )


def curves(run: RunShown) -> list[Chart | None]:
    """Learning curves of one run."""

    def line(name: str, colour: Colour, field: str) -> Series:
        points = [
            (float(row.step), float(value))
            for row in run.history
            if (value := getattr(row, field)) is not None
        ]
        return Series(name, colour, points)

    looks = run.course.looks if run.course is not None else ()
    return [
        chart(
            "Loss and held-out divergence",
            [
                line("training loss", "quiet", "loss"),
                line("held-out divergence, nats", "student", "held_out_divergence"),
                line("held-out cross-entropy, nats", "teacher", "held_out_cross_entropy"),
            ],
            x="optimizer step",
            y="nats",
        ),
        chart(
            "Held-out agreement with the teacher",
            [
                line("held-out agreement", "student", "held_out_agreement"),
                Series(
                    "accuracy where the truth is known",
                    "pass",
                    [(float(o.step), o.accuracy) for o in looks if o.accuracy is not None],
                ),
                Series(
                    "the teacher's mistakes that are copied",
                    "fail",
                    [
                        (float(o.step), o.agreement_on_mistakes)
                        for o in looks
                        if o.agreement_on_mistakes is not None
                    ],
                ),
            ],
            x="optimizer step",
            y="share",
            y_kind="share",
        ),
    ]


def study_chart(study: FrontierStudy) -> Chart | None:
    """Score against USD per 1,000 queries; where no cost is known, against parameters."""
    priced = all(one.usd_per_1k for one in study.students)
    dots = [
        (float((one.usd_per_1k if priced else one.parameters) or 0), one.score, one.name)
        for one in study.students
    ]
    dots = [one for one in dots if one[0] > 0]
    series = [
        Series(
            "students",
            "student",
            [(x, score.estimate) for x, score, _ in dots],
            band=[(x, score.low, score.high) for x, score, _ in dots],
            dots=True,
            labels=[name for _, _, name in dots],
        )
    ]
    x = study.teacher_usd_per_1k if priced else study.teacher_parameters
    if x:
        t = study.teacher
        series.append(
            Series(
                "teacher",
                "teacher",
                [(float(x), t.estimate)],
                band=[(float(x), t.low, t.high)],
                dots=True,
                labels=[study.teacher_name],
            )
        )
    return chart(
        f"{study.metric} against {'cost' if priced else 'parameters'}",
        series,
        x="USD per 1,000 queries" if priced else "parameters",
        y=study.metric,
        x_kind="log",
        y_kind="share",
        levels=[Level("teacher less margin", study.teacher.estimate - study.margin, "fail")],
    )


def fallback_chart(found: FallbackFrontier) -> Chart | None:
    """Quality of student and teacher together against their cost, threshold by threshold."""
    points = sorted(found.points, key=lambda one: one.cost_per_1000)
    return chart(
        "Quality of the pair against its cost, by threshold",
        [
            Series(
                "pair",
                "student",
                [(one.cost_per_1000, one.quality.estimate) for one in points],
                band=[(one.cost_per_1000, one.quality.low, one.quality.high) for one in points],
            )
        ],
        x="USD per 1,000" if found.unit == "usd" else "teacher answers per 1,000",
        y=found.metric,
        y_kind="share",
        levels=[Level("teacher", found.teacher.estimate, "teacher")],
    )
