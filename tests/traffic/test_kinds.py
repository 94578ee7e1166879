"""Kinds of tasks from answers: label sets, schemas, text; entropy and agreement by definition."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.tasks import ExtractionTask
from stillhouse.traffic.kinds import agree, entropy_bits, grounded, infer_schema, kind_of


def test_labels_in_their_most_common_form() -> None:
    answers = ["Positive"] * 50 + ["positive."] * 10 + ["NEGATIVE"] * 39 + ["I cannot tell."]
    found = kind_of(answers)
    assert found.kind == "classification"
    assert [(label.label, label.share) for label in found.labels] == [
        ("Positive", 0.6),
        ("NEGATIVE", 0.39),
    ]
    assert found.covered == 0.99
    assert found.closedness == pytest.approx(0.99 * 0.99)  # one singleton of a hundred


def test_answers_that_stay_open_are_text() -> None:
    rng = random.Random(0)
    assert kind_of([f"name {rng.randint(0, 10**6)}" for _ in range(500)]).kind == "generation"
    assert kind_of(["always the same"] * 100).kind == "generation"
    assert kind_of(["a long answer " * 20, "another " * 30] * 50).kind == "generation"
    assert kind_of(["x"]).kind == "generation"


def test_closedness_of_text_is_what_it_takes_from_its_input() -> None:
    inputs = ["the red house by the river", "a blue window"]
    assert grounded(inputs, ["red house", "a garden"]) == pytest.approx((1 + 0.5) / 2)
    assert grounded(inputs, ["", ""]) == 0.0
    assert kind_of(["red house!", "a garden?"], None, inputs).closedness == pytest.approx(0.45)


def test_a_schema_is_inferred_and_all_answers_fit_it() -> None:
    rng = random.Random(1)
    values = [
        {
            "id": f"A-{n}",
            "state": rng.choice(["open", "closed"]),
            "count": rng.choice([1, 2, None]),
            "price": rng.choice([1, 2.5]),
            "tags": [{"name": "x"}] * rng.randint(0, 2),
            **({"note": "n"} if n % 3 else {}),
            **({"rare": 1} if n % 50 == 0 else {}),
        }
        for n in range(200)
    ]
    answers = [
        json.dumps(v) if n % 2 else f"```json\n{json.dumps(v)}\n```" for n, v in enumerate(values)
    ]
    found = kind_of([*answers, "Sorry, I cannot."])
    assert found.kind == "extraction"
    schema = found.json_schema
    assert schema is not None
    assert schema["required"] == ["count", "id", "price", "state", "tags"]
    assert schema["properties"] == {
        "count": {"type": ["integer", "null"]},
        "id": {"type": "string"},
        "price": {"type": "number"},
        "state": {"type": "string", "enum": ["closed", "open"]},
        "tags": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
            },
        },
        "note": {"type": "string"},
    }
    task = ExtractionTask(kind="extraction", json_schema=schema)
    assert all(task.parse(text).problem is None for text in answers)


def test_the_requested_schema_goes_first_where_it_can_be_checked() -> None:
    answers = [json.dumps({"a": n}) for n in range(50)]
    wanted = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert kind_of(answers, json.dumps(wanted)).json_schema == wanted
    for unusable in ("not json", "[]", json.dumps({**wanted, "patternProperties": {}})):
        found = kind_of(answers, unusable).json_schema
        assert found is not None
        assert found["properties"] == {"a": {"type": "integer"}}


def test_objects_without_a_common_key_and_lists_are_text() -> None:
    assert kind_of([json.dumps({str(n): 1}) for n in range(50)]).kind == "generation"
    assert kind_of([json.dumps([n, n + 1]) for n in range(50)]).kind == "generation"
    assert infer_schema([{"a": 1}, {"b": 2}, {"c": 3}]) is None


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=10,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4), min_size=1, max_size=30)
)
def test_whatever_the_objects_they_fit_their_schema(objects: list[dict[str, object]]) -> None:
    schema = infer_schema(objects)
    if schema is not None:
        task = ExtractionTask(kind="extraction", json_schema=schema)
        for value in objects:
            try:
                text = json.dumps(value, allow_nan=False)
            except ValueError:
                continue
            assert task.parse(text).problem is None


@given(st.lists(st.text(max_size=12), min_size=1, max_size=80))
def test_any_answers_have_a_kind(answers: list[str]) -> None:
    found = kind_of(answers)
    assert 0 <= found.closedness <= 1
    assert 0 <= found.covered <= 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_entropy_is_the_plain_sum_and_its_correction(counts: list[int]) -> None:
    total = sum(counts)
    plain = sum(-c / total * math.log(c / total) for c in counts) / math.log(2)
    corrected = plain + (len(counts) - 1) / (2 * total * math.log(2))
    assert entropy_bits(counts) == pytest.approx(min(corrected, math.log2(total)))


def test_entropy_is_less_biased_than_the_plain_sum() -> None:
    rng = random.Random(3)
    weights = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05]
    true = -sum(w * math.log2(w) for w in weights)
    plain = corrected = 0.0
    runs = 400
    for _ in range(runs):
        drawn = rng.choices(range(6), weights, k=40)
        counts = [drawn.count(v) for v in set(drawn)]
        plain += -sum(c / 40 * math.log2(c / 40) for c in counts) / runs
        corrected += entropy_bits(counts) / runs
    assert abs(corrected - true) < abs(plain - true) / 2


def test_agreement_by_kind() -> None:
    assert agree("classification", "Bug.", "bug") == 1
    assert agree("classification", "bug", "billing") == 0
    assert agree("extraction", '{"a": 1, "b": 2}', '```json\n{"b": 2, "a": 1}\n```') == 1
    assert agree("extraction", '{"a": 1}', '{"a": 2}') == 0
    assert agree("extraction", "none", "none ") == 1
    assert agree("generation", "the red house", "the blue house") == pytest.approx(2 / 3)
    assert agree("generation", "", "") == 1
