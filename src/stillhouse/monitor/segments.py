"""Parts of the traffic: by language, cluster of texts, tenant and label.

A request has at most one segment of each kind. Knows texts and names; no figure. Languages and
embeddings are passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from stillhouse.core.loop_monitor import SegmentKind
from stillhouse.core.overlap import words
from stillhouse.models.clusters import Vectors, cluster, nearest

Embed = Callable[[Sequence[str]], Vectors]
NAMED_BY: Final = 3
SHORTEST_WORD: Final = 4


class Item(NamedTuple):
    """What is known of a request. `label` is the teacher's where there is one."""

    text: str
    tenant: str | None
    label: str | None


class TextClusters:
    """Groups of reference texts, each called by words that mark it; others go to the nearest."""

    def __init__(self, texts: Sequence[str], embed: Embed, count: int, seed: int = 0) -> None:
        self._embed = embed
        found = cluster(embed(texts), count, seed)
        self._centres = found.centres
        everywhere = Counter(word for text in texts for word in set(words(text.casefold())))
        self.names = tuple(
            _name(
                number,
                [t for t, own in zip(texts, found.labels, strict=True) if own == number],
                everywhere,
            )
            for number in range(len(found.centres))
        )

    def of(self, texts: Sequence[str]) -> list[str]:
        """The cluster of each text."""
        if not texts:
            return []
        return [self.names[number] for number in nearest(self._embed(texts), self._centres).labels]


class Segmenter:
    """Says of requests which segments they are in: `KIND:NAME`.

    Args:
        kinds: that are wanted.
        language: of a text; `None` where it is not known.
        clusters: of texts; without it there is no segment of that kind.
    """

    def __init__(
        self,
        kinds: Iterable[SegmentKind],
        language: Callable[[str], str | None] | None = None,
        clusters: TextClusters | None = None,
    ) -> None:
        self._kinds = tuple(kinds)
        self._language = language
        self._clusters = clusters

    def of(self, items: Sequence[Item]) -> list[tuple[str, ...]]:
        """The segments of each request."""
        groups: list[str] | None = None
        if "cluster" in self._kinds and self._clusters is not None:
            groups = self._clusters.of([item.text for item in items])
        found = []
        for index, item in enumerate(items):
            keys: list[str] = []
            if "language" in self._kinds and self._language is not None and item.text:
                language = self._language(item.text)
                if language is not None:
                    keys.append(f"language:{language}")
            if groups is not None and item.text:
                keys.append(f"cluster:{groups[index]}")
            if "tenant" in self._kinds and item.tenant is not None:
                keys.append(f"tenant:{item.tenant}")
            if "label" in self._kinds and item.label is not None:
                keys.append(f"label:{item.label}")
            found.append(tuple(keys))
        return found


def largest(counts: Counter[str], most: int) -> list[str]:
    """The largest segments of each kind, largest first; ties by name."""
    kept: Counter[str] = Counter()
    found = []
    for key, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        kind = key.partition(":")[0]
        if kept[kind] < most:
            kept[kind] += 1
            found.append(key)
    return found


def _name(number: int, texts: Sequence[str], everywhere: Counter[str]) -> str:
    own = Counter(word for text in texts for word in set(words(text.casefold())))
    marks = sorted(
        (word for word in own if len(word) >= SHORTEST_WORD),
        key=lambda word: (-(own[word] ** 2) / everywhere[word], word),
    )
    return " ".join([str(number), *marks[:NAMED_BY]])
