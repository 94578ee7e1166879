"""Exact and near-duplicate texts: found by MinHash, verified by true Jaccard similarity.

Similarity of two texts is |A & B| / |A | B| over their sets of word 3-shingles (Broder 1997); texts
of fewer than three words use character 3-shingles. MinHash bands (datasketch) only propose pairs;
no pair is acted on before its true similarity is known, and the hash functions are fixed, so that
equal inputs give equal results. Knows texts, not what they are part of.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from datasketch import MinHash

SHINGLE: Final = 3
PERMUTATIONS: Final = 128
# Chance that the bands miss a pair that is just as similar as the threshold.
MISS: Final = 1e-3
# From so many texts on, shingles that most of them have are the instruction around the texts.
BOILERPLATE_TEXTS: Final = 20
BOILERPLATE_SHARE: Final = 0.5

Shingles = frozenset[int]
_WORD = re.compile(r"\w+")
_LOW = (1 << 32) - 1


class Bands(NamedTuple):
    """How a signature is cut: `bands` parts of `rows` values each."""

    bands: int
    rows: int


def normalised(text: str) -> str:
    """The text without differences of case, Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def bare(text: str) -> str:
    """The words of the normalised text without punctuation; the text itself if it has no word."""
    plain = normalised(text)
    return " ".join(_WORD.findall(plain)) or plain


def shingles(text: str) -> Shingles:
    """64-bit hashes of the text's shingles; never empty."""
    plain = normalised(text)
    words = _WORD.findall(plain)
    if len(words) >= SHINGLE:
        grams = {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
        return frozenset(_hash("w" + gram) for gram in grams)
    grams = {plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1))}
    return frozenset(_hash("c" + gram) for gram in grams)


def _hash(gram: str) -> int:
    data = gram.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def shingle_sets(texts: Sequence[str]) -> list[Shingles]:
    """Shingles of each text, without those that more than half of the distinct texts have.

    Traffic often carries one long instruction around a short text; without this, all such texts
    would look alike. A text that has nothing else keeps all its shingles.
    """
    by_text = {text: shingles(text) for text in dict.fromkeys(texts)}
    common: set[int] = set()
    if len(by_text) >= BOILERPLATE_TEXTS:
        counts = Counter(value for found in by_text.values() for value in found)
        limit = BOILERPLATE_SHARE * len(by_text)
        common = {value for value, count in counts.items() if count > limit}
    if common:
        by_text = {text: (found - common) or found for text, found in by_text.items()}
    return [by_text[text] for text in texts]


