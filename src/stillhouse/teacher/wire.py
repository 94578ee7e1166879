"""One POST of JSON to a provider, and what came back.

Base URL, authentication and headers are those of the provider's official client; the request
itself goes over one aiohttp session, because building requests and parsing answers is where the
clients spend most of the processor's time (docs/asking.md has the figures). Knows HTTP and JSON;
does not know what a request means, and tries nothing twice.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from stillhouse.teacher.retry import UnreadableAnswerError

# More would be the proxy's or the server's error page; a message needs no more.
SHOWN_BODY_CHARS: Final = 2000
CONNECT_S: Final = 30.0


class Reply(NamedTuple):
    """A JSON answer with status 200, and its headers."""

    body: object
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Response:
    headers: Mapping[str, str]


class StatusError(Exception):
    """A server answered with an error status."""

    def __init__(self, status: int, body: object, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.body = body.get("error", body) if isinstance(body, dict) else body
        self.response = _Response(headers)
        named = self.body.get("param") if isinstance(self.body, dict) else None
        self.param = named if isinstance(named, str) else None
        super().__init__(f"Error code: {status} - {body}")


EXPECTED: Final = (
    StatusError,
    aiohttp.ClientError,
    UnreadableAnswerError,
    TimeoutError,
    ValueError,
    OSError,
)


class Wire:
    """A session to one server.

    Args:
        base_url: what paths are added to.
        headers: called once, in the event loop, for what every request carries.
    """

    def __init__(self, base_url: str, headers: Callable[[], Mapping[str, str]]) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = headers
        self._proxy = env_proxy(self._base_url)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
        """Send `body` and read the whole answer, all within `timeout_s`.

        Raises:
            StatusError: the status is not 200.
            UnreadableAnswerError: it is, and what came is no JSON.
            TimeoutError, aiohttp.ClientError, OSError: nothing whole came.
        """
        session = self._session or self._open()
        async with session.post(
            self._base_url + path,
            data=json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_S)),
            allow_redirects=False,
            proxy=self._proxy,
        ) as response:
            raw = await response.read()
            headers = response.headers
        if response.status != 200:
            raise StatusError(response.status, _error_body(raw), headers)
        try:
            return Reply(json.loads(raw), headers)
        except (ValueError, RecursionError):
            shown = raw[:80].decode("utf-8", "replace")
            raise UnreadableAnswerError(f"the server answered with no JSON: {shown!r}") from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            # TLS connections are closed by the loop's next turns.
            await asyncio.sleep(0)

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,  # how many requests go at a time is the caller's to say
            ssl=ssl.create_default_context() if self._base_url.startswith("https:") else True,
            ttl_dns_cache=300,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers(),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session


def env_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL (HTTPS_PROXY, NO_PROXY and their kin).

    aiohttp's own `trust_env` looks it up anew for each request, in a thread, and reads ~/.netrc.
    """
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.netloc):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _error_body(raw: bytes) -> object:
    text = raw.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text[:SHOWN_BODY_CHARS]
