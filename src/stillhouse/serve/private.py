"""What is taken out of a request before it is stored: users' names and what a redactor finds.

Pure: the redactor is passed in. Knows no database. Does not look inside images and other data URLs.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.gateway_log import GatewayCall

Redact = Callable[[str], str]
SECRET_VARIABLE: Final = "STILLHOUSE_PSEUDONYM_SECRET"
SHORTEST_SECRET: Final = 16
_USER_KEYS: Final = frozenset(("user", "user_id", "safety_identifier"))
_PLAIN: Final = frozenset((int, float, bool, type(None)))
# Words of the protocol, which a reader of the log looks for.
_PROTOCOL_KEYS: Final = frozenset(
    ("id", "tool_call_id", "type", "role", "model", "object", "finish_reason")
)


class Pseudonyms:
    """What stands for a user in the log: HMAC-SHA256 of tenant and name under a secret.

    Without the secret nobody can try names until one fits. Another secret makes other pseudonyms:
    what was logged before is then no longer found by name.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SHORTEST_SECRET:
            raise UserError(
                SECRET_VARIABLE,
                f"is shorter than {SHORTEST_SECRET} bytes",
                action="make one with: openssl rand -hex 32",
            )
        self._secret = secret

    @classmethod
    def from_environment(cls, variable: str = SECRET_VARIABLE) -> Pseudonyms:
        """The secret from an environment variable.

        Raises:
            UserError: it is missing or short.
        """
        return cls(os.environ.get(variable, "").encode())

    def of(self, tenant: str, user: str) -> str:
        """32 hexadecimal digits; the same user name of two tenants is two users."""
        text = f"{len(tenant)}:{tenant}{user}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._secret, text, "sha256").hex()[:32]


def private_call(call: GatewayCall, user: str | None, redact: Redact | None) -> dict[str, Any]:
    """A call as it is stored: JSON values.

    Args:
        user: the pseudonym, which replaces the name wherever the API has a field for it.
        redact: applied to every text but the protocol's own words. `logprobs` are then left out:
            token by token they would spell what was taken out.
    """
    stored = dict(vars(call))
    stored["usage"] = None if call.usage is None else vars(call.usage)
    stored["user"] = user
    for body in ("request", "response"):
        if stored[body] is not None:
            stored[body] = _hidden(stored[body], user, redact)
    if redact is not None and stored["error"] is not None:
        stored["error"] = redact(stored["error"])
    return stored


def redacted(value: Any, redact: Redact) -> Any:
    """A JSON value with every text redacted but the protocol's own words."""
    return _hidden(value, None, redact, users=False)


def _hidden(value: Any, user: str | None, redact: Redact | None, *, users: bool = True) -> Any:
    kind = type(value)  # looked at before the abstract kinds, which take longer
    if kind in _PLAIN:
        return value
    if isinstance(value, str):
        return value if redact is None else redact(value)
    if kind is dict or isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            if isinstance(inner, str) and (key in _PROTOCOL_KEYS or (users and key in _USER_KEYS)):
                found[key] = inner if key in _PROTOCOL_KEYS else user
            elif not (key == "logprobs" and redact is not None and isinstance(inner, Mapping)):
                found[key] = _hidden(inner, user, redact, users=users)
        return found
    if kind is list or isinstance(value, Sequence):
        return [_hidden(inner, user, redact, users=users) for inner in value]
    return value


def raw_weight(raw: bytes) -> int:
    """At most how many bytes a JSON text holds in memory once it is read, as `weight` counts."""
    inside = raw.count(b"{") + raw.count(b"[")
    return len(raw) + 50 + 114 * inside + 100 * raw.count(b":") + 50 * raw.count(b",")


def weight(value: Any) -> int:
    """About how many bytes a JSON value holds in memory."""
    if isinstance(value, str):
        return len(value) + 50
    if isinstance(value, Mapping):
        return 64 + sum(weight(inner) + 50 for inner in value.values())
    if isinstance(value, list | tuple):
        return 64 + sum(map(weight, value))
    return 32
