"""Where words are, in scripts with and without spaces, beside whole words of each."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.words import FIRST, inside_word


def parts(text: str, rule: int = 2) -> list[str]:
    """A text cut wherever a value may begin or end."""
    cuts = [at for at in range(1, len(text)) if not inside_word(text, at, rule)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    "word",
    [
        "Straße",
        "Москва",
        "القاهرة",
        "مـحـمد",  # tatweel, a modifier letter
        "مُحَمَّد",  # vowel marks
        "می\u200cخواهم",  # a joiner within a Persian word
        "ירושלים",
        "שָׁלוֹם",
        "हिन्दी",  # vowel signs without a combining class, a virama
        "தமிழ்",
        "বাংলা",
        "አማርኛ",
        "თბილისი",
        "Երևան",
        "90210",
        "٢٠٢٤",
        "cafe\u0301",
    ],
)
def test_a_word_of_a_script_with_spaces_is_whole(word: str) -> None:
    assert parts(f"{word} {word}") == [word, " ", word]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("北京市", ["北", "京", "市"]),
        ("時々", ["時", "々"]),
        ("東京タワーへ", ["東", "京", "タ", "ワ", "ー", "へ"]),
        ("か\u3099く", ["か\u3099", "く"]),
        ("서울에서", ["서", "울", "에", "서"]),
        ("กรุง", ["ก", "รุ", "ง"]),
        ("ခရီး", ["ခ", "ရီး"]),
        ("iPhone手机", ["iPhone", "手", "机"]),
        ("CA90210", ["CA", "90210"]),
        ("5م", ["5", "م"]),
        ("الiPhone", ["ال", "iPhone"]),
        ("a, b", ["a", ",", " ", "b"]),
    ],
)
def test_letters_without_spaces_and_what_differs_are_apart(text: str, found: list[str]) -> None:
    assert parts(text) == found


def test_the_first_rule_knows_case_alone() -> None:
    assert parts("שלום abc 12", FIRST) == ["ש", "ל", "ו", "ם", " ", "abc", " ", "12"]
    assert parts("हि", FIRST) == ["ह", "ि"]
    assert parts("cafe\u0301s", FIRST) == ["cafe\u0301", "s"]


@settings(deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0x24F), max_size=12), st.data())
def test_both_rules_are_one_of_latin_letters_without_marks(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(-1, 13))
    assert inside_word(text, at) == inside_word(text, at, FIRST)


@settings(deadline=None)
@given(st.text(max_size=12), st.integers(-1, 13))
def test_no_mark_begins_anything(text: str, at: int) -> None:
    marked = 0 < at < len(text) and unicodedata.category(text[at])[0] == "M"
    assert inside_word(text, at) or not marked
    assert not (inside_word(text, at) and not 0 < at < len(text))
