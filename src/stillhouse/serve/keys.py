"""Client keys: made once and shown once, stored as hashes, scoped, revocable.

A key is `sh-ID-SECRET` with 256 random bits in SECRET, so one SHA-256 is enough to store it by:
unlike a password there is nothing to guess. Knows no request: who may do what is the server's.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from stillhouse.core.errors import UserError
from stillhouse.serve.seams import KeyInfo, Principal
from stillhouse.serve.tables import KEYS

_FORM: Final = re.compile(r"sh-([0-9a-f]{12})-([A-Za-z0-9_-]{43})", re.ASCII)
# Compared with where no key has the presented id, so that both cases take the same time.
_NOBODY: Final = "0" * 64


class StoredKeys:
    """`seams.Keys` over a database; `check` answers from memory, `refresh` reads what others did.

    A key revoked on another gateway is refused here from the next `refresh` on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, tuple[str, Principal]] = {}
        self.refresh()

    def make(self, tenant: str, scopes: Iterable[str], now: float) -> str:
        """A new key for a tenant: the only time that its text is seen.

        Args:
            scopes: names of tasks, `feedback`, `batches`, or `*` for all; whether there are such
                is the caller's to know.
        """
        wanted = sorted(set(scopes))
        if not tenant or not tenant.isprintable() or not wanted or not all(wanted):
            raise UserError("key", "needs a printable tenant and at least one scope", value=wanted)
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = {
            "id": identity,
            "digest": _digest(secret),
            "tenant": tenant,
            "scopes": json.dumps(wanted),
            "made_at": now,
        }
        with self._engine.begin() as connection:
            connection.execute(sa.insert(KEYS).values(**row))
        self.refresh()
        return f"sh-{identity}-{secret}"

    def revoke(self, identity: str, now: float) -> bool:
        """Refuse a key from now on; False: there is no such key, or it was revoked before."""
        with self._engine.begin() as connection:
            found = connection.execute(
                sa.update(KEYS)
                .where(KEYS.c.id == identity, KEYS.c.revoked_at.is_(None))
                .values(revoked_at=now)
            ).rowcount
        self.refresh()
        return bool(found)

    def check(self, presented: str) -> Principal | None:
        """Who presents a key; `None`: nobody. Compares in constant time."""
        match = _FORM.fullmatch(presented)
        identity, secret = match.groups() if match else ("", "")
        digest, principal = self._known.get(identity, (_NOBODY, None))
        return principal if hmac.compare_digest(digest, _digest(secret)) else None

    def listed(self) -> list[KeyInfo]:
        """All keys, revoked ones too, oldest first."""
        columns = (KEYS.c.id, KEYS.c.tenant, KEYS.c.scopes, KEYS.c.made_at, KEYS.c.revoked_at)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).order_by(KEYS.c.made_at)).all()
        return [KeyInfo(i, t, _scopes(s), m, r) for i, t, s, m, r in rows]

    def refresh(self) -> None:
        """Read the keys that hold; blocks."""
        columns = (KEYS.c.id, KEYS.c.digest, KEYS.c.tenant, KEYS.c.scopes)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(*columns).where(KEYS.c.revoked_at.is_(None))).all()
        self._known = {
            identity: (digest, Principal(tenant, _scopes(scopes)))
            for identity, digest, tenant, scopes in rows
        }


def _scopes(stored: str) -> frozenset[str]:
    """Of a row; none where it is damaged, so that its key may do nothing, and the others what they
    may."""
    try:
        found = json.loads(stored)
    except ValueError:
        return frozenset()
    return frozenset(map(str, found)) if isinstance(found, list) else frozenset()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
