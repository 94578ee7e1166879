"""What a server says that it counted, before anything is reckoned with it. Knows no API."""

from __future__ import annotations

from typing import Final

MOST: Final = 10**9  # tokens of one answer; no model reads or writes as many


def token_count(value: object) -> int | None:
    """A number of tokens; `None` where it cannot be one: absent, no number, a truth value, below
    zero or beyond all models. What an absent count means is the caller's."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MOST else None
