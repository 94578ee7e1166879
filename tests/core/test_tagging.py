"""Schemas that tags can fill, and answers written from spans."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.tagging import (
    Span,
    TagField,
    Value,
    spans_of,
    tag_fields,
    tag_names,
    tagging_problem,
    values_of,
    written,
)
from stillhouse.core.tasks import ExtractionTask

STRING = {"type": "string"}
NULLABLE = {"type": ["string", "null"]}
EITHER = {"anyOf": [STRING, {"type": "null"}], "default": None}
LIST = {"type": "array", "items": STRING}


def schema(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": properties}
    return found if required is None else {**found, "required": required}


ONE = schema(a=STRING)


def test_fields_are_strings_and_lists_of_strings_in_the_schemas_order() -> None:
    given_ = schema(["b", "c"], b=STRING, a=LIST, d=EITHER, c=NULLABLE)
    assert tagging_problem(given_) is None
    fields = tag_fields(given_)
    assert fields == (
        TagField("b", required=True),
        TagField("a", many=True),
        TagField("d", nullable=True),
        TagField("c", required=True, nullable=True),
    )
    assert tag_names(fields[:2]) == ("O", "B-b", "I-b", "B-a", "I-a")


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "integer"},
        {"type": "string", "enum": ["x"]},
        {"type": "object", "properties": {"x": STRING}},
        {"type": "array"},
        {"type": "array", "items": LIST},
        {"type": "array", "items": NULLABLE},
        {"type": ["string", "integer"]},
        {"anyOf": [STRING, LIST]},
        {"const": "x"},
        {},
        True,
    ],
)
def test_a_property_of_another_kind_is_named(inner: Any) -> None:
    problem = tagging_problem(schema(good=STRING, odd=inner))
    assert problem is not None
    assert problem.startswith("task.json_schema.properties.odd is ")


def test_what_else_a_schema_may_not_say() -> None:
    assert "anyOf" in str(tagging_problem({**schema(a=STRING), "anyOf": []}))
    assert "'b', which is no property" in str(tagging_problem(schema(["b"], a=STRING)))
    assert "['a'], which is no property" in str(tagging_problem({**ONE, "required": [["a"]]}))
    assert "required is 'a', which is no list" in str(tagging_problem({**ONE, "required": "a"}))
    assert tagging_problem({**ONE, "additionalProperties": False}) is None


def test_values_of_an_answer_are_its_texts() -> None:
    fields = tag_fields(schema(a=STRING, many=LIST, b=NULLABLE))
    answer = {"b": None, "many": ["x", " ", "y"], "a": "z", "other": "w"}
    assert values_of(fields, answer) == [Value(0, "z"), Value(1, "x"), Value(1, "y")]
    assert values_of(fields, {"a": "  "}) == []


def test_an_inside_tag_without_its_beginning_begins_a_span() -> None:
    offsets = [(n, n + 1) for n in range(7)]
    #       I-0 I-0 B-0 O  I-1 I-0 I-0
    tags = [2, 2, 1, 0, 4, 2, 2]
    assert spans_of(tags, offsets, 2) == (
        (Span(0, 2), Span(2, 3), Span(5, 7)),
        (Span(4, 5),),
    )


def test_an_answer_holds_the_texts_own_characters() -> None:
    text = "Apt, 5\tÜber-Straße 7"
    fields = tag_fields(schema(street=STRING, unit=STRING, parts=LIST))
    answer = written(fields, text, [(Span(7, 20),), (Span(0, 3), Span(5, 6)), ()])
    assert answer == '{"street": "Über-Straße 7", "unit": "Apt 5"}'
    listed = written(fields, text, [(), (), (Span(0, 3), Span(5, 7))])
    assert json.loads(listed) == {"parts": ["Apt", "5"]}


def test_what_is_required_and_not_found_is_said_as_the_schema_allows() -> None:
    given_ = schema(["a", "b", "c"], a=STRING, b=NULLABLE, c=LIST, d=STRING)
    answer = written(tag_fields(given_), "", [(), (), (), ()])
    assert json.loads(answer) == {"a": "", "b": None, "c": []}
    task = ExtractionTask(kind="extraction", json_schema=given_)
    assert task.parse(answer).problem is None


@settings(deadline=None)
@given(
    text=st.text(max_size=30),
    places=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=6),
    required=st.booleans(),
    nullable=st.booleans(),
)
def test_whatever_is_tagged_the_answer_fits_its_schema(
    text: str, places: list[tuple[int, int]], required: bool, nullable: bool
) -> None:
    given_ = schema(
        ["a", "b"] if required else [], a=NULLABLE if nullable else STRING, b=LIST, c=EITHER
    )
    spans = [Span(min(one), max(one)) for one in places]
    task = ExtractionTask(kind="extraction", json_schema=given_)
    answer = written(tag_fields(given_), text, [spans[0::3], spans[1::3], spans[2::3]])
    assert task.parse(answer).problem is None
