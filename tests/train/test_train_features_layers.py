"""Which layers are paired, and what is refused before a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.train.features_layers import layer_pairs
from stillhouse.train.planning import check_recipe


@pytest.mark.parametrize(
    ("layers", "count", "depths", "wanted"),
    [
        ("skip", None, (4, 12), [(0, 2), (1, 5), (2, 8), (3, 11)]),  # TinyBERT: g(m) = 3 m
        ("skip", None, (3, 6), [(0, 1), (1, 3), (2, 5)]),
        ("skip", None, (2, 2), [(0, 0), (1, 1)]),
        ("skip", None, (3, 2), [(0, 0), (1, 0), (2, 1)]),
        ("skip", None, (1, 5), [(0, 4)]),
        ("last", 1, (3, 12), [(2, 11)]),  # MiniLM
        ("last", 2, (3, 12), [(1, 10), (2, 11)]),
        ("last", None, (3, 2), [(1, 0), (2, 1)]),
        ("first", 2, (3, 12), [(0, 0), (1, 1)]),
        (((2, 7), (0, 3)), None, (3, 12), [(0, 3), (2, 7)]),
    ],
)
def test_rules(layers: Any, count: int | None, depths: tuple[int, int], wanted: Any) -> None:
    assert list(layer_pairs(layers, count, *depths)) == wanted


@given(st.integers(1, 40), st.integers(1, 80))
def test_skip_is_even_and_ends_at_the_last(students: int, teachers: int) -> None:
    pairs = layer_pairs("skip", None, students, teachers)
    found = [pair.teacher for pair in pairs]
    assert [pair.student for pair in pairs] == list(range(students))
    assert found == sorted(found)
    assert found[-1] == teachers - 1
    assert found[0] >= 0
    for number, layer in enumerate(found):
        assert abs(layer + 1 - (number + 1) * teachers / students) <= max(
            0.5, 1 - teachers / students
        )


@pytest.mark.parametrize(
    ("layers", "count", "says"),
    [
        (((0, 12),), None, r"train\.terms\.1\.layers: the student has layers 0 to 2, the teacher 0 "
         r"to 11 \(got \[0, 12\]\); give"),
        (((3, 0),), None, r"\.layers: .*got \[3, 0\]"),
        ("last", 4, r"\.count: the student has 3 layers, the teacher 12 \(got 4\); use at most 3"),
        ("first", 9, r"\.count: .*use at most 3"),
    ],
)  # fmt: skip
def test_a_layer_out_of_range_is_one_line(layers: Any, count: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        layer_pairs(layers, count, 3, 12, field="train.terms.1")
    assert "\n" not in str(caught.value)


def _raw(train: dict[str, Any], head: str = "label", **more: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "traffic": {"path": "x"},
        "teacher": {"model": "hf:m"},
        "student": {"head": head, "from": "hf:x"},
        "train": train,
        **more,
    }


HIDDEN = [{"kind": "hidden"}]
VOTES = {"signals": "samples", "samples": 5, "sampling_temperature": 1.0}
STUDENT = {"head": "text", "from": "hf:x"}
MEMBERS = {"model": "ensemble", "members": [{"model": "hf:m"}, {"model": "hf:n"}]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (_raw({"terms": HIDDEN}, teacher={"model": "openai:m", **VOTES}), "insides are read from one"),
    (_raw({"terms": HIDDEN}, teacher={"model": "gguf:m.gguf"}), "insides are read from one local"),
    (_raw({"terms": HIDDEN}, teacher=MEMBERS), "insides are read from one local"),
    (_raw({"terms": HIDDEN, "alpha": 0}, student={**STUDENT, "vocabulary": "task"}), "whole vocab"),
    (_raw({"terms": HIDDEN, "packing": True}, "text"), "not with train.packing"),
    (_raw({"terms": HIDDEN, "on_policy": {}}, "text"), "not weighed beside train.on_policy"),
    (
        _raw({"terms": HIDDEN, "teachers": {"members": [{"model": "hf:m"}]}}, "text"),
        "not with train.teachers",
    ),
    (_raw({"balance": "uncertainty"}), "nothing to balance"),
    (_raw({"terms": [{"kind": "response"}], "balance": "gradient_norm"}), "nothing to balance"),
    (_raw({"terms": [{"kind": "response"}] * 2}), "listed twice"),
    (_raw({"terms": [{"kind": "similarity"}], "progressive": {}}), "no term compares layers"),
    (_raw({"terms": [{"kind": "rkd_angle"}], "batch_size": 2}), "needs 3 of them"),
    (_raw({"terms": [{"kind": "contrastive"}], "micro_batch_size": 1}), "needs 2 of them"),
    (
        _raw({"terms": [{"kind": "contrastive", "negatives": "other_labels"}]}, "text"),
        "have no labels",
    ),
]


@pytest.mark.parametrize(("raw", "says"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_cannot_work_is_refused_before_it_is_paid_for(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        check_recipe(parse_recipe(raw))
    assert "\n" not in str(caught.value)


def test_what_can_work_is_let_through() -> None:
    check_recipe(parse_recipe(_raw({"terms": HIDDEN, "hard_label_twin": True, "alpha": 0})))
    check_recipe(parse_recipe(_raw({"terms": [{"kind": "response", "weight": 2}]})))
    check_recipe(parse_recipe(_raw({"terms": HIDDEN, "balance": "uncertainty"}, "text")))


@pytest.mark.parametrize(
    ("term", "says"),
    [
        ({"kind": "hidden", "losss": "mse"}, r"train\.terms\.0\.losss: .*did you mean 'loss'"),
        ({"kind": "hiden"}, r"train\.terms\.0: 'kind' must be one of 'response', 'hidden'"),
        ({}, r"train\.terms\.0: 'kind' is missing"),
        ({"kind": "hidden", "layers": "lst"}, r"train\.terms\.0\.layers: must be 'skip'"),
        ({"kind": "hidden", "layers": [[-1, 0]]}, "count from 0"),
        ({"kind": "hidden", "layers": [[0, 0], [0, 0]]}, "distinct"),
        ({"kind": "hidden", "count": 2}, "count: is for layers: first or last"),
        ({"kind": "hidden", "schedule": {"shap": "linear"}}, "did you mean 'shape'"),
        ({"kind": "hidden", "schedule": {"shape": "steps"}}, "rising order, from 0"),
        ({"kind": "hidden", "schedule": {"shape": "steps", "at": [[0.5, 1]]}}, "rising order"),
        ({"kind": "hidden", "schedule": {"shape": "linear", "start": 1}}, "start must be below"),
        ({"kind": "hidden", "weight": 0}, r"train\.terms\.0\.weight: .*greater than 0"),
    ],
)
def test_a_mistake_in_a_term_is_named_by_its_key(term: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        parse_recipe(_raw({"terms": [term]}))
    assert "\n" not in str(caught.value)
