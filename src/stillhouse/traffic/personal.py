"""Personal data in a text: where it stands. Patterns, and the checks that tell it from look-alikes.

Finds e-mail addresses, telephone numbers, payment cards (Luhn), IBANs (mod 97), IP addresses, keys
and passwords of known forms. Names need Presidio and are found by `redact`. What is measured, and
what is known to escape, is in docs/traffic.md. Pure functions of a text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from stillhouse.traffic.personal_tables import (
    CALLING_CODES,
    CARD_LENGTHS,
    IBAN_LENGTHS,
    KEY_PATTERNS,
    KEY_SIGNS,
)


class Span(NamedTuple):
    """A piece of a text: [start, end), and what it says without its punctuation."""

    start: int
    end: int
    value: str


_EMAIL = re.compile(
    r"(?<![\w.+%-])\w[\w.+%'-]{0,127}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-]*@)", re.UNICODE
)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also with letters beyond ASCII."""
    if "@" in text:
        for found in _EMAIL.finditer(text):
            yield Span(found.start(), found.end(), found.group().casefold())


_KEYS = re.compile("|".join(f"(?:{pattern})" for pattern in KEY_PATTERNS))
_ASSIGNING: Final = ("key", "token", "passw", "pwd", "passphrase", "secret")
_ASSIGNED = re.compile(
    r"(?i)\b(?:api[ _-]?key|secret(?:[ _-]?key)?|access[ _-]?token|auth[ _-]?token|token|password|"
    r"passwd|pwd|passphrase)[\"']?\s{0,3}(?:[:=]|\bis\b)\s{0,3}[\"']?([^\s\"',;<>]{6,200})"
)
_URL_LOGIN = re.compile(r"(?<=://)[^\s/:@<>]{1,100}:[^\s/@<>]{1,200}(?=@)")


def keys(text: str) -> Iterator[Span]:
    """API keys and tokens of known forms, private keys, logins in URLs, assigned passwords."""
    # Looking for a few letters first is many times faster than trying all forms at each place.
    if any(sign in text for sign in KEY_SIGNS):
        for found in _KEYS.finditer(text):
            yield Span(found.start(), found.end(), found.group())
    if "://" in text:
        for found in _URL_LOGIN.finditer(text):
            yield Span(found.start(), found.end(), found.group())
    lower = text.lower()
    for found in _ASSIGNED.finditer(text) if any(word in lower for word in _ASSIGNING) else ():
        value = found.group(1).rstrip(".)")
        # A word is more likely prose ("password: required"); a secret mixes kinds of characters.
        if len(value) >= 6 and re.search(r"\d", value) and re.search(r"[^\d.:/-]", value):
            yield Span(found.start(1), found.start(1) + len(value), value)


_TWELVE_DIGITS = re.compile(r"\d(?:[ -]?\d){11}")
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){11,22}(?!\w)")
_GROUPS: Final = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1))


def cards(text: str) -> Iterator[Span]:
    """Payment card numbers: a known issuer's first digits, one of its lengths, and Luhn's check."""
    if not _TWELVE_DIGITS.search(text):
        return
    for found in _CARD.finditer(text):
        groups = list(re.finditer(r"\d+", found.group()))
        for first, last in _card_windows([len(group.group()) for group in groups]):
            digits = "".join(group.group() for group in groups[first:last])
            if card_number(digits):
                offset = found.start()
                yield Span(offset + groups[first].start(), offset + groups[last - 1].end(), digits)
                break


def _card_windows(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of digit groups that may be a card: all, then those grouped as cards are, then each."""
    yield 0, len(sizes)
    for shape in _GROUPS:
        for first in range(len(sizes) - len(shape) + 1):
            if tuple(sizes[first : first + len(shape)]) == shape:
                yield first, first + len(shape)
    for first, size in enumerate(sizes):
        if size >= 12:
            yield first, first + 1


def card_number(digits: str) -> bool:
    """Whether digits are a card number by issuer, length and check digit."""
    lengths = next(
        (CARD_LENGTHS[digits[:n]] for n in (4, 3, 2, 1) if digits[:n] in CARD_LENGTHS), ()
    )
    return len(digits) in lengths and len(set(digits)) > 1 and luhn(digits)


def luhn(digits: str) -> bool:
    """The check of ISO/IEC 7812-1: every second digit doubled, sum divisible by 10."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if index % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ ]?[A-Za-z0-9]){11,30}")


def ibans(text: str) -> Iterator[Span]:
    """International bank account numbers: the country's length and the check of ISO 7064."""
    for found in _IBAN.finditer(text):
        length = IBAN_LENGTHS.get(found.group()[:2].upper())
        if length is None:
            continue
        count = end = 0
        while end < len(found.group()) and count < length:
            count += found.group()[end] != " "
            end += 1
        following = text[found.start() + end : found.start() + end + 1]
        value = found.group()[:end].replace(" ", "").upper()
        if count == length and not following.isalnum() and mod_97(value):
            yield Span(found.start(), found.start() + end, value)


