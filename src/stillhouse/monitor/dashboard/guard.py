"""What every request passes before a page sees it: the host's name, the key, answers' headers.

Knows no page and no source.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.monitor.dashboard.access import (
    COOKIE,
    GUESS_S,
    Access,
    is_local,
    same_origin,
)

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# same-origin: with no-referrer a form's Origin would be null.
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_OPEN: Final = ("/login", "/healthz")
SESSION: Final = "stillhouse.session"
ACTS: Final = "stillhouse.acts"


class Guard:
    """An application behind the key.

    What is behind it finds the session's cookie (empty for a Bearer key) and whether the visitor
    may act in the scope.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        admitted = await self._admitted(scope)
        await admitted(scope, receive, headed)

    async def _admitted(self, scope: Scope) -> ASGIApp:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("method not allowed\n", 405)
        if self._access.key is None and not is_local(headers.get("host")):
            # A page elsewhere whose name leads here must not read what is shown without a key.
            text = "Without STILLHOUSE_ADMIN_KEY only this machine's own names are answered.\n"
            return PlainTextResponse(text, 403)
        if scope["method"] == "POST" and not same_origin(
            headers.get("origin"), headers.get("host")
        ):
            return PlainTextResponse("this form is of another site\n", 403)
        session = session_of(headers)
        known = bool(session) and await self._access.still_holds(session)
        knock = "none" if known else self._access.bearer(headers.get("authorization", ""))
        if knock == "busy":
            wait = {"retry-after": str(round(GUESS_S))}
            return PlainTextResponse("too many wrong keys; wait a minute\n", 429, wait)
        bearer = knock == "right"
        scope[SESSION] = session if known else ""
        scope[ACTS] = known or bearer
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        public = path in _OPEN or path.startswith("/static/")
        if self._access.key is None or public or known or bearer:
            return self._app
        if path == "/events" or scope["method"] == "POST":
            return PlainTextResponse("the admin key is missing or wrong\n", 401)
        asked = Request(scope).url
        place = {"next": path + (f"?{asked.query}" if asked.query else "")}
        to = f"{scope.get('root_path', '')}/login?{urlencode(place, quote_via=quote)}"
        return RedirectResponse(to, 303)


def session_of(headers: Headers) -> str:
    """The cookie's value; empty: there is none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
