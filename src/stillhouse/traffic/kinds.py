"""What kind of task a set of answers is the answers to: closed labels, JSON objects, or text.

Classification: few short answers cover nearly all, and Good-Turing says that few unseen ones are to
come. Extraction: the answers are JSON objects with common keys; the schema is the one that was
requested, or inferred from the answers. Everything else is generation. Knows answers alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from pydantic import JsonValue

from stillhouse.core.tasks import ExtractionTask, canonical_json, fold, json_value, unread_keyword

Kind = Literal["classification", "extraction", "generation"]

MAX_LABELS: Final = 60
MAX_LABEL_CHARS: Final = 60
MAX_LABEL_WORDS: Final = 6
COVERAGE: Final = 0.95  # of the answers that the labels, or objects, must make
LEAST_PER_LABEL: Final = 8  # answers for each label, on average
ENUM_VALUES: Final = 20
COMMON_KEY: Final = 0.5  # of the objects have a key that the schema names
DEPTH: Final = 4
GROUNDED: Final = 0.6  # closedness of a text that takes all its words from the input
_WORD = re.compile(r"\w+")
_FENCE = re.compile(r"^\s*```(?:json)?\s*(.*?)```\s*$", re.DOTALL)


class Label(NamedTuple):
    """One label and its share of the answers."""

    label: str
    share: float


class KindFound(NamedTuple):
    """What the answers are.

    `closedness` in [0, 1]: 1 where every future answer is known to be one of a closed set or shape.
    `covered` is the share of answers that fit the labels or the schema.
    """

    kind: Kind
    closedness: float
    covered: float
    labels: tuple[Label, ...] = ()
    json_schema: dict[str, JsonValue] | None = None


def kind_of(
    answers: Sequence[str], requested: str | None = None, inputs: Sequence[str] = ()
) -> KindFound:
    """The kind of task that these answers (at least one) are of.

    Args:
        answers: texts as the model gave them, repeats included.
        requested: JSON text of the schema that the requests asked for, if any.
        inputs: what each answer answers; the closedness of free text rests on it.
    """
    objects = [value for text in answers if isinstance(value := object_of(text), dict) and value]
    if len(objects) >= COVERAGE * len(answers):
        found = _extraction(answers, objects, requested)
        if found is not None:
            return found
    return _classification(answers) or KindFound(
        "generation", max(_repetition(answers), GROUNDED * grounded(inputs, answers)), 1.0
    )


def object_of(text: str) -> JsonValue:
    """The JSON value an answer is, code fence allowed; `None` where it is none."""
    fenced = _FENCE.match(text)
    bare = (fenced.group(1) if fenced else text).strip()
    if not bare.startswith(("{", "[")):
        return None
    try:
        return json_value(bare)
    except ValueError:
        return None


def entropy_bits(counts: Sequence[int]) -> float:
    """Shannon entropy of a distribution from its counts, in bits, Miller and Madow's correction.

    -sum p log2 p + (K - 1) / (2 n ln 2), K the number of values seen (Miller 1955), at most log2 n.
    """
    total = sum(counts)
    if not total:
        raise ValueError("counts: none is given")
    plain = -sum(n / total * math.log2(n / total) for n in counts if n)
    return min(plain + (len(counts) - 1) / (2 * total * math.log(2)), math.log2(total))


def _classification(answers: Sequence[str]) -> KindFound | None:
    counts = Counter(fold(text) for text in answers)
    forms: dict[str, Counter[str]] = {}
    for text in answers:
        forms.setdefault(fold(text), Counter())[text.strip(" \t\r\n\"'`*.,:;!")] += 1
    total = len(answers)
    least = max(2, total // 500)
    labels = [
        (name, count)
        for name, count in counts.most_common()
        if count >= least
        and name
        and len(name) <= MAX_LABEL_CHARS
        and len(name.split()) <= MAX_LABEL_WORDS
    ]
    covered = sum(count for _, count in labels) / total
    if not 2 <= len(labels) <= MAX_LABELS or covered < COVERAGE:
        return None
    if total < LEAST_PER_LABEL * len(labels):
        return None
    singles = sum(1 for count in counts.values() if count == 1)
    named = tuple(
        Label(max(forms[name].items(), key=lambda form: (form[1], form[0]))[0], count / total)
        for name, count in labels
    )
    # Good and Turing: the chance that the next answer is a new one is about singles / n.
    return KindFound("classification", covered * (1 - singles / total), covered, named)


def grounded(inputs: Sequence[str], answers: Sequence[str]) -> float:
    """The mean share of an answer's words that its input holds; 0 without inputs.

    A summary or a rewriting takes most words from its input, free invention few: the coverage of
    Grusky, Naaman and Artzi (Newsroom, 2018), of words instead of fragments.
    """
    shares = []
    for text, answer in zip(inputs, answers, strict=False):
        known = set(_WORD.findall(text.casefold()))
        said = _WORD.findall(answer.casefold())
        if said:
            shares.append(sum(word in known for word in said) / len(said))
    return sum(shares) / len(shares) if shares else 0.0


def _repetition(answers: Sequence[str]) -> float:
    """Closedness of free text: how much less varied the answers are than all different ones."""
    if len(answers) < 2:
        return 0.0
    bits = entropy_bits(list(Counter(fold(text) for text in answers).values()))
    return max(0.0, 1.0 - bits / math.log2(len(answers)))


def _extraction(
    answers: Sequence[str], objects: Sequence[dict[str, Any]], requested: str | None
) -> KindFound | None:
    schemas = [schema for schema in (_usable(requested), infer_schema(objects)) if schema]
    for schema in schemas:
        task = ExtractionTask(kind="extraction", json_schema=schema)
        covered = sum(task.parse(text).problem is None for text in answers) / len(answers)
        if covered >= COVERAGE:
            return KindFound("extraction", covered * _shape_share(objects), covered, (), schema)
    return None


def _shape_share(objects: Sequence[dict[str, Any]]) -> float:
    """The share of objects whose set of keys is among the ten most common ones."""
    shapes = Counter(tuple(sorted(value)) for value in objects)
    return sum(count for _, count in shapes.most_common(10)) / len(objects)


def _usable(requested: str | None) -> dict[str, JsonValue] | None:
    if not requested:
        return None
    try:
        schema = json.loads(requested)
    except ValueError:
        return None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return None
    return schema if schema.get("properties") and unread_keyword(schema) is None else None


def infer_schema(objects: Sequence[dict[str, Any]]) -> dict[str, JsonValue] | None:
    """The JSON Schema that all these objects fit; `None` where they have no common key.

    A key that half of them have is named, one that all have is required; a text that takes few
    values again and again is an enum.
    """
    schema = _object_schema(list(objects), 0)
    return schema if schema.get("properties") else None


def _object_schema(objects: list[dict[str, Any]], depth: int) -> dict[str, JsonValue]:
    counts = Counter(key for value in objects for key in value)
    properties: dict[str, JsonValue] = {}
    for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count >= COMMON_KEY * len(objects):
            values = [value[key] for value in objects if key in value]
            properties[key] = _value_schema(values, depth + 1)
    required = [key for key in properties if counts[key] == len(objects)]
    schema: dict[str, JsonValue] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list[JsonValue](required)
    return schema


def _value_schema(values: list[Any], depth: int) -> dict[str, JsonValue]:
    names = sorted({_type_name(value) for value in values})
    if names == ["integer", "number"]:
        names = ["number"]
    elif "integer" in names and "number" in names:
        names.remove("integer")
    if depth >= DEPTH:
        return {"type": names[0] if len(names) == 1 else list[JsonValue](names)}
    if names == ["object"]:
        inner = _object_schema(values, depth)
        return inner if inner["properties"] else {"type": "object"}
    if names == ["array"]:
        items = [item for value in values for item in value]
        return (
            {"type": "array", "items": _value_schema(items, depth)} if items else {"type": "array"}
        )
    if names == ["string"]:
        texts = Counter(values)
        short = all(len(text) <= MAX_LABEL_CHARS for text in texts)
        if short and 2 <= len(texts) <= ENUM_VALUES and len(values) >= 20 * len(texts):
            if min(texts.values()) > 1:
                return {"type": "string", "enum": list[JsonValue](sorted(texts))}
    return {"type": names[0] if len(names) == 1 else list[JsonValue](names)}


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "object" if isinstance(value, dict) else "array"


def agree(kind: Kind, left: str, right: str) -> float:
    """How much two answers to one input agree, in [0, 1].

    Labels: equal when folded. Objects: equal as JSON. Texts: F1 of their words (bags), as SQuAD
    scores answers (Rajpurkar et al. 2016).
    """
    if kind == "classification":
        return float(fold(left) == fold(right))
    if kind == "extraction":
        one, other = object_of(left), object_of(right)
        if one is not None and other is not None:
            return float(canonical_json(one) == canonical_json(other))
        return float(left.strip() == right.strip())
    mine, theirs = Counter(left.casefold().split()), Counter(right.casefold().split())
    shared = sum((mine & theirs).values())
    total = sum(mine.values()) + sum(theirs.values())
    return 2 * shared / total if total else 1.0
