"""Writes unicode.js: what the `tokenizers` library holds each character of Unicode for.

Browsers differ in their version of Unicode, and so does the library from all of them. Its answers,
character by character, are the only tables that cut text as it does. Needs tokenizers alone.

    python examples/mobile/make_unicode.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers.normalizers import NFD, BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

WIDTH: Final = 96
DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
POINTS: Final = [n for n in range(0x110000) if not 0xD800 <= n <= 0xDFFF]
OVERLAY, ABOVE = "\u0334", "\u0301"  # of combining classes 1 and 230

HEAD: Final = """\
// Written by make_unicode.py from tokenizers {version}: what it holds each character for.
// Runs of code points: "gap length gap length ...", base 36; a gap counts from the last run's end.
"""


def cleaning() -> dict[str, set[int]]:
    """What BertNormalizer's `clean_text` drops, and what it makes a space."""
    clean = BertNormalizer(
        clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
    )
    found: dict[str, set[int]] = {"REMOVED": set(), "SPACE": set()}
    for n in POINTS:
        result = clean.normalize_str(chr(n))
        if result in ("", " "):
            found["SPACE" if result else "REMOVED"].add(n)
    return found


def chosen(test: Callable[[str], bool]) -> set[int]:
    """The code points for which a test holds."""
    return {n for n in POINTS if test(chr(n))}


def classes() -> dict[str, set[int]]:
    """Every class that wordpiece.js asks for."""
    chinese = BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    bare = BertNormalizer(
        clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
    )
    nfd = NFD()
    split = BertPreTokenizer()

    def pieces(char: str) -> int:
        return len(split.pre_tokenize_str(f"a{char}a"))

    def moves(char: str) -> bool:
        """It decomposes, or changes places with another combining character."""
        return (
            nfd.normalize_str(char) != char
            or nfd.normalize_str(char + OVERLAY) != char + OVERLAY
            or nfd.normalize_str(ABOVE + char) != ABOVE + char
        )

    return cleaning() | {
        "IDEOGRAPH": chosen(lambda c: chinese.normalize_str(c) != c),
        "MARK": chosen(lambda c: bare.normalize_str(c) == ""),
        "MOVES": chosen(moves),
        "WHITE": chosen(lambda c: pieces(c) == 2),
        "PUNCTUATION": chosen(lambda c: pieces(c) == 3),
    }


def base36(number: int) -> str:
    """A natural number in base 36."""
    found = ""
    while True:
        number, digit = divmod(number, 36)
        found = DIGITS[digit] + found
        if not number:
            return found


def runs(points: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, length) of consecutive numbers."""
    first = last = -2
    for n in sorted(points):
        if n == last + 1:
            last = n
            continue
        if last >= 0:
            yield first, last - first + 1
        first = last = n
    if last >= 0:
        yield first, last - first + 1


def packed(points: Iterable[int]) -> str:
    """Runs as gaps and lengths."""
    words, end = [], 0
    for first, length in runs(points):
        words += [base36(first - end), base36(length)]
        end = first + length
    return " ".join(words)


def lowered() -> tuple[str, dict[str, str]]:
    """Runs of "first length step distance", and characters that become several."""
    lower = Lowercase()
    single: dict[int, int] = {}
    several: dict[str, str] = {}
    for n in POINTS:
        result = lower.normalize_str(chr(n))
        if len(result) != 1:
            several[chr(n)] = result
        elif result != chr(n):
            single[n] = ord(result) - n
    found: list[list[int]] = []  # first, length, step, distance
    for n, distance in single.items():
        last = found[-1] if found else None
        if last and last[3] == distance:
            if last[1] == 1 and n - last[0] <= 2:
                last[1], last[2] = 2, n - last[0]
                continue
            if last[1] > 1 and n == last[0] + last[1] * last[2]:
                last[1] += 1
                continue
        found.append([n, 1, 1, distance])
    words, end = [], 0
    for first, length, step, distance in found:
        sign = "-" if distance < 0 else ""
        words += [base36(first - end), base36(length), base36(step), sign + base36(abs(distance))]
        end = first
    return " ".join(words), several


def literal(text: str) -> str:
    """A JavaScript string on lines of at most WIDTH."""
    lines, line = [], ""
    for word in text.split(" "):
        if len(line) + len(word) + 1 > WIDTH:
            lines.append(line + " ")
            line = ""
        line += (" " if line else "") + word
    return " +\n".join(f'  "{one}"' for one in [*lines, line])


def main() -> None:
    """Write the file beside this one."""
    found = [HEAD.format(version=tokenizers.__version__)]
    for name, points in classes().items():
        found.append(f"export const {name} =\n{literal(packed(points))};\n")
    table, several = lowered()
    escaped = ", ".join(
        '"{}": "{}"'.format(*("".join(f"\\u{{{ord(c):x}}}" for c in part) for part in pair))
        for pair in several.items()
    )
    found.append(
        "// Runs as first (from the last run's first), length, step, distance to lower case."
    )
    found.append(f"export const LOWER =\n{literal(table)};\n")
    found.append(f"export const LOWER_TO_SEVERAL = {{ {escaped} }};")
    place = Path(__file__).with_name("unicode.js")
    place.write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
