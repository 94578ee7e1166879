"""The trie of a closed set of labels' token sequences: where a model has to choose.

Knows token ids; does not know models or tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stillhouse.core.errors import UserError


class Branch(NamedTuple):
    """A node of the label trie with more than one way on.

    `ways` are the next tokens; `taken[c]` is which of them label c takes, or -1 if its path does
    not pass here.
    """

    path: tuple[int, ...]
    ways: tuple[int, ...]
    taken: tuple[int, ...]


def ended_sequences(
    labels: Sequence[str], sequences: Sequence[Sequence[int]], ends: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Each label's tokens, with the end token where there is one.

    Raises:
        UserError: labels that the tokenizer cannot tell apart.
    """
    plain = [tuple(sequence) for sequence in sequences]
    for index, sequence in enumerate(plain):
        for other in range(len(plain)):
            if other == index or sequence != plain[other][: len(sequence)]:
                continue
            if sequence == plain[other] or not ends:
                raise UserError(
                    "task.labels",
                    f"this model's tokenizer cannot tell {labels[index]!r} and {labels[other]!r} "
                    "apart",
                    action="choose other words for these labels",
                )
    return tuple((*sequence, *ends[:1]) for sequence in plain)


def branches(sequences: Sequence[Sequence[int]]) -> tuple[Branch, ...]:
    """The branching nodes of the trie over `sequences`, shortest path first."""
    ways: dict[tuple[int, ...], list[int]] = {}
    for sequence in sequences:
        for depth, token in enumerate(sequence):
            known = ways.setdefault(tuple(sequence[:depth]), [])
            if token not in known:
                known.append(token)
    found = []
    for path in sorted((p for p, tokens in ways.items() if len(tokens) > 1), key=len):
        depth = len(path)
        taken = tuple(
            ways[path].index(s[depth]) if len(s) > depth and tuple(s[:depth]) == path else -1
            for s in sequences
        )
        found.append(Branch(path, tuple(ways[path]), taken))
    return tuple(found)
