"""Records: strict where they enter, the same after a trip to disk."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stillhouse.core.records import (
    Completion,
    Example,
    LabelledQuery,
    Message,
    Query,
    TokenLogprob,
    message_key,
    well_formed,
)

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.builds(
    lambda turns, last: (*turns, last),
    st.lists(
        st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXT),
        max_size=3,
    ),
    st.builds(Message, role=st.just("user"), content=TEXT),
)
LOGPROBS = st.floats(max_value=0.0, allow_nan=False)  # minus infinity included
QUERIES = st.builds(
    Query,
    id=TEXT.filter(bool),
    messages=MESSAGES,
    user=st.none() | TEXT,
    metadata=st.dictionaries(TEXT, JSON_VALUES, max_size=3),
)
COMPLETIONS = st.builds(
    Completion,
    query_id=TEXT,
    text=TEXT,
    model=TEXT,
    revision=TEXT,
    logprobs=st.none() | st.lists(st.builds(TokenLogprob, token=TEXT, logprob=LOGPROBS)).map(tuple),
    label_logprobs=st.none() | st.dictionaries(TEXT, LOGPROBS, max_size=3),
)


@settings(deadline=None)
@given(QUERIES | COMPLETIONS)
def test_a_record_survives_the_disk(record: Query | Completion) -> None:
    line = record.to_json()
    assert len(line.splitlines()) <= 1 or "\n" not in line
    assert type(record).model_validate(json.loads(line)) == record


def test_minus_infinity_is_written_as_standard_json() -> None:
    completion = Completion(
        query_id="q", text="a", model="m", revision="r", label_logprobs={"a": -math.inf}
    )
    raw = json.loads(completion.to_json(), parse_constant=pytest.fail)
    assert Completion.model_validate(raw).label_logprobs == {"a": -math.inf}


@settings(deadline=None)
@given(st.text(st.characters()))
def test_what_a_model_says_can_always_be_written(text: str) -> None:
    completion = Completion(
        query_id="q",
        text=text,
        model="m",
        revision="r",
        logprobs=(TokenLogprob(token=text, logprob=0.0, top=((text, 0.0),)),),
    )
    assert Completion.model_validate_json(completion.to_json()) == completion


@settings(deadline=None)
@given(st.text(st.characters()))
def test_only_lone_surrogates_are_replaced(text: str) -> None:
    kept = well_formed(text)
    if kept != text:
        assert any("\ud800" <= character <= "\udfff" for character in text)
        assert "\ufffd" in kept
    assert well_formed("a\ud800b\U0001f600") == "a\ufffdb\U0001f600"


def test_none_fields_are_left_out_but_user_metadata_is_kept_whole() -> None:
    query = Query(
        id="a", messages=(Message(role="user", content="x"),), metadata={"kept": {"null": None}}
    )
    raw = json.loads(query.to_json())
    assert "user" not in raw
    assert raw["metadata"] == {"kept": {"null": None}}


@pytest.mark.parametrize(
    "raw",
    [
        {"id": "", "messages": [{"role": "user", "content": "x"}]},
        {"id": "a", "messages": []},
        {"id": "a", "messages": [{"role": "robot", "content": "x"}]},
        {"id": "a", "messages": [{"role": "user", "content": None}]},
        {"id": "a", "messages": [{"role": "user", "content": "x"}], "surplus": 1},
        {"id": "a", "messages": [{"role": "assistant", "content": "x"}]},
    ],
)
def test_a_wrong_query_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Query.model_validate(raw)


def test_records_are_frozen() -> None:
    message = Message(role="user", content="x")
    with pytest.raises(ValidationError):
        message.content = "y"  # type: ignore[misc]


def test_a_label_is_read_as_the_reference_and_written_as_one() -> None:
    raw = {"id": "a", "messages": [{"role": "user", "content": "x"}], "label": "good"}
    query = LabelledQuery.model_validate(raw)
    assert query.reference == "good"
    assert LabelledQuery.model_validate_json(query.to_json()) == query


def test_an_example_gives_back_its_query_and_answer() -> None:
    asked = (Message(role="system", content="s"), Message(role="user", content="x"))
    example = Example(
        id="a",
        messages=(*asked, Message(role="assistant", content="good")),
        task="t",
        group="g",
        teacher="m",
        teacher_revision="1",
    )
    assert example.completion == "good"
    assert example.to_query() == Query(id="a", messages=asked, task="t")


@settings(deadline=None)
@given(MESSAGES, MESSAGES)
def test_message_keys_are_equal_exactly_for_equal_chats(
    left: tuple[Message, ...], right: tuple[Message, ...]
) -> None:
    assert (message_key(left) == message_key(right)) == (left == right)


def test_message_key_is_pinned() -> None:
    # Stores of paid answers are keyed by it: a change makes every teacher be asked again.
    key = message_key((Message(role="user", content="Hello, wörld"),))
    assert key == "57acba5f6f7e8bd29b1e46ca65ffe310"


def test_message_key_does_not_mix_role_and_content() -> None:
    one = (Message(role="user", content="a"), Message(role="user", content="b"))
    other = (Message(role="user", content="ab"),)
    assert message_key(one) != message_key(other)
