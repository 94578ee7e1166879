"""The traffic explorer: requests with teacher's and student's answers side by side.

Texts are shown as they are stored (redacted), and escaped. Knows no database.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from stillhouse.core.live_pages import Asked, Place
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.sources import Sources

PAGE: Final = 25
LONGEST: Final = 200  # of an id or a pseudonym
SHOWN_CHARS: Final = 20_000  # of one text


class Filters(NamedTuple):
    """What the form holds, as it was written."""

    task: str
    variant: str
    user: str
    id: str
    below: str
    differing: bool

    def query(self, after: Place | None = None) -> str:
        """The address's query."""
        found = {
            name: value
            for name, value in zip(self._fields, self, strict=True)
            if value not in ("", False)
        }
        if self.differing:
            found["differing"] = "1"
        if after is not None:
            found |= {"at": repr(after.at), "after": after.id}
        return urlencode(found)


class Traffic:
    """Its page."""

    def __init__(self, sources: Sources, pages: Pages) -> None:
        self._from, self._pages = sources, pages

    def page(self, request: Request) -> Response:
        """Some requests."""
        query = request.query_params
        told = {name: query.get(name, "").strip()[:LONGEST] for name in Filters._fields[:-1]}
        filters = Filters(**told, differing=query.get("differing") == "1")
        asked, problem = _asked(filters, self._pages.tasks)
        found = None
        if asked is not None:
            found = self._from.traffic.page(asked, _place(request), PAGE)
        older = None
        if found is not None and found.next is not None:
            older = filters.query(found.next)
        return self._pages.html(
            request,
            "traffic.html",
            400 if problem else 200,
            here="traffic",
            filters=filters,
            problem=problem,
            found=found,
            older=older,
            most=SHOWN_CHARS,
        )


def _asked(filters: Filters, tasks: tuple[str, ...]) -> tuple[Asked | None, str]:
    """What is wanted, or what is wrong with it."""
    below = None
    if filters.below:
        try:
            below = float(filters.below)
        except ValueError:
            below = math.nan
        if not 0 <= below <= 1:
            return None, "confidence below: give a number from 0 to 1"
    if filters.task and filters.task not in tasks:
        return None, f"task: there are {', '.join(tasks)}"
    variant: Literal["teacher", "student"] | None = None
    if filters.variant == "teacher":
        variant = "teacher"
    elif filters.variant == "student":
        variant = "student"
    elif filters.variant:
        return None, "answered by: teacher or student"
    if "\0" in filters.user or "\0" in filters.id:
        return None, "user and id hold no NUL"
    return (
        Asked(
            task=filters.task or None,
            variant=variant,
            user=filters.user or None,
            id=filters.id or None,
            below=below,
            differing=filters.differing,
        ),
        "",
    )


def _place(request: Request) -> Place | None:
    at, identity = request.query_params.get("at"), request.query_params.get("after")
    if at is None or identity is None:
        return None
    try:
        found = float(at)
    except ValueError:
        return None
    return Place(found, identity[:LONGEST].replace("\0", "")) if math.isfinite(found) else None