def mod_97(iban: str) -> bool:
    """Whether an IBAN's check digits are right (ISO 7064, MOD 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


_DOTTED = re.compile(r"\d\.\d{1,3}\.\d")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.+-])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(
    rf"(?<![\w:.])(?=[0-9A-Fa-f]{{0,4}}:)[0-9A-Fa-f:]{{3,45}}(?:(?<=:){_OCTET}(?:\.{_OCTET}){{3}})?"
    r"(?![\w:])",
    re.ASCII,
)
# What stands before four numbers that are a version, a section or a product, not an address.
_VERSIONED = re.compile(
    r"(?i)(?:\bv\.?|\bver\.?|\bversions?|\brelease[sd]?|\bbuild|\bfirmware|\bsection|\bclause|\bchapter|"
    r"\bupgraded?(?: to)?|\bdriver|\bsdk|\bpatch|§|[=<>~^]=?|"
    r"\b(?:chrome|chromium|safari|firefox|edge?|opr|version|crios|electron|webkit)/)\s*:?\s*$"
)


def addresses(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses; not versions, nor loopback, unspecified and multicast addresses."""
    if _DOTTED.search(text):
        for found in _IPV4.finditer(text):
            before = text[max(0, found.start() - 24) : found.start()]
            if not _VERSIONED.search(before) and _of_a_machine(found.group()):
                yield Span(found.start(), found.end(), found.group())
    if _COLONS.search(text):
        for found in _IPV6.finditer(text):
            value = found.group()
            # Namespaces of programs (abc::def) are valid addresses: those without digits are left.
            if value.count(":") >= 2 and re.search(r"\d", value) and _of_a_machine(value):
                yield Span(found.start(), found.end(), value.lower())


def _of_a_machine(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


_SEP = r"[ .\-/\u00a0\u2011]"
_SEVEN_DIGITS = re.compile(r"\d(?:[ .\-/()\u00a0\u2011]{0,4}\d){6}")
_PLUS = re.compile(rf"(?<![\w+])\+\s?[1-9](?:{_SEP}{{0,2}}\(?\d\)?){{6,16}}(?!\w)")
_ZEROS = re.compile(
    rf"(?<![\w.,-])00(?P<code>[1-9]\d{{0,2}}){_SEP}\(?\d(?:{_SEP}?\(?\d\)?){{5,13}}(?!\w)"
)
_AMERICAN = re.compile(
    r"(?<![\w.\-/])(?:1[ .-])?(?:\([2-9]\d{2}\)\s?|[2-9]\d{2}(?P<sep>[ .-]))"
    r"[2-9]\d{2}(?(sep)(?P=sep)|[ .-])\d{4}(?![\w-]|[./]\d)"
)
_NATIONAL = re.compile(
    rf"(?<![\w.,\-/:])\(?0\d{{1,4}}\)?(?:(?P<sep>{_SEP})\d{{2,10}}(?:(?P=sep)\d{{2,5}}){{0,4}}"
    r"|[ /-]\d{2,5}(?:[ -]\d{2,5}){1,3})(?![\w-]|[.,]\d)"
)
_AREA = re.compile(r"(?<![\w.])\(\d{2,4}\)\s?\d{3,5}[ -]\d{3,5}(?![\w-]|[.,]\d)")
_CALLED = re.compile(
    r"(?i)\b(?:phone|tel|telephone|telefon|mobile|mobil|cell|cellphone|fax|whatsapp|sms|text me|"
    r"call(?: me| us| back)?|reach(?: me| us)?|handy|rufnummer|téléphone|teléfono|móvil|dial)\b"
    r"(?:\s*(?:number|nummer|no\.?|nr\.?|#|at|on|is|under|unter|me|us|at:))*\s*[:=]?\s*"
    r"(?P<number>\(?\+?\d[\d ()./-]{5,20}\d)(?!\w)"
)
# Numbers of other things that have the form of a telephone number.
_COUNTED = re.compile(
    r"(?i)\b(?:order|invoice|ticket|(?<!in )case|ref(?:erence)?|sku|isbn|issn|item|part|"
    r"serial|tracking|model|account|booking|policy|claim|patent|version|bestellung|rechnung)\b[^.!?\n]{0,16}$"
)
_DATE = re.compile(r"(?:\d{2}[./-]\d{2}[./-]\d{2,4}|\d{4}[./-]\d{2}[./-]\d{2})")


def phones(text: str) -> Iterator[Span]:
    """Telephone numbers: international; American and national ones that are grouped; after a word.

    Bare digits are a telephone number only after a word that says so ("tel: 5551234567").
    """
    if not _SEVEN_DIGITS.search(text):
        return
    for found in _PLUS.finditer(text):
        digits = _digits(found.group())
        if _international(digits):
            yield _span(found.start(), found.end(), text, digits)
    for found in _CALLED.finditer(text):
        digits = _digits(found.group("number"))
        if 7 <= len(digits) <= 15 and not _DATE.match(found.group("number")):
            yield _span(found.start("number"), found.end("number"), text, digits)
    for pattern in (_ZEROS, _AMERICAN, _NATIONAL, _AREA):
        for found in pattern.finditer(text):
            digits = _digits(found.group())
            before = text[max(0, found.start() - 32) : found.start()]
            if pattern is _ZEROS and not _international(digits[2:]):
                continue
            if pattern is _NATIONAL and not (9 <= len(digits) <= 12 and _grouped(found.group())):
                continue
            if not _COUNTED.search(before):
                yield _span(found.start(), found.end(), text, digits)


def _grouped(number: str) -> bool:
    """Whether a national number is no date and no list of small numbers."""
    return not _DATE.match(number.lstrip("("))


def _digits(number: str) -> str:
    return re.sub(r"\D", "", number)


def _span(start: int, end: int, text: str, digits: str) -> Span:
    while end > start and not (text[end - 1].isdigit()):
        end -= 1
    return Span(start, end, digits)


def _international(digits: str) -> bool:
    """Whether digits after + are a number by E.164: a country's code and 7 to 15 digits."""
    if digits.startswith("1"):
        return len(digits) == 11 and digits[1] in "23456789" and digits[4] in "23456789"
    return 7 <= len(digits) <= 15 and any(digits[:n] in CALLING_CODES for n in (2, 3))
