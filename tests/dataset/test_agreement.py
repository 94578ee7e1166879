"""Agreement of samples and of teachers, against naive counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.dataset.agreement import (
    ensemble_agreement,
    fields,
    self_consistency,
    trigram_f1,
    trigrams,
    voices,
)

LABELS = ClassificationTask(kind="classification", labels=("a", "b", "c"))
FIELDS = ExtractionTask(
    kind="extraction", json_schema={"type": "object", "properties": {"x": {"type": "integer"}}}
)
FREE = GenerationTask(kind="generation")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 4))
def test_labels_are_counted(answers: list[str], rejected: int) -> None:
    found = self_consistency(LABELS, answers, len(answers) + rejected)
    counts = Counter(answers)
    assert found.shares == tuple(counts[a] / (len(answers) + rejected) for a in answers)
    assert found.best == min(i for i, a in enumerate(answers) if counts[a] == max(counts.values()))


def test_a_rejected_sample_agrees_with_nothing() -> None:
    assert self_consistency(LABELS, ["a"], 4).share == 0.25
    assert self_consistency(FREE, ["one text"], 3).share == 0.0
    assert self_consistency(FREE, ["one text"], 1).share == 1.0


def test_objects_are_as_sure_as_their_least_agreed_field() -> None:
    answers = ['{"x": 1, "y": "p"}', '{"x": 1, "y": "q"}', '{"x": 1, "y": "p"}', '{"x": 2}']
    found = self_consistency(FIELDS, answers, 4)
    assert found.best == 0
    assert found.share == 0.5
    assert found.doubt == "y"
    # x: 2 has one vote, no y has one vote.
    assert found.shares == (0.5, 0.25, 0.5, 0.25)


def test_fields_of_nested_objects() -> None:
    assert fields({"a": {"b": 1, "c": [2, 1]}, "d": {}, "e": None}) == {
        "a.b": "1",
        "a.c": "[2, 1]",
        "d": "{}",
        "e": "null",
    }
    assert fields({}) == {"answer": "{}"}
    assert self_consistency(FIELDS, ["{}", "{}"], 2).share == 1.0


def test_the_medoid_is_the_most_central_text() -> None:
    texts = [
        "The bridge is late and over budget.",
        "Something else altogether was said here.",
        "The bridge is late and well over budget.",
        "The bridge is late, and over its budget.",
    ]
    found = self_consistency(FREE, texts, 4)
    assert found.best != 1
    assert found.shares[1] == min(found.shares)
    naive = [
        sum(trigram_f1(trigrams(a), trigrams(b)) for j, b in enumerate(texts) if j != i) / 3
        for i, a in enumerate(texts)
    ]
    assert found.shares == pytest.approx(naive)


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_one_for_equal_texts(left: str, right: str) -> None:
    a, b = trigrams(left), trigrams(right)
    assert trigram_f1(a, a) == 1.0
    assert trigram_f1(a, b) == trigram_f1(b, a)
    assert 0.0 <= trigram_f1(a, b) <= 1.0


def test_similarity_of_a_script_without_spaces() -> None:
    near = trigram_f1(trigrams("橋の完成は来年になる"), trigrams("橋の完成は再来年になる"))
    assert near > trigram_f1(trigrams("橋の完成は来年になる"), trigrams("今日は晴れです")) == 0.0


def test_each_teacher_has_one_voice() -> None:
    answers = [("m1", "a"), ("m1", "a"), ("m1", "b"), ("m2", "b"), ("m3", "b")]
    said = voices(LABELS, answers)
    assert said == ["a", "b", "b"]
    found = ensemble_agreement(LABELS, ["a", "b"], said, 4)
    assert found.shares == (0.25, 0.5)
    assert found.best == 1


def test_the_teachers_vote_on_what_they_were_combined_to() -> None:
    said = ['{"x": 1, "y": 1}', '{"x": 1, "y": 2}', '{"x": 2, "y": 1}']
    found = ensemble_agreement(FIELDS, ['{"x": 1, "y": 1}'], said, 3)
    assert found.share == pytest.approx(2 / 3)
    texts = ["one two three", "one two four", "one two three"]
    own = ensemble_agreement(FREE, ["one two three"], texts, 3)
    assert own.share == pytest.approx((1 + trigram_f1(trigrams(texts[0]), trigrams(texts[1]))) / 2)


def test_bad_calls() -> None:
    with pytest.raises(ValueError):
        self_consistency(LABELS, [], 2)
    with pytest.raises(ValueError):
        self_consistency(LABELS, ["a", "a"], 1)
    with pytest.raises(ValueError):
        ensemble_agreement(LABELS, ["a"], ["a", "b"], 1)
