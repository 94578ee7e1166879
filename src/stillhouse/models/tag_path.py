"""The likeliest BIO tags of a text's tokens among those that values can have.

Every I follows its own B or I, and a word has one tag throughout, as in alignment, where no value
begins or ends inside one. Viterbi (1967) over what a token classifier says of each token alone: of
all such paths the one of the highest sum of log-probabilities. There are no learned transitions.
Knows numbers; no model and no text.

Shapes: T tokens, C = 1 + 2F tags (`core.tagging.tag_names`), F fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def best_path(log_p: Floats, goes_on: Sequence[bool]) -> Integers:
    """The tags [T] of log-probabilities [T, C], nats. Ties go to the lower number.

    Args:
        goes_on: whether a token goes on with the word of the one before it [T].
    """
    inside = np.asarray(goes_on, dtype=bool)
    first = log_p.argmax(-1)
    return first if _may_be(first, inside) else _viterbi(log_p, inside)


def _may_be(tags: Integers, goes_on: npt.NDArray[np.bool_]) -> bool:
    """Whether each I has its B or I before it, and no word is cut."""
    if not len(tags):
        return True
    before = np.concatenate([[0], tags[:-1]])
    follows = (before == tags) | (before == tags - 1)
    outside, inside = tags == 0, (tags > 0) & (tags % 2 == 0)
    uncut = ~goes_on | np.where(outside, before == 0, inside)
    return bool(np.all((~inside | follows) & uncut))


def _viterbi(log_p: Floats, goes_on: npt.NDArray[np.bool_]) -> Integers:
    tokens, classes = log_p.shape
    begins, insides = np.arange(1, classes, 2), np.arange(2, classes, 2)
    came = np.zeros((tokens, classes), dtype=np.int64)
    score = log_p[0].astype(np.float64)
    score[insides] = -np.inf  # nothing to go on from
    for at in range(1, tokens):
        best = int(score.argmax())
        grown = np.full(classes, score[best])
        came[at] = best
        if goes_on[at]:
            grown[0], came[at, 0] = score[0], 0
            grown[begins] = -np.inf
        from_begin = score[begins] >= score[insides]
        came[at, insides] = np.where(from_begin, begins, insides)
        grown[insides] = np.where(from_begin, score[begins], score[insides])
        score = grown + log_p[at]
    path = np.empty(tokens, dtype=np.int64)
    path[-1] = int(score.argmax())
    for at in range(tokens - 1, 0, -1):
        path[at - 1] = came[at, path[at]]
    return path
