"""Where in a text the values of an answer stand: what a tag student is taught.

Each value is looked for as it stands, then with other white space and other case. Of several places
those are taken with which most values find one, none shares a character with another, and they
follow each other as the values do, near to each other. A value that stands nowhere as a whole is
put together from its words in order, from at most `MOST_PIECES` places. Rules and limits are in
docs/tagging.md. Knows texts alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from stillhouse.core.tagging import Span
from stillhouse.core.words import inside_word

MOST_PLACES: Final = 16  # of a value or word that are looked at, from the text's beginning
MOST_PIECES: Final = 4  # places that one value is put together from
BEAM: Final = 32  # partial assignments that are kept from value to value

Places = tuple[Span, ...]  # of one value, in the order of the text


class Wanted(NamedTuple):
    """A value to be found; `whole`: in one place."""

    text: str
    whole: bool = False


class _Place(NamedTuple):
    """One place of a whole value. `folded`: only when white space and case are passed over."""

    span: Span
    folded: bool


class _Partial(NamedTuple):
    """Places of the first values: `lost` have none, `folded` are not literal, `turned` stand
    before their predecessor, `far` counts the characters between neighbours."""

    lost: int
    folded: int
    turned: int
    far: int
    places: tuple[Span | None, ...]

    @property
    def cost(self) -> tuple[int, int, int, int]:
        """What is compared; ties go to the one that was found first."""
        return self.lost, self.folded, self.turned, self.far

    def and_then(self, place: _Place | None) -> _Partial:
        """With one value more."""
        if place is None:
            return self._replace(lost=self.lost + 1, places=(*self.places, None))
        before = next((span.end for span in reversed(self.places) if span is not None), 0)
        span = place.span
        return _Partial(
            self.lost,
            self.folded + place.folded,
            self.turned + (span.start < before),
            self.far + abs(span.start - before),
            (*self.places, span),
        )


def align(text: str, wanted: Sequence[Wanted]) -> list[Places | None]:
    """The places of each value, in order; `None` where it is not in the text, or only where
    another one stands. No two places of all values overlap."""
    whole = _assigned([_places(text, one.text) for one in wanted])
    taken = [span for span in whole if span is not None]
    found: list[Places | None] = []
    for one, span in zip(wanted, whole, strict=True):
        places: Places | None = None if span is None else (span,)
        if places is None and not one.whole:
            places = _pieces(text, one.text.split(), taken)
            taken += places or ()
        found.append(places)
    return found


def _assigned(candidates: Sequence[Sequence[_Place]]) -> tuple[Span | None, ...]:
    """One place of each value's, or none, such that none overlap."""
    beam = [_Partial(0, 0, 0, 0, ())]
    for places in candidates:
        grown = [
            partial.and_then(place)
            for partial in beam
            for place in (*places, None)
            if place is None or not _overlaps(place.span, partial.places)
        ]
        beam = sorted(grown, key=lambda one: one.cost)[:BEAM]
    return beam[0].places


def _places(text: str, value: str) -> list[_Place]:
    """Places of a whole value: literal ones first, then those that read the same."""
    literal = value.strip()
    loose = r"\s+".join(re.escape(word) for word in value.split())
    spans = list(_matches(text, re.compile(re.escape(literal))))
    folded = [s for s in _matches(text, re.compile(loose, re.IGNORECASE)) if s not in spans]
    return [*(_Place(s, False) for s in spans), *(_Place(s, True) for s in folded)]


def _matches(text: str, pattern: re.Pattern[str]) -> Iterator[Span]:
    """Up to `MOST_PLACES` places that begin and end no word in its middle."""
    found = at = 0
    while found < MOST_PLACES and (match := pattern.search(text, at)) is not None:
        span = Span(*match.span())
        at = span.start + 1
        if not (inside_word(text, span.start) or inside_word(text, span.end)):
            found += 1
            yield span


def _overlaps(span: Span, others: Sequence[Span | None]) -> bool:
    return any(o is not None and span.start < o.end and o.start < span.end for o in others)


class _Chain(NamedTuple):
    """The first words of a value, one place each: `pieces` they make, and how `far` they lie."""

    pieces: int
    folded: int
    far: int
    words: tuple[Span, ...]


def _pieces(text: str, words: Sequence[str], taken: Sequence[Span]) -> Places | None:
    """The words of a value in the order of the text, from as few places as can be."""
    chains = [_Chain(0, 0, 0, ())]
    for word in words:
        longer = [
            _longer(text, chain, place)
            for place in _places(text, word)
            if not _overlaps(place.span, taken)
            for chain in chains
            if not chain.words or chain.words[-1].end <= place.span.start
        ]
        ends: dict[int, _Chain] = {}
        for chain in sorted(longer, key=lambda one: one[:3]):
            ends.setdefault(chain.words[-1].end, chain)
        chains = [one for one in ends.values() if one.pieces <= MOST_PIECES]
    best = min(chains, key=lambda one: one[:3], default=None)
    if best is None or not best.words:
        return None
    starts = [best.words[0].start]
    ends_at = []
    for one, following in pairwise(best.words):
        if not _one_piece(text, one, following):
            ends_at.append(one.end)
            starts.append(following.start)
    ends_at.append(best.words[-1].end)
    return tuple(Span(*pair) for pair in zip(starts, ends_at, strict=True))


def _longer(text: str, chain: _Chain, place: _Place) -> _Chain:
    span = place.span
    if not chain.words:
        return _Chain(1, place.folded, 0, (span,))
    before = chain.words[-1]
    return _Chain(
        chain.pieces + (not _one_piece(text, before, span)),
        chain.folded + place.folded,
        chain.far + span.start - before.end,
        (*chain.words, span),
    )


def _one_piece(text: str, one: Span, following: Span) -> bool:
    """Whether nothing but white space lies between two words."""
    return text[one.end : following.start].isspace()
