"""Words that mark one set of texts against another. Knows texts only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from stillhouse.monitor.drift_kernel import Floats

_WORD: Final = re.compile(r"[^\W\d_]{3,}")
_SURE: Final = 1.96


def marking_words(before: Iterable[str], now: Iterable[str], most: int) -> tuple[str, ...]:
    """Words that more texts of `now` hold than of `before`, the surest first.

    z-scores of log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008),
    counting each word once a text; words with z below 1.96 are no marks.
    """
    first, second = _counts(before), _counts(now)
    names = sorted(second)
    if not names or most < 1:
        return ()
    x = np.array([first[name] for name in names], dtype=np.float64)
    y = np.array([second[name] for name in names], dtype=np.float64)
    prior = x + y
    total = float(prior.sum())
    prior *= max(1.0, total / 100) / total
    weight = prior.sum()
    gap = _log_odds(y, prior, weight) - _log_odds(x, prior, weight)
    z = gap / np.sqrt(1 / (y + prior) + 1 / (x + prior))
    order = sorted(range(len(names)), key=lambda n: (-z[n], names[n]))
    return tuple(names[n] for n in order[:most] if z[n] >= _SURE)


def _log_odds(
    counts: Floats,
    prior: Floats,
    weight: float,
) -> Floats:
    total = counts.sum() + weight
    return np.asarray(np.log((counts + prior) / np.maximum(total - counts - prior, 1e-9)))


def _counts(texts: Iterable[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_words(text))
    return found


def _words(text: str) -> Sequence[str]:
    return sorted(set(_WORD.findall(text.lower())))
