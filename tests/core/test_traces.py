"""Whose a record is, and what others say of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.records import Message, key_of_turns, message_key
from stillhouse.core.traces import GONE, STRIDE, WINDOW, Traces

CHAT = [{"role": "user", "content": "what they asked"}]
KEY = key_of_turns([("user", "what they asked")])
THEIRS = Traces(
    frozenset({"ann", "0f3a"}),
    frozenset({"q1", "the second"}),
    frozenset({KEY}),
    ("a sentence of theirs that is long enough to be known again", "short one"),
)


def test_turns_hash_as_messages_do() -> None:
    assert message_key([Message(role="user", content="what they asked")]) == KEY


@pytest.mark.parametrize(
    "value",
    [
        {"user": "ann"},
        {"user": "0f3a", "x": 1},
        {"id": "q1"},
        {"query_id": "the second"},
        {"custom_id": "q1", "body": {}},
        {"chat": KEY},
        {"prompt_hash": KEY},
        {"messages": CHAT},
        {"messages": [*CHAT, {"role": "assistant", "content": "what was said"}]},
        {"body": {"messages": CHAT}},
        {"query": {"user": "ann"}},
    ],
)
def test_what_is_theirs(value: dict[str, Any]) -> None:
    assert THEIRS.owns(value)
    assert THEIRS.scrubbed([value, 1]) == [1]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "ann",
        None,
        {"user": "anna"},
        {"user": ["ann"]},
        {"user": {"name": "x"}},
        {"id": 1},
        {"id": "q11"},
        {"content": "q1"},
        {"messages": []},
        {"messages": "q1"},
        {"messages": [1]},
        {"messages": [{"role": "system", "content": "what they asked"}]},
    ],
)
def test_what_is_not_theirs(value: Any) -> None:
    assert not THEIRS.owns(value)


def test_mentions_go_and_others_words_stay() -> None:
    found = THEIRS.scrubbed(
        {
            "detail": "the same chat as q1, or (the second)",
            "members": ["q0", "q1", "q2"],
            "scores": {"q1": 0.5, "q2": 0.25},
            "text": "q1 ann",
            "labels": ["q1", "q2"],
            "of": "q1",
            "note": "ann's",
            "count": 3,
        }
    )
    assert found == {
        "detail": f"the same chat as {GONE}, or ({GONE})",
        "members": ["q0", "q2"],
        "scores": {"q2": 0.25},
        "text": "q1 ann",
        "labels": ["q1", "q2"],
        "of": GONE,
        "note": "ann's",
        "count": 3,
    }


def test_numbers_in_other_words_are_not_ids() -> None:
    known = Traces(frozenset({"7"}), frozenset({"12"}), frozenset())
    assert known.without("112 characters, more than 70") == "112 characters, more than 70"
    assert known.without("as query 12, nearly") == f"as query {GONE}, nearly"


@given(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=WINDOW + STRIDE, max_size=120),
    st.text("xyz", max_size=40),
    st.text("xyz", max_size=40),
    st.data(),
)
def test_a_quotation_is_found_wherever_it_is_cut(
    text: str, before: str, after: str, data: st.DataObject
) -> None:
    known = Traces(frozenset(), frozenset(), frozenset(), (text,))
    length = WINDOW + STRIDE - 1
    start = data.draw(st.integers(0, len(text) - length))
    assert known.without(before + text[start : start + length] + after) == GONE


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["user", "id", "query_id", "messages", "detail", "text", "a"]), inner
        )
    ),
    max_leaves=20,
)


@given(nested, st.text(max_size=4), st.text(max_size=4))
def test_any_json_is_scrubbed_once_for_all(value: Any, name: str, one: str) -> None:
    known = Traces(frozenset({f"u{name}"}), frozenset({f"i{one}"}), frozenset())
    first = known.scrubbed(value)
    assert known.scrubbed(first) == first
