"""Who may look, and who may act: the admin key, sessions made from it, and the names of the host.

A session is a cookie that the key signs: no state, so that every process with the same key knows
it, and all of them end when the key changes. Those that were signed out of are kept, and read by
every process about once a second. Knows no page.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

from stillhouse.core.errors import StillhouseError

COOKIE: Final = "stillhouse_session"
SESSION_S: Final = 8 * 3600
LONGEST: Final = 512
# Guesses in a minute, of all who knock together.
GUESSES: Final = 20
GUESS_S: Final = 60.0
LOOK_S: Final = 1.0  # between looks at what other processes ended
_LOG: Final = logging.getLogger("stillhouse.dashboard")

Knock = Literal["none", "busy", "wrong", "right"]


class SignedOut(Protocol):
    """Sessions that were signed out of, by digest, for all processes that serve the pages; all of
    it may block."""

    def add(self, session: str, until: float) -> None:
        """One more; it would have ended by itself then (Unix seconds).

        Raises:
            StillhouseError: it could not be kept.
        """

    def known(self) -> Mapping[str, float]:
        """All of them, and when they would have ended.

        Raises:
            StillhouseError: they cannot be read.
        """


@dataclass(slots=True)
class Access:
    """Who is let in.

    Args:
        key: the admin's; `None`: everybody on this machine may look, and nobody may act.
        clock: Unix seconds.
        kept: sessions that were signed out of; `None`: this process alone knows them.
    """

    key: str | None
    clock: Callable[[], float]
    kept: SignedOut | None = None
    _wrong: deque[float] = field(default_factory=lambda: deque(maxlen=GUESSES))
    # Digests of sessions, and when they would have ended.
    _ended: dict[str, float] = field(default_factory=dict)
    _looked: float = float("-inf")

    def opens(self, shown: str) -> bool:
        """Whether this is the key; compares in constant time."""
        if self.key is None or len(shown) > LONGEST:
            return False
        return hmac.compare_digest(shown.encode("utf-8", "replace"), self.key.encode())

    def bearer(self, authorization: str) -> Knock:
        """What an Authorization header comes to. Wrong keys count as those of the login do, and
        where too many came no key is looked at."""
        kind, _, shown = authorization.partition(" ")
        if self.key is None or kind.lower() != "bearer":
            return "none"
        if self.busy():
            return "busy"
        if self.opens(shown.strip()):
            return "right"
        self.wrong()
        return "wrong"

    def busy(self) -> bool:
        """Whether so many wrong keys came lately that none is looked at now."""
        return len(self._wrong) == GUESSES and self.clock() - self._wrong[0] < GUESS_S

    def wrong(self) -> None:
        """A wrong key came."""
        self._wrong.append(self.clock())

    def new_session(self) -> str:
        """A cookie's value."""
        body = f"{int(self.clock()) + SESSION_S}.{secrets.token_hex(12)}"
        return f"{body}.{self._sign('session', body)}"

    def holds(self, session: str) -> bool:
        """Whether a cookie is one of ours, and its time is not over."""
        body, _, signature = session.rpartition(".")
        if (
            self.key is None
            or len(session) > LONGEST
            or _digest(session) in self._ended
            or not _same(signature, self._sign("session", body))
        ):
            return False
        return int(body.partition(".")[0]) > self.clock()

    async def still_holds(self, session: str) -> bool:
        """`holds`, by what other processes ended up to about a second ago too. Where that cannot be
        read, by what is known."""
        now = self.clock()
        if self.kept is not None and not 0 <= now - self._looked < LOOK_S:
            self._looked = now
            try:
                ended = await asyncio.to_thread(self.kept.known)
            except StillhouseError as error:
                _LOG.warning("sessions that were signed out of cannot be read: %s", error)
            else:
                self._ended |= ended
        return self.holds(session)

    async def end(self, session: str) -> None:
        """A session of ours counts no more: here at once, elsewhere within about a second.

        Raises:
            StillhouseError: elsewhere it still counts.
        """
        now = self.clock()
        self._ended = {one: at for one, at in self._ended.items() if at > now}
        self._ended[_digest(session)] = now + SESSION_S
        if self.kept is not None:
            await asyncio.to_thread(self.kept.add, _digest(session), now + SESSION_S)

    def token(self, session: str) -> str:
        """What forms of a session must send back, so that no other site's form counts."""
        return self._sign("form", session)

    def fits(self, session: str, token: str) -> bool:
        """Whether a form was of this session."""
        return _same(token, self.token(session))

    def _sign(self, what: str, text: str) -> str:
        key = (self.key or "").encode()
        return hmac.digest(key, f"stillhouse dashboard {what} {text}".encode(), "sha256").hex()


def _digest(session: str) -> str:
    return hashlib.sha256(session.encode("utf-8", "replace")).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode())


def is_local(host: str | None) -> bool:
    """Whether a Host header names an address, or this machine: not a name of somebody's own that
    leads here."""
    if host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        ip_address(name)
        return True
    except ValueError:
        return False


def same_origin(origin: str | None, host: str | None) -> bool:
    """Whether a form came from this server's own pages, as far as the browser says so."""
    if origin is None:
        return True
    return urlsplit(origin).netloc.lower() == (host or "").lower()
