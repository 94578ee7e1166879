"""Where the words of a text are: at which positions no value of a tag student begins or ends.

Whoever was taught by one rule is read by it: a student's files name the rule, and students from
before they did were taught by the first. Knows characters alone.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final, Literal

WORDS: Final = 2  # the rule that students are taught by now
FIRST: Final = 1  # that of students whose files name none
RULES: Final = frozenset((FIRST, WORDS))
# How Unicode's names of letters begin in scripts that write words without spaces. Korean is written
# with spaces, but what follows a noun is written onto it: a value may end before that.
_UNSPACED: Final = (
    *("CJK ", "IDEOGRAPHIC ", "VERTICAL IDEOGRAPHIC ", "BOPOMOFO ", "HIRAGANA ", "KATAKANA"),
    *("HALFWIDTH KATAKANA", "HANGUL ", "HALFWIDTH HANGUL ", "YI "),
    *("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI LUE ", "BALINESE ", "JAVANESE "),
)
_JOINERS: Final = ("\u200c", "\u200d")  # within words of Persian and of Indian languages

_Kind = Literal["digit", "cased", "uncased", "letter", "mark", "other"]


def inside_word(text: str, at: int, rule: int = WORDS) -> bool:
    """Whether the characters before and at a position are of one word: two letters, or two digits;
    or of one letter with its marks. No value begins or ends there.

    Letters of scripts that write no spaces between words (Chinese, Thai), and of Korean, are words
    of their own.

    Args:
        rule: 1: letters without case are, whatever their script, and most vowel signs too.
    """
    if not 0 < at < len(text):
        return False
    if rule == FIRST:
        return _inside_by_case(text[at - 1], text[at])
    after = _kind(text[at])
    if after == "mark":
        return True
    before = _kind(text[at - 1])
    while before == "mark" and at > 1:
        at -= 1
        before = _kind(text[at - 1])
    if "digit" in (before, after):
        return before == after
    letters = ("cased", "uncased", "letter")
    if before not in letters or after not in letters:
        return False
    return before == after or "letter" in (before, after)


@lru_cache(maxsize=1 << 14)
def _kind(character: str) -> _Kind:
    """What a character is in a word; a letter that is a word of its own is `other`, and a `letter`
    goes with those of either case (modifiers, Arabic's tatweel)."""
    category = unicodedata.category(character)
    if character.isdigit():
        return "digit"
    if category[0] == "M" or character in _JOINERS:
        return "mark"
    if not character.isalpha() or unicodedata.name(character, "").startswith(_UNSPACED):
        return "other"
    return "uncased" if category == "Lo" else "letter" if category == "Lm" else "cased"


def _inside_by_case(before: str, after: str) -> bool:
    if before.isdigit() and after.isdigit():
        return True
    cased = all(c.isalpha() and unicodedata.category(c) != "Lo" for c in (before, after))
    return cased or unicodedata.combining(after) > 0
