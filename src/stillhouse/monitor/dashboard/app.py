"""The dashboard as an ASGI application: which path leads where. Knows no source's inside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from stillhouse.core.errors import StillhouseError
from stillhouse.monitor.dashboard.access import Access, SignedOut
from stillhouse.monitor.dashboard.guard import Guard
from stillhouse.monitor.dashboard.live import EVERY_S, Live
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.sources import Sources
from stillhouse.monitor.dashboard.views import Views
from stillhouse.monitor.dashboard.views_acts import Acts
from stillhouse.monitor.dashboard.views_online import OnlineViews
from stillhouse.monitor.dashboard.views_runs import Runs
from stillhouse.monitor.dashboard.views_traffic import Traffic

_STATIC: Final = Path(__file__).parent / "static"
_LOG: Final = logging.getLogger("stillhouse.dashboard")


class Dashboard:
    """The application; also what ends its open streams.

    Args:
        key: the admin's; `None`: who reaches it by a name of this machine may look, and nobody may
            act.
        every_s: how often the overview is read anew while somebody looks.
        signed_out: sessions that count no more; `None`: this process alone knows them.
    """

    def __init__(
        self,
        sources: Sources,
        key: str | None,
        *,
        clock: Callable[[], float] = time.time,
        every_s: float = EVERY_S,
        signed_out: SignedOut | None = None,
    ) -> None:
        access = Access(key, clock, signed_out)
        pages = Pages(access, sources.tasks)
        views = Views(sources, pages, clock)
        acts, runs, traffic = (
            Acts(sources, pages, access),
            Runs(sources, pages),
            Traffic(sources, pages),
        )
        self._live = Live(views.parts, access.still_holds, every_s)

        async def failed(request: Request, error: Exception) -> Response:
            _LOG.error("%s: %s: %s", request.url.path, type(error).__name__, error)
            text = "What is kept cannot be read now; the dashboard's log says why."
            return pages.html(request, "message.html", 503, title="Not now", text=text, back="/")

        async def refused(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            text = "There is no such page." if error.status_code == 404 else error.detail
            return pages.html(
                request, "message.html", error.status_code, title="Not found", text=text, back="/"
            )

        async def health(_request: Request) -> Response:
            return PlainTextResponse("ok\n")

        handlers: dict[Any, Any] = {
            HTTPException: refused,
            StillhouseError: failed,
            Exception: failed,
        }
        self._app = Guard(
            Starlette(
                routes=[
                    Route("/", views.overview),
                    Route("/experiment", views.experiment),
                    Route("/experiment/act", acts.ask_act),
                    Route("/experiment/act", acts.act, methods=["POST"]),
                    Route("/drift", views.drift),
                    Route("/online", OnlineViews(sources, pages).page),
                    Route("/traffic", traffic.page),
                    Route("/runs", runs.listed),
                    Route("/runs/run", runs.run),
                    Route("/frontier", runs.frontier),
                    Route("/registry", acts.registry),
                    Route("/registry/promote", acts.ask_promote),
                    Route("/registry/promote", acts.promote, methods=["POST"]),
                    Route("/registry/rollback", acts.ask_roll_back),
                    Route("/registry/rollback", acts.roll_back, methods=["POST"]),
                    Route("/login", acts.login_page),
                    Route("/login", acts.login, methods=["POST"]),
                    Route("/logout", acts.logout, methods=["POST"]),
                    Route("/events", self._live.route),
                    Route("/healthz", health),
                    Route("/static/house.css", _house),
                    Mount("/static", _Static(directory=_STATIC)),
                ],
                exception_handlers=handlers,
            ),
            access,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """End the open streams, so that nobody waits for them; on the event loop."""
        self._live.stop()


class _Static(StaticFiles):
    """Files that a browser asks about again, and need not load again."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def _house(_request: Request) -> Response:
    text = (files("stillhouse.core") / "templates" / "house.css").read_text(encoding="utf-8")
    return Response(text, media_type="text/css", headers={"cache-control": "no-cache"})
