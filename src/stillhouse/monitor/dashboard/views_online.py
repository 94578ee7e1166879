"""The page of online learning: versions with what their guard saw, what was done, adapters.

Knows no file.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.monitor.dashboard.charts import Chart, Level, Series, chart
from stillhouse.monitor.dashboard.online_files import OnlineShown
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.sources import Sources

SHOWN_EVENTS: Final = 60
SHOWN_ADAPTERS: Final = 200
STEPS: Final = ("accept", "hold", "refuse")


class OnlineViews:
    """One page."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._from, self._pages = sources, pages

    def page(self, request: Request) -> Response:
        """One task's online learning."""
        task = self._pages.task(request)
        if not task:
            return self._pages.no_task(request, "online")
        part = self._from.online
        found = None if part is None else part.online(task)
        adapters = () if found is None else found.adapters
        return self._pages.html(
            request,
            "online.html",
            here="online",
            task=task,
            kept=part is not None,
            found=found,
            versions=() if found is None else found.versions[::-1],
            events=() if found is None else found.events[::-1][:SHOWN_EVENTS],
            adapters=sorted(adapters, key=lambda one: -one.made_at)[:SHOWN_ADAPTERS],
            used=sum(one.refused is None for one in adapters),
            charts=[] if found is None else [one for one in (course(found),) if one is not None],
        )


def course(found: OnlineShown) -> Chart | None:
    """What each step's new version gained on the guard's rows."""
    steps = [
        (one.at, one.guard.difference)
        for one in found.events
        if one.what in STEPS and one.guard.difference is not None
    ]
    points = [(at, d.estimate) for at, d in steps if d is not None]
    band = [(at, d.low, d.high) for at, d in steps if d is not None]
    return chart(
        "Steps: agreement on the guard set, new version less the live one",
        [Series("new less live", "student", points, band=band)],
        x="time (UTC)",
        y="difference",
        x_kind="time",
        levels=[Level("as the live one", 0.0, "quiet")],
    )
