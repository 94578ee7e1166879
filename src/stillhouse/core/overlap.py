"""How alike two texts are word by word. Knows texts only; not which of them is right."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1 (Lin 2004, beta = 1): longest common subsequence of words over each length.

    P = LCS / |answer|, R = LCS / |reference|, F1 = 2PR / (P + R). No stemming.
    """
    a, b = words(answer), words(reference)
    if not a or not b:
        return float(a == b)
    return 2 * lcs_length(a, b) / (len(a) + len(b))


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return _WORD.findall(text.casefold())


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Exact length of the longest common subsequence, bit-parallel over `a` (Hyyro 2004)."""
    places: dict[str, int] = {}
    for index, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << index
    mask = (1 << len(a)) - 1
    row = mask
    for item in b:
        hit = row & places.get(item, 0)
        row = (row + hit | row - hit) & mask
    return len(a) - row.bit_count()
