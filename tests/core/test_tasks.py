"""Tasks: prompts in, answers out, with every way an answer can fail named."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import (
    TEXT_SLOT,
    ClassificationTask,
    ExtractionTask,
    GenerationTask,
    canonical_json,
    fold,
    json_value,
    schema_problem,
    unread_keyword,
)

SENTIMENT = ClassificationTask(kind="classification", labels=("good", "bad", "not sure", "not"))
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "zip": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1]}},
        "inner": {
            "type": "object",
            "properties": {"n": {"type": ["integer", "null"]}},
            "additionalProperties": {"type": "boolean"},
        },
    },
    "required": ["city"],
    "additionalProperties": False,
}
ADDRESS = ExtractionTask(kind="extraction", json_schema=SCHEMA)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@settings(deadline=None)
@given(TEXT, TEXT, TEXT, st.none() | TEXT)
def test_input_text_takes_back_what_the_prompt_put_in(
    head: str, tail: str, text: str, system: str | None
) -> None:
    assume(TEXT_SLOT not in head + tail and (head + TEXT_SLOT + tail).count(TEXT_SLOT) == 1)
    task = GenerationTask(kind="generation", prompt=head + TEXT_SLOT + tail, system=system)
    messages = task.messages_for(text)
    query = Query(id="q", messages=messages)
    assert task.input_text(query) == text
    assert task.varying_text(query) == text
    assert messages[-1].content == head + text + tail
    assert (len(messages) == 2) == (system is not None)


def test_a_chat_of_another_form_is_taken_whole() -> None:
    task = GenerationTask(kind="generation", prompt="Summarise: {text} Now.")
    chat = (
        Message(role="system", content="be kind"),
        Message(role="user", content="Summarise: first Now."),
        Message(role="assistant", content="1st"),
        Message(role="user", content="shorter"),
    )
    query = Query(id="q", messages=chat)
    assert task.last_text(query) == "shorter"
    assert task.varying_text(query) == "Summarise: first Now.\n1st\nshorter"
    # A label student must not see two chats as one that decontamination tells apart.
    assert task.input_text(query) == task.varying_text(query)


@pytest.mark.parametrize("prompt", ["no slot", "{text} and {text}"])
def test_a_prompt_has_one_slot(prompt: str) -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        GenerationTask(kind="generation", prompt=prompt)


@pytest.mark.parametrize("labels", [("a", "A"), ("a", "'a'"), ("a", " "), ("a",), ("a", "a.")])
def test_labels_that_cannot_be_told_apart_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ClassificationTask(kind="classification", labels=labels)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("good", "good"),
        (" 'Good'.\n", "good"),
        ("GOOD, because it shines", "good"),
        ("not sure", "not sure"),
        ("Not sure at all", "not sure"),
        ("not", "not"),
        ("not, surely", "not"),
        ("**bad**", "bad"),
    ],
)
def test_a_label_is_read(answer: str, label: str) -> None:
    assert SENTIMENT.parse(answer) == (label, None)


@pytest.mark.parametrize("answer", ["", "goodness", "bad-ish", "it is good", "?", "notsure"])
def test_what_names_no_label_has_a_problem(answer: str) -> None:
    parsed = SENTIMENT.parse(answer)
    assert parsed.value is None
    assert parsed.problem is not None
    assert "not one of the labels" in parsed.problem


@settings(deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6), TEXT)
def test_each_label_parses_to_itself_and_any_text_parses(labels: list[str], text: str) -> None:
    folded = [fold(label) for label in labels]
    assume("" not in folded and len(set(folded)) == len(folded))
    task = ClassificationTask(kind="classification", labels=tuple(labels))
    for label in labels:
        assert task.parse(label).value == label
    parsed = task.parse(text)
    assert (parsed.value is None) == (parsed.problem is not None)
    assert parsed.value is None or parsed.value in labels


@pytest.mark.parametrize(
    "answer",
    [
        '{"city": "X"}',
        '  {"city": "X"}\n',
        'Here it is:\n```json\n{"city": "X"}\n```\nDone.',
        '```\n{"city": "X"}```',
    ],
)
def test_an_object_is_read_with_or_without_a_fence(answer: str) -> None:
    assert ADDRESS.parse(answer) == ({"city": "X"}, None)


def test_a_fence_inside_a_bare_object_is_part_of_it() -> None:
    value = {"city": 'see ```json {"city": "Y"} ```'}
    assert ADDRESS.parse(json.dumps(value)).value == value


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I cannot", "not JSON"),
        ("", "not JSON"),
        ("```json\nnothing\n```", "not JSON"),
        ('{"city": NaN}', "not JSON"),
        ('{"city": 1e999}', "not JSON"),
        ('{"city": "\\ud800"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "answer is not of type object"),
        ("{}", "answer lacks 'city'"),
        ('{"city": 1}', "city is not of type string"),
        ('{"city": "X", "zip": 3}', "zip is not of type string"),
        ('{"city": "X", "zap": 3}', "unknown key 'zap'"),
        ('{"city": "X", "tags": ["a", "c"]}', "tags[1] is not one of"),
        ('{"city": "X", "tags": [true]}', "tags[0] is not one of"),
        ('{"city": "X", "inner": {"n": true}}', "inner.n is not of type integer or null"),
        ('{"city": "X", "inner": {"other": 1}}', "inner.other is not of type boolean"),
    ],
)
def test_an_answer_that_breaks_the_schema_says_where(answer: str, problem: str) -> None:
    parsed = ADDRESS.parse(answer)
    assert parsed.value is None
    assert parsed.problem is not None
    assert problem in parsed.problem


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", "X"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["city", "zip", "tags", "inner", "n", "o"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries(
    {"city": st.just("X") | JSON_VALUES},
    optional={
        "zip": st.none() | JSON_VALUES,
        "tags": st.lists(st.sampled_from(["a", "b", 1, True])) | JSON_VALUES,
        "inner": st.dictionaries(st.sampled_from("no"), JSON_VALUES),
    },
)


@settings(deadline=None)
@given(JSON_VALUES | OBJECTS)
@example({"city": "X", "zip": None, "tags": ["a", 1], "inner": {"n": 3, "o": True}})
def test_the_schema_check_agrees_with_the_reference_validator(value: object) -> None:
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert (schema_problem(value, SCHEMA, "") is None) == valid


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "object", "properties": {"a": {"pattern": "x"}}}, "pattern"),
        ({"type": "object", "properties": {"a": {"items": {"minimum": 1}}}}, "minimum"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/x"}]}}}, "$ref"),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 1}, "minProperties"),
    ],
)
def test_a_schema_that_would_not_be_checked_is_refused(
    schema: dict[str, object], keyword: str
) -> None:
    assert unread_keyword(schema) == keyword  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="not checked here"):
        ExtractionTask.model_validate({"kind": "extraction", "json_schema": schema})


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"type": "object", "properties": {"pattern": {"type": "string"}}}
    assert unread_keyword(schema) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("schema", [{}, {"type": "array"}, {"type": "object", "properties": {}}])
def test_a_schema_is_of_an_object_with_properties(schema: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="of type object"):
        ExtractionTask.model_validate({"kind": "extraction", "json_schema": schema})


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_parsed_by_every_kind(text: str) -> None:
    for task in (SENTIMENT, ADDRESS, GenerationTask(kind="generation")):
        parsed = task.parse(text)
        assert (parsed.value is None) == (parsed.problem is not None)


@settings(deadline=None)
@given(JSON_VALUES)
def test_canonical_json_is_one_text_per_value(value: object) -> None:
    text = canonical_json(value)
    assert json_value(text) == value
    assert canonical_json(json_value(json.dumps(value, indent=1))) == text


def test_generation_keeps_the_stripped_text() -> None:
    assert GenerationTask(kind="generation").parse(" a b \n") == ("a b", None)
    assert GenerationTask(kind="generation").parse(" \n").problem == "empty"
