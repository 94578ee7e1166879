"""Where values stand in a text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.train.alignment import MOST_PIECES, Wanted, align


def found(text: str, *values: str) -> list[list[str] | None]:
    places = align(text, [Wanted(value) for value in values])
    return [None if p is None else [text[one.start : one.end] for one in p] for p in places]


def starts(text: str, *values: str) -> list[list[int] | None]:
    places = align(text, [Wanted(value) for value in values])
    return [None if p is None else [one.start for one in p] for p in places]


def test_a_value_is_found_as_it_stands() -> None:
    assert found("12 Main St, Troy NY 12180", "12", "Main St", "Troy") == [
        ["12"],
        ["Main St"],
        ["Troy"],
    ]


def test_white_space_and_case_are_passed_over_where_nothing_stands_literally() -> None:
    assert found("12 MAIN\n  St", "main st") == [["MAIN\n  St"]]
    assert starts("main MAIN", "MAIN") == [[5]]
    # both are wanted: the second takes what reads the same
    assert starts("troy, TROY", "TROY", "TROY") == [[0], [6]]


def test_a_value_begins_and_ends_with_words() -> None:
    assert found("1525 Elm", "5") == [None]
    assert found("Main Street", "Main S") == [None]
    assert found("CA90210", "CA", "90210") == [["CA"], ["90210"]]
    assert found("costs $5.", "5") == [["5"]]
    assert found("我住在北京市", "北京") == [["北京"]]
    # scripts that write spaces between words, with and without vowel marks
    assert found("يسكن في القاهرة", "القاهرة", "قاهر") == [["القاهرة"], None]
    assert found("वह दिल्ली में", "दिल्ली") == [["दिल्ली"]]
    assert found("वह दिल्ली में", "दिल्ल") == [None]


def test_values_share_no_character() -> None:
    assert starts("5 Main St Apt 5", "5", "Apt 5") == [[0], [10]]
    assert starts("New York, New York 10001", "New York", "New York") == [[0], [10]]
    assert found("New York", "New York", "New York") == [["New York"], None]
    assert found("Main St", "Main St", "Main") == [["Main St"], None]


def test_neighbours_stay_together() -> None:
    text = "Paris Rd 7, 75001 Paris"
    assert starts(text, "75001", "Paris") == [[12], [18]]
    assert starts(text, "Paris Rd", "75001", "Paris") == [[0], [12], [18]]


def test_a_value_may_stand_in_pieces() -> None:
    assert found("Apt, 5, Troy", "Apt 5") == [["Apt", "5"]]
    assert found("N. Main, St. 7", "N. Main St.") == [["N. Main", "St."]]
    assert found("P.O.Box 5", "P.O. Box 5") == [["P.O.", "Box 5"]]
    # its words stand in another order, or one is another's
    assert found("5, Apt", "Apt 5") == [None]
    assert found("Suite 7, 5 Main", "5", "Suite 5") == [["5"], None]
    # the nearest of several places
    assert starts("Apt 1, Apt, 5", "Apt 5") == [[7, 12]]


def test_scattered_words_are_no_value() -> None:
    words = ["the", "client", "wants", "a", "refund"]
    text = " and, ".join(words)
    assert len(words) > MOST_PIECES
    assert found(text, " ".join(words)) == [None]


def test_an_item_of_a_list_is_in_one_piece() -> None:
    assert align("Apt, 5", [Wanted("Apt 5", whole=True)]) == [None]


def test_what_is_not_there_is_not_found() -> None:
    assert found("Troy NY", "Albany", "Troy") == [None, ["Troy"]]
    assert found("", "x") == [None]
    assert align("x", []) == []


WORDS = st.lists(st.sampled_from(["ab", "Ab", "b", "5", "55", "a1", "é", "北"]), max_size=12)
VALUES = st.lists(
    st.lists(
        st.sampled_from(["ab", "Ab", "b", "5", "a1", "é", "zz", "b."]), min_size=1, max_size=4
    ),
    max_size=5,
)


@settings(max_examples=300)
@given(
    words=WORDS, gaps=st.lists(st.sampled_from([" ", ", ", "\n", "-"]), max_size=12), wanted=VALUES
)
def test_places_say_the_value_in_order_and_share_nothing(
    words: list[str], gaps: list[str], wanted: list[list[str]]
) -> None:
    text = "".join(w + g for w, g in zip(words, [*gaps, *[" "] * 12], strict=False))
    values = [" ".join(one) for one in wanted]
    taken: set[int] = set()
    for value, places in zip(values, align(text, [Wanted(v) for v in values]), strict=True):
        if places is None:
            continue
        assert 1 <= len(places) <= MOST_PIECES
        said = " ".join(text[one.start : one.end] for one in places)
        assert said.casefold().split() == value.casefold().split()
        assert [one.start for one in places] == sorted(one.start for one in places)
        own = {at for one in places for at in range(one.start, one.end)}
        assert len(own) == sum(one.end - one.start for one in places)
        assert not own & taken
        taken |= own


@given(
    values=st.lists(
        st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    between=st.sampled_from([" ", ", ", " / "]),
)
def test_values_that_were_written_one_after_another_are_all_found(
    values: list[str], between: str
) -> None:
    text = between.join(values)
    assert found(text, *values) == [[value] for value in values]


def test_a_long_text_is_read_quickly_and_to_its_bound() -> None:
    text = "a " * 20_000 + "end"
    assert found(text, "a", "end") == [["a"], ["end"]]
    assert found(text, *["a"] * 20)[-1] is None  # of the 16 places that are looked at
