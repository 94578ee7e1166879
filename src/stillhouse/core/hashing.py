"""Draws by hash: fixed by a key and a seed alone, on every machine. Imports nothing heavy."""

from __future__ import annotations

import hashlib


def unit_hash(key: str, seed: int) -> float:
    """A number in [0, 1), uniform over keys, fixed by key and seed."""
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
