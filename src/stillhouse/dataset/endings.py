"""Texts that stop in the middle, told by how they end.

For servers that do not say that they cut an answer. Only signs that whole answers hardly ever show
count; measured in docs/quality.md. Knows characters and words, English ones for the last word.
"""

from __future__ import annotations

import re
from typing import Final

# A paragraph that has ended a sentence and then runs on for so many words ends its next one too.
RUN_ON_WORDS: Final = 3
DANGLING_WORDS: Final = 8
_OPEN_END: Final = (",", "(", "[", "{", "“", "„", "«", " -", " –", " —", "&", "=")
# fmt: off
_DANGLING: Final = frozenset(
    {"a", "an", "the", "and", "or", "of", "to", "in", "with", "for", "that", "which", "is",
     "are", "was", "were", "by", "from", "as", "at", "on", "but", "because", "their",
     "his", "her", "its", "my", "your", "our", "if", "when", "while", "than"}
)
# fmt: on
_FENCE = re.compile(r"^\s*```", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]*_]*\s+")
# A full stop that ends no sentence: initials ("U.S.", "J."), titles, numbers ("No. 5").
_ABBREVIATED = re.compile(
    r"(?:\b[A-Za-z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Ft|Jr|Sr|Gen|Col|Lt|Sgt|Capt|Sen|Rep|Gov|Rev|Hon|"
    r"Inc|Ltd|Corp|Co|Bros|vs|etc|approx|No|Nos|Fig|Vol|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|"
    r"Nov|Dec))\.\Z"
)
_CLOSED = re.compile(r"[.!?…。！？:;][\"'”’»)\]}*_`~]*$|[\"'”’»)\]}`>|]$|https?://\S+$|\W$")
_LIST_LINE = re.compile(r"\s*(?:[-*•–]|\d+[.)]|#|\||>)\s*")


def looks_cut(text: str) -> str | None:
    """What shows that a text stops in the middle, or `None`."""
    plain = text.rstrip()
    if len(_FENCE.findall(plain)) % 2 == 1:
        return "a code fence is not closed"
    if plain.endswith(_OPEN_END):
        return f"ends in {plain[-1]!r}"
    last_line = plain.rsplit("\n", 1)[-1]
    words = re.findall(r"[^\W\d_]+", last_line.casefold())
    if not words or _CLOSED.search(last_line):
        return None
    if len(plain.split()) >= DANGLING_WORDS and words[-1] in _DANGLING:
        return f"ends in the word {words[-1]!r}"
    if _LIST_LINE.match(last_line) is None:
        ends = [
            m.end()
            for m in _SENTENCE_END.finditer(last_line)
            if not _ABBREVIATED.search(last_line[: m.start() + 1])
        ]
        rest = last_line[ends[-1] :] if ends else ""
        if len(rest.split()) >= RUN_ON_WORDS:
            return f"the last sentence has no end: {rest[:40]!r}"
    return None
