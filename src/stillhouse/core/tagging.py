"""Extraction by tags: the fields that a schema has copied, their BIO tags, and the answer as JSON.

A field is a string, found in one or more places of the text and joined with a space, or a list of
strings, a place each. Tags are `O`, then `B-FIELD` and `I-FIELD` of each field in the schema's
order (Ramshaw and Marcus 1995, arXiv:cmp-lg/9505040). Knows schemas and texts; no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pydantic import JsonValue

OUTSIDE: Final = 0  # the number of the tag O
_ROOT: Final = frozenset(("type", "properties", "required", "additionalProperties"))
_REMARKS: Final = frozenset(("title", "description", "examples", "$schema", "$id", "$comment"))
_NULL: Final[dict[str, JsonValue]] = {"type": "null"}


class Span(NamedTuple):
    """Characters `start` to `end` (not included) of a text."""

    start: int
    end: int


class TagField(NamedTuple):
    """A field that is copied from the text. `many`: a list; `required`, `nullable`: what is said
    of it where nothing was found."""

    name: str
    many: bool = False
    required: bool = False
    nullable: bool = False


class Value(NamedTuple):
    """A text that an answer holds, and the number of its field."""

    field: int
    text: str


def tagging_problem(schema: Mapping[str, JsonValue]) -> str | None:
    """Why answers of a schema cannot be written from spans of a text, or `None`."""
    for keyword in schema:
        if keyword not in _ROOT | _REMARKS:
            return f"task.json_schema uses {keyword}"
    properties = schema["properties"]
    assert isinstance(properties, dict), "an extraction task lists its properties"
    for name, inner in properties.items():
        if _field(name, inner, required=False) is None:
            told = json.dumps(inner, ensure_ascii=False)[:60]
            return f"task.json_schema.properties.{name} is {told}"
    required = schema.get("required", [])
    if not isinstance(required, list):
        return f"task.json_schema.required is {required!r}, which is no list"
    for one in required:
        if not isinstance(one, str) or one not in properties:
            return f"task.json_schema.required names {one!r}, which is no property"
    return None


def tag_fields(schema: Mapping[str, JsonValue]) -> tuple[TagField, ...]:
    """The fields of a schema that has no `tagging_problem`, in its order."""
    properties, required = schema["properties"], schema.get("required")
    assert isinstance(properties, dict), "an extraction task lists its properties"
    wanted = required if isinstance(required, list) else []
    found = [_field(name, inner, required=name in wanted) for name, inner in properties.items()]
    fields = tuple(one for one in found if one is not None)
    assert len(fields) == len(found), "recipes refuse other schemas"
    return fields


def tag_names(fields: Sequence[TagField]) -> tuple[str, ...]:
    """`O`, and of field k (from 0) `B-` as number 1 + 2k and `I-` as 2 + 2k."""
    return ("O", *(f"{part}-{field.name}" for field in fields for part in "BI"))


def values_of(fields: Sequence[TagField], answer: Mapping[str, JsonValue]) -> list[Value]:
    """The texts of an answer that fits its schema, in the schema's order; blank ones say nothing.

    Of a list, each item is one.
    """
    found: list[Value] = []
    for number, field in enumerate(fields):
        given = answer.get(field.name)
        items = given if isinstance(given, list) else [given]
        found += [Value(number, one) for one in items if isinstance(one, str) and one.strip()]
    return found


def spans_of(
    tags: Sequence[int], offsets: Sequence[tuple[int, int]], fields: int
) -> tuple[tuple[Span, ...], ...]:
    """The spans of each field that tags of tokens mark, in the order of the text.

    Args:
        tags: numbers of `tag_names`, one a token; an I after anything but its own field begins a
            span as B does.
        offsets: where each token stands in the text.
        fields: how many there are.
    """
    found: list[list[Span]] = [[] for _ in range(fields)]
    open_field: int | None = None
    for tag, (start, end) in zip(tags, offsets, strict=True):
        if tag == OUTSIDE:
            open_field = None
            continue
        field, inside = divmod(tag - 1, 2)
        if inside and open_field == field:
            found[field][-1] = Span(found[field][-1].start, end)
        else:
            found[field].append(Span(start, end))
        open_field = field
    return tuple(tuple(spans) for spans in found)


def real_tokens(offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[bool]:
    """Which tokens stand in the text: those that the tokenizer did not add, and that have a
    character.

    Args:
        offsets: where each token stands in the text.
        special: 1 where the tokenizer added it.
    """
    return [not mark and start < end for (start, end), mark in zip(offsets, special, strict=True)]


def written(fields: Sequence[TagField], text: str, spans: Sequence[Sequence[Span]]) -> str:
    """The answer as JSON, keys in the schema's order: each value is its spans' own characters.

    A field without any is left out; where the schema requires it, it is null if that is allowed,
    else empty.
    """
    answer: dict[str, JsonValue] = {}
    for field, places in zip(fields, spans, strict=True):
        pieces = [text[one.start : one.end].strip() for one in places]
        pieces = [piece for piece in pieces if piece]
        if pieces:
            answer[field.name] = list(pieces) if field.many else " ".join(pieces)
        elif field.required and field.nullable:
            answer[field.name] = None
        elif field.required:
            answer[field.name] = [] if field.many else ""
    return json.dumps(answer, ensure_ascii=False)


def _field(name: str, schema: JsonValue, *, required: bool) -> TagField | None:
    """A property as a field, or `None` where it holds something else than texts."""
    if not isinstance(schema, dict):
        return None
    keys = {key: value for key, value in schema.items() if key not in _REMARKS | {"default"}}
    nullable = False
    options = keys.get("anyOf")
    if isinstance(options, list) and len(keys) == 1:
        others = [one for one in options if one != _NULL]
        if len(others) != 1 or len(options) != 2:
            return None
        inner = _field(name, others[0], required=required)
        return None if inner is None else inner._replace(nullable=True)
    kind = keys.pop("type", None)
    if isinstance(kind, list):
        nullable = "null" in kind
        kinds = [one for one in kind if one != "null"]
        kind = kinds[0] if len(kinds) == 1 else None
    if kind == "string" and not keys:
        return TagField(name, False, required, nullable)
    if kind == "array" and set(keys) == {"items"}:
        item = _field(name, keys["items"], required=False)
        if item is not None and not item.many and not item.nullable:
            return TagField(name, True, required, nullable)
    return None
