"""Recover the fixed text around what varies: `head + {text} + tail`, from examples alone.

A template is a literal that a good part of the distinct texts begins or ends with. Texts are
sorted, so that a common beginning is an interval of neighbours; intervals are followed to where the
texts part, and a part that is large enough and goes on together for long enough is a template.
Tails are found in the same way, from the end. Knows texts; neither requests nor answers.

What it cannot know: whether a phrase that many users begin with is the program's or theirs. `rank`
joins such templates again where their answers are alike.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

SHARE: Final = 0.01  # of the distinct texts, for a template of its own
LEAST: Final = 20  # distinct texts, likewise
STEP: Final = 6  # characters that texts must go on together to be looked at
LONG: Final = 16  # characters of a literal that needs no sign of being one
TOLERANCE: Final = 0.9  # of a template's texts must have the whole literal
LONGEST: Final = 20_000  # characters from each end that are compared

_TOKEN = re.compile(r"<[A-Z]+(?:_\d+)?>|\w+|\s|[^\w\s]")
_PLACEHOLDER = re.compile(r"<[A-Z]+(?:_\d+)?>")
_HEAD_END = re.compile(r"[:<>\"'`\[\](){}\n]\s*$")
_TAIL_END = re.compile(r"[:>`\]})]\s*$")


class Template(NamedTuple):
    """A literal before and after the text that varies."""

    head: str
    tail: str

    def fits(self, text: str) -> bool:
        """Whether a text has this form."""
        return (
            len(text) >= len(self.head) + len(self.tail)
            and text.startswith(self.head)
            and text.endswith(self.tail)
        )

    def slot(self, text: str) -> str:
        """What a text that fits has between head and tail."""
        return text[len(self.head) : len(text) - len(self.tail)]

    @property
    def literal(self) -> int:
        """Characters that are fixed."""
        return len(self.head) + len(self.tail)


FREE: Final = Template("", "")


def find_templates(texts: Sequence[str], least: int = LEAST) -> list[Template]:
    """The templates of texts, most specific first; the last is `FREE`, which all texts fit.

    Args:
        texts: examples; repeated ones count once.
        least: distinct texts that make a template.
    """
    distinct = sorted({text[:LONGEST] for text in texts})
    found: set[Template] = {FREE}
    support = max(least, int(SHARE * len(distinct)), 2)
    for head, members in _branches(distinct, support, _HEAD_END):
        if len(members) < support:
            continue
        ends = sorted(text[len(head) :][::-1][:LONGEST] for text in members)
        # Within one head, a tail of few is more often how people end their texts.
        tails = _branches(ends, max(least, len(ends) // 20, 2), _TAIL_END, backwards=True)
        found.update(
            Template(head, reverse[::-1]) for reverse, those in tails if len(those) >= support // 2
        )
    return sorted(found, key=lambda template: (-template.literal, template))


def fitting(templates: Sequence[Template], text: str) -> int:
    """The index of the first template that a text fits."""
    return next(index for index, template in enumerate(templates) if template.fits(text))


def _branches(
    texts: Sequence[str], support: int, sign: re.Pattern[str], backwards: bool = False
) -> list[tuple[str, list[str]]]:
    """(literal, texts that begin with it) for sorted texts; the rest is under the literal ''."""
    shared = [0, *(_shared(a, b) for a, b in itertools.pairwise(texts))]
    leaves: list[tuple[str, list[str]]] = []

    def follow(low: int, high: int, depth: int) -> list[int]:
        """Put the leaves of texts[low:high], equal up to `depth`, into `leaves`; gives the rest."""
        rest: list[int] = []
        for start, end in _runs(shared, low, high, depth + STEP):
            if end - start < support:
                rest.extend(range(start, end))
                continue
            first, last = _narrowed(shared, start, end, depth)
            common = min(shared[first + 1 : last])
            inner = follow(first, last, common)
            literal = _at_boundary(texts[first], common, backwards)
            if len(inner) >= support and _is_literal(literal[depth:], sign, backwards):
                leaves.append((literal, [texts[i] for i in inner]))
                inner = []
            rest += [*range(start, first), *inner, *range(last, end)]
        return rest

    rest = follow(0, len(texts), 0)
    leaves.append(("", [texts[i] for i in rest]))
    return leaves


def _shared(left: str, right: str) -> int:
    """How many characters two texts begin with in common."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _runs(shared: Sequence[int], low: int, high: int, depth: int) -> list[tuple[int, int]]:
    """The maximal intervals of [low, high) whose neighbours share `depth` characters."""
    runs: list[tuple[int, int]] = []
    start = low
    for index in range(low + 1, high + 1):
        if index == high or shared[index] < depth:
            runs.append((start, index))
            start = index
    return runs


def _narrowed(shared: Sequence[int], low: int, high: int, depth: int) -> tuple[int, int]:
    """The interval without the few texts that keep its common beginning short."""
    size = high - low
    while True:
        common = min(shared[low + 1 : high])
        first, last = max(
            _runs(shared, low, high, common + STEP), key=lambda run: (run[1] - run[0], -run[0])
        )
        if last - first < TOLERANCE * size or (first, last) == (low, high) or last - first < 2:
            return low, high
        low, high = first, last


def _at_boundary(text: str, length: int, backwards: bool) -> str:
    """The text's beginning, cut back to the end of a token; reversed texts are turned for that.

    A placeholder of personal data ends it: what it stands for varies.
    """
    if backwards:
        turned = text[::-1]
        start = len(turned)
        for token in reversed(list(_TOKEN.finditer(turned, max(0, len(turned) - length - 80)))):
            if token.start() < len(turned) - length or _PLACEHOLDER.fullmatch(token.group()):
                break
            start = token.start()
        return text[: len(turned) - start]
    end = 0
    for token in _TOKEN.finditer(text):
        if token.end() > length or _PLACEHOLDER.fullmatch(token.group()):
            break
        end = token.end()
    return text[:end]


def _is_literal(gain: str, sign: re.Pattern[str], backwards: bool) -> bool:
    """Whether so much common text is a program's: it is long, or it ends as an instruction does."""
    words = gain[::-1] if backwards else gain
    return len(words.strip()) >= LONG or (len(words) >= STEP and sign.search(words) is not None)
