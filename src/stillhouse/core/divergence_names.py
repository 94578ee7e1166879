"""Names of the divergences a recipe can choose, and which of them read a coefficient.

What they are is in `models/divergence_kind.py`. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

DivergenceKind = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
    "cross_entropy",
]

# The kinds that read beta, and what it is unless said: the symmetric JSD, and the 0.1 of DistiLLM.
DEFAULT_BETA: Final[Mapping[DivergenceKind, float]] = MappingProxyType(
    {"jsd": 0.5, "skew_forward_kl": 0.1, "skew_reverse_kl": 0.1}
)