def jaccard(left: Shingles, right: Shingles) -> float:
    """|left & right| / |left | right|, of sets that are not empty."""
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def bands_for(threshold: float) -> Bands:
    """The longest bands that miss a pair of this similarity with chance `MISS` at most.

    A pair of similarity s shares no band with chance (1 - s^rows)^bands (Leskovec, Rajaraman and
    Ullman, Mining of Massive Datasets, section 3.4.2).
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if (1.0 - threshold**rows) ** bands <= MISS:
            return Bands(bands, rows)
    return Bands(PERMUTATIONS, 1)


def signatures(sets: Sequence[Shingles]) -> npt.NDArray[np.uint32]:
    """MinHash signatures, shape [len(sets), PERMUTATIONS]."""
    # The shingles are hashes already; datasketch mixes them once more before its permutations.
    found = MinHash.bulk(sets, num_perm=PERMUTATIONS, seed=1, hashfunc=lambda value: value & _LOW)
    return np.array([one.hashvalues for one in found], dtype=np.uint32).reshape(-1, PERMUTATIONS)


def buckets(sets: Sequence[Shingles], threshold: float) -> Iterator[list[int]]:
    """Yield the indices, in order, of sets that agree in a band; buckets of one are left out."""
    layout = bands_for(threshold)
    values = signatures(sets)
    for band in range(layout.bands):
        cut = np.ascontiguousarray(values[:, band * layout.rows : (band + 1) * layout.rows])
        table: dict[bytes, list[int]] = {}
        for index, row in enumerate(cut):
            table.setdefault(row.tobytes(), []).append(index)
        yield from (members for members in table.values() if len(members) > 1)


class _Forest:
    """Union-find with path halving."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, index: int) -> int:
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def union(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self._parent[high] = low


def groups_of(texts: Sequence[str], threshold: float) -> list[str]:
    """A group id for each text; near-duplicates (and theirs in turn) share one.

    The id is a hash of the group's first normalised text in alphabetical order: it does not depend
    on the order of the texts. A threshold of 1 groups texts that are equal when normalised, alone.
    """
    plain = [normalised(text) for text in texts]
    distinct = sorted(set(plain))
    forest = _Forest(len(distinct))
    if threshold < 1.0 and distinct:
        sets = shingle_sets(distinct)
        for members in buckets(sets, threshold):
            _join_bucket(members, sets, threshold, forest)
    first: dict[int, str] = {}
    for index, text in enumerate(distinct):
        first.setdefault(forest.root(index), text)
    ids = {
        text: hashlib.sha256(
            first[forest.root(index)].encode("utf-8", "surrogatepass")
        ).hexdigest()[:16]
        for index, text in enumerate(distinct)
    }
    return [ids[text] for text in plain]


def _join_bucket(
    members: list[int], sets: Sequence[Shingles], threshold: float, forest: _Forest
) -> None:
    """Join the members whose similarity is verified.

    Members are compared across groups only: within one there is nothing left to learn, so that a
    bucket full of near-duplicates costs one comparison each.
    """
    by_root: dict[int, list[int]] = {}
    for member in members:
        by_root.setdefault(forest.root(member), []).append(member)
    pools: list[list[int]] = []
    for newcomers in by_root.values():
        apart: list[list[int]] = []
        joined = newcomers
        for pool in pools:
            if any(jaccard(sets[a], sets[b]) >= threshold for a in newcomers for b in pool):
                forest.union(newcomers[0], pool[0])
                joined = pool + joined
            else:
                apart.append(pool)
        pools = [*apart, joined]


def repeats(
    texts: Sequence[str], answers: Sequence[str], groups: Sequence[str], threshold: float
) -> dict[int, int]:
    """Index of a near-duplicate with the same answer -> index of the earlier text that stays.

    A text is compared with the texts of its group that stay; `groups` come from `groups_of` with
    the same texts and threshold.
    """
    plain = [normalised(text) for text in texts]
    distinct = sorted(set(plain))
    sets = dict(zip(distinct, shingle_sets(distinct), strict=True))
    staying: dict[tuple[str, str], list[int]] = {}
    found: dict[int, int] = {}
    for index, (text, answer, group) in enumerate(zip(plain, answers, groups, strict=True)):
        pool = staying.setdefault((group, answer), [])
        earlier = next(
            (
                other
                for other in pool
                if plain[other] == text
                or (threshold < 1.0 and jaccard(sets[plain[other]], sets[text]) >= threshold)
            ),
            None,
        )
        if earlier is None:
            pool.append(index)
        else:
            found[index] = earlier
    return found


def matches(texts: Sequence[str], others: Sequence[str], threshold: float) -> dict[int, int]:
    """Index of a text -> index of the first of `others` that it equals or is nearly a duplicate of.

    Equality is that of normalised texts, and all there is at a threshold of 1.
    """
    plain, plain_others = [normalised(t) for t in texts], [normalised(t) for t in others]
    position: dict[str, int] = {}
    for index, text in enumerate(plain_others):
        position.setdefault(text, index)
    by_text = {text: position[text] for text in plain if text in position}
    if threshold < 1.0 and position:
        distinct = sorted({*plain, *position})
        sets = shingle_sets(distinct)
        wanted = set(plain)
        for members in buckets(sets, threshold):
            against = [i for i in members if distinct[i] in position]
            for index in members if against else ():
                text = distinct[index]
                if text not in wanted or text in position:
                    continue
                near = [
                    position[distinct[other]]
                    for other in against
                    if position[distinct[other]] < by_text.get(text, len(others))
                    and jaccard(sets[index], sets[other]) >= threshold
                ]
                if near:
                    by_text[text] = min(near)
    return {index: by_text[text] for index, text in enumerate(plain) if text in by_text}
