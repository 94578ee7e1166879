"""Pages as HTML: templates, the words for figures, and what every page is given.

Everything that is shown is escaped. Knows no source.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse

from stillhouse.core.page import page_environment
from stillhouse.core.statistics import Interval
from stillhouse.monitor.dashboard.access import Access
from stillhouse.monitor.dashboard.guard import ACTS, SESSION

NAV: Final = (
    ("overview", "/", "Overview"),
    ("experiment", "/experiment", "Experiment"),
    ("drift", "/drift", "Drift"),
    ("traffic", "/traffic", "Traffic"),
    ("online", "/online", "Online"),
    ("runs", "/runs", "Runs"),
    ("registry", "/registry", "Registry"),
    ("frontier", "/frontier", "Frontier"),
)


class Pages:
    """Templates over what all pages share.

    Args:
        tasks: names, as menus offer them.
    """

    def __init__(self, access: Access, tasks: tuple[str, ...]) -> None:
        self._access, self.tasks = access, tasks
        self._env = page_environment("stillhouse.monitor.dashboard")
        self._env.filters |= {
            "usd": usd,
            "share": share,
            "ms": ms,
            "count": count,
            "when": when,
            "iso": iso,
            "interval": interval,
            "words": words,
            "plain": plain,
            "q": lambda text: quote(str(text), safe=""),
        }

    def html(
        self, request: Request, template: str, /, status: int = 200, **more: Any
    ) -> HTMLResponse:
        """A whole page."""
        return HTMLResponse(self.text(request.scope, template, **more), status)

    def text(self, scope: Mapping[str, Any], template: str, /, **more: Any) -> str:
        """A page, or a part of one."""
        session = scope.get(SESSION, "")
        shared: dict[str, Any] = {
            "base": scope.get("root_path", ""),
            "nav": NAV,
            "here": "",
            "tasks": self.tasks,
            "acts": scope.get(ACTS, False),
            "signed_in": bool(session),
            "keyed": self._access.key is not None,
            "form_token": self._access.token(session) if session else "",
        }
        return self._env.get_template(template).render(shared | more)

    def task(self, request: Request) -> str:
        """The task that a page is of: as asked, else the first. Empty: there is no such task."""
        asked = request.query_params.get("task")
        if asked is None:
            return self.tasks[0] if self.tasks else ""
        return asked if asked in self.tasks else ""

    def no_task(self, request: Request, here: str) -> HTMLResponse:
        """Where there is no such task."""
        return self.html(
            request, "message.html", 404, here=here, title="No such task", text="Choose another."
        )


def usd(value: float | None) -> str:
    """Money, as exactly as it matters."""
    if value is None:
        return "-"
    sign, size = ("-" if value < 0 else ""), abs(value)
    if size >= 100:
        return f"{sign}{size:,.0f} USD"
    if size >= 0.01 or size == 0:
        return f"{sign}{size:,.2f} USD"
    return f"{sign}{size:.2g} USD"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}%"


def ms(value: float | None) -> str:
    """A duration."""
    if value is None:
        return "-"
    return f"{value / 1000:,.1f} s" if value >= 10_000 else f"{value:,.0f} ms"


def count(value: float | None) -> str:
    """A number of things."""
    return "-" if value is None else f"{value:,.0f}"


def when(at: float | None) -> str:
    """A time for people, UTC."""
    found = _time(at)
    return "-" if found is None else found.strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float | None) -> str:
    """A time for machines."""
    found = _time(at)
    return "" if found is None else found.isoformat(timespec="seconds")


def _time(at: float | None) -> datetime.datetime | None:
    if not at:
        return None
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return None


def interval(one: Interval | None, unit: str = "share") -> str:
    """An estimate with its bounds."""
    if one is None:
        return "-"
    if unit == "share":
        return f"{100 * one.estimate:.1f}% ({100 * one.low:.1f} to {100 * one.high:.1f})"
    if unit == "ms":
        return f"{one.estimate:,.0f} ms ({one.low:,.0f} to {one.high:,.0f})"
    return f"{one.estimate:.3g} ({one.low:.3g} to {one.high:.3g})"


def words(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def plain(value: Any) -> str:
    """A JSON value on one line, short."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 2000 else text[:1999] + "…"
