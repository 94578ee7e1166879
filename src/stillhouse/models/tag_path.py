"""The likeliest BIO tags of a text's tokens, such that every I follows its own B or I.

Viterbi (1967) over what a token classifier says of each token alone: among paths that may be, the
one of the highest sum of log-probabilities. There are no learned transitions. Knows numbers; no
model and no text.

Shapes: T tokens, C = 1 + 2F tags (`core.tagging.tag_names`), F fields.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def best_path(log_p: Floats) -> Integers:
    """The tags [T] of log-probabilities [T, C], nats. Ties go to the lower number."""
    first = log_p.argmax(-1)
    return first if _may_be(first) else _viterbi(log_p)


def _may_be(tags: Integers) -> bool:
    """Whether each I has its B or I before it."""
    if not len(tags):
        return True
    inside = (tags > 0) & (tags % 2 == 0)
    before = np.concatenate([[0], tags[:-1]])
    return bool(np.all(~inside | (before == tags) | (before == tags - 1)))


def _viterbi(log_p: Floats) -> Integers:
    tokens, classes = log_p.shape
    begins, insides = np.arange(1, classes, 2), np.arange(2, classes, 2)
    came = np.zeros((tokens, classes), dtype=np.int64)
    score = log_p[0].astype(np.float64)
    score[insides] = -np.inf  # nothing to go on from
    for at in range(1, tokens):
        best = int(score.argmax())
        came[at] = best
        grown = np.full(classes, score[best])
        from_begin = score[begins] >= score[insides]
        came[at, insides] = np.where(from_begin, begins, insides)
        grown[insides] = np.where(from_begin, score[begins], score[insides])
        score = grown + log_p[at]
    path = np.empty(tokens, dtype=np.int64)
    path[-1] = int(score.argmax())
    for at in range(tokens - 1, 0, -1):
        path[at - 1] = came[at, path[at]]
    return path
