"""Exact and near-duplicate texts: found by MinHash, verified by true Jaccard similarity.

Similarity of two texts is |A & B| / |A | B| over their sets of word 3-shingles (Broder 1997); texts
of fewer than three words use character 3-shingles. MinHash bands (datasketch) only propose pairs;
no pair is acted on before its true similarity is known, and the hash functions are fixed, so that
equal inputs give equal results. Knows texts, not what they are part of.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.optional import late

SHINGLE: Final = 3
PERMUTATIONS: Final = 128
# Chance that the bands miss a pair that is just as similar as the threshold.
MISS: Final = 1e-3
# From so many texts on, shingles that most of them have are the instruction around the texts.
BOILERPLATE_TEXTS: Final = 20
BOILERPLATE_SHARE: Final = 0.5

Shingles = frozenset[int]
_WORD = re.compile(r"\w+")


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


class Rare(NamedTuple):
    """The shingles of a set that fewest sets have: `few` and, beginning with those, `more`."""

    few: Shingles
    more: Shingles


def rarest(sets: Sequence[Shingles], threshold: float) -> list[Rare]:
    """What two sets A, B of similarity t or more, |A| <= |B|, must share: one of A's `few` is among
    B's `more`.

    They share t / (1 + t) (|A| + |B|) shingles at least, so 2t / (1 + t) |A|, and t |B|; with the
    rarest first, `few` are the first |A| - ceil(2t / (1 + t) |A|) + 1 and `more` the first
    |B| - ceil(t |B|) + 1 (prefix filter: Bayardo, Ma and Srikant 2007; Xiao et al. 2008). Texts
    that have a common form and little else in common need not be compared.
    """
    counts = Counter(value for found in sets for value in found)
    rare = []
    for found in sets:
        order = sorted(found, key=lambda value: (counts[value], value))
        few, more = (
            len(found) - math.ceil(share * len(found) - 1e-9) + 1
            for share in (2 * threshold / (1 + threshold), threshold)
        )
        rare.append(Rare(frozenset(order[:few]), frozenset(order[:more])))
    return rare


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
    found: npt.NDArray[np.uint32] = late("stillhouse.core.minhash").minhash(sets, PERMUTATIONS)
    return found


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
        rare = rarest(sets, threshold)
        for members in buckets(sets, threshold):
            _join_bucket(members, sets, rare, threshold, forest)
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


def _may_be_near(rare: Sequence[Rare], sets: Sequence[Shingles], left: int, right: int) -> bool:
    """Whether two sets share what near ones must (`rarest`)."""
    if len(sets[left]) > len(sets[right]):
        left, right = right, left
    return not rare[left].few.isdisjoint(rare[right].more)


def _join_bucket(
    members: list[int],
    sets: Sequence[Shingles],
    rare: Sequence[Rare],
    threshold: float,
    forest: _Forest,
) -> None:
    """Join the members whose similarity is verified.

    Members are compared across groups only: within one there is nothing left to learn, so that a
    bucket full of near-duplicates costs one comparison each.
    """
    # Rare shingle -> root of a group, as it was then -> members that have it, the smaller first.
    seen: dict[int, dict[int, list[int]]] = {}
    for member in sorted(members, key=lambda index: (len(sets[index]), index)):
        for value in rare[member].more:
            for root, others in seen.get(value, {}).items():
                if forest.root(root) == forest.root(member):
                    continue
                if any(jaccard(sets[member], sets[other]) >= threshold for other in others):
                    forest.union(member, root)
        root = forest.root(member)
        for value in rare[member].few:
            seen.setdefault(value, {}).setdefault(root, []).append(member)


def repeats(
    texts: Sequence[str], answers: Sequence[str], groups: Sequence[str], threshold: float
) -> dict[int, int]:
    """Index of a near-duplicate with the same answer -> index of the earlier text that stays.

    A text is compared with the texts of its group that stay; `groups` come from `groups_of` with
    the same texts and threshold.
    """
    plain = [normalised(text) for text in texts]
    distinct = sorted(set(plain))
    near = threshold < 1.0
    every = shingle_sets(distinct) if near else []
    sets = dict(zip(distinct, every, strict=near))
    rare = dict(zip(distinct, rarest(every, threshold), strict=near))
    # Of each group and answer: the texts that stay, by their rare shingles and as a whole.
    staying: dict[tuple[str, str, str], dict[int | str, list[int]]] = {}
    found: dict[int, int] = {}
    for index, (text, answer, group) in enumerate(zip(plain, answers, groups, strict=True)):
        few, more, whole = (
            staying.setdefault((group, answer, kind), {}) for kind in ("few", "more", "whole")
        )
        places: list[tuple[dict[int | str, list[int]], Collection[int | str]]] = [(whole, (text,))]
        if near:
            places += [(few, rare[text].more), (more, rare[text].few)]
        known = sorted(
            {other for pool, keys in places for key in keys for other in pool.get(key, ())}
        )
        earlier = next(
            (
                other
                for other in known
                if plain[other] == text
                or (near and jaccard(sets[plain[other]], sets[text]) >= threshold)
            ),
            None,
        )
        if earlier is not None:
            found[index] = earlier
            continue
        whole.setdefault(text, []).append(index)
        if near:
            for pool, values in ((few, rare[text].few), (more, rare[text].more)):
                for value in values:
                    pool.setdefault(value, []).append(index)
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
        rare = rarest(sets, threshold)
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
                    and _may_be_near(rare, sets, index, other)
                    and jaccard(sets[index], sets[other]) >= threshold
                ]
                if near:
                    by_text[text] = min(near)
    return {index: by_text[text] for index, text in enumerate(plain) if text in by_text}
