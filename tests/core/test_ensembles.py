"""Ensembles against float64 definitions, identities, and plain counting."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.beliefs import from_votes
from stillhouse.core.ensembles import (
    MemberAnswers,
    combine,
    field_majority,
    mean_logits,
    mean_probabilities,
    medoid,
    plurality,
    vote_shares,
)
from stillhouse.core.overlap import rouge_l
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask

LABELS = ("a", "b", "c")
CLASSIFY = ClassificationTask(kind="classification", labels=LABELS)
WRITE = GenerationTask(kind="generation")
EXTRACT = ExtractionTask(
    kind="extraction",
    json_schema={
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"type": ["number", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
            },
        },
        "required": ["name"],
    },
)

probabilities = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3).map(
    lambda row: tuple(value / sum(row) for value in row)
)
tables = st.lists(probabilities, min_size=1, max_size=5)
weights_for = st.lists(st.floats(0.1, 10.0), min_size=5, max_size=5)


def said(
    text: str, belief: dict[str, float] | None = None, sample: int = 0, **more: Any
) -> Completion:
    return Completion(
        query_id="q",
        text=text,
        model="m",
        revision="1",
        sample=sample,
        label_logprobs=belief,
        **more,
    )


def member(text: str, *, p: tuple[float, ...] | None = None, weight: float = 1.0) -> MemberAnswers:
    belief = None if p is None else {c: math.log(x) for c, x in zip(LABELS, p, strict=True)}
    return MemberAnswers([said(text, belief)], "auto", weight)


def tempered(row: Any, temperature: float) -> Any:
    powered = np.asarray(row, dtype=np.float64) ** (1 / temperature)
    return powered / powered.sum()


@given(tables, weights_for)
def test_means_are_their_definitions_in_float64(
    rows: list[tuple[float, ...]], weights: list[float]
) -> None:
    w = np.array(weights[: len(rows)])
    p = np.array(rows)
    mixture = (w[:, None] * p).sum(axis=0) / w.sum()
    np.testing.assert_allclose(mean_probabilities(rows, w.tolist()), mixture, rtol=1e-12)
    logits = np.log(p) + np.arange(len(rows))[:, None]  # a logit is ln p up to a constant
    mean = (w[:, None] * logits).sum(axis=0) / w.sum()
    softmax = np.exp(mean - mean.max())
    found = mean_logits(rows, w.tolist())
    assert found is not None
    np.testing.assert_allclose(found, softmax / softmax.sum(), rtol=1e-9)


@given(tables, weights_for, st.randoms())
def test_order_does_not_matter(
    rows: list[tuple[float, ...]], weights: list[float], draw: Any
) -> None:
    order = list(range(len(rows)))
    draw.shuffle(order)
    mixed, w = [rows[i] for i in order], [weights[i] for i in order]
    weights = weights[: len(rows)]
    assert mean_probabilities(mixed, w) == mean_probabilities(rows, weights)
    assert mean_logits(mixed, w) == pytest.approx(mean_logits(rows, weights), rel=1e-12)


@given(probabilities, st.integers(1, 4), weights_for)
def test_one_member_and_equal_members_change_nothing(
    row: tuple[float, ...], count: int, weights: list[float]
) -> None:
    rows, w = [row] * count, weights[:count]
    assert mean_probabilities(rows, w) == pytest.approx(row, rel=1e-12)
    assert mean_logits(rows, w) == pytest.approx(row, rel=1e-9)


@given(tables, weights_for, st.floats(0.5, 5.0))
def test_a_temperature_commutes_with_the_geometric_mean(
    rows: list[tuple[float, ...]], weights: list[float], temperature: float
) -> None:
    w = weights[: len(rows)]
    first = mean_logits([tuple(tempered(row, temperature)) for row in rows], w)
    after = mean_logits(rows, w)
    assert first is not None
    assert first == pytest.approx(tuple(tempered(after, temperature)), rel=1e-8)


def test_a_temperature_does_not_commute_with_the_mixture() -> None:
    rows = [(0.9, 0.05, 0.05), (0.05, 0.9, 0.05)]
    first = mean_probabilities([tuple(tempered(row, 4.0)) for row in rows], (1, 1))
    after = tempered(mean_probabilities(rows, (1, 1)), 4.0)
    assert abs(first[2] - after[2]) > 0.01


@given(tables, weights_for)
def test_the_mixture_is_the_flatter_one(
    rows: list[tuple[float, ...]], weights: list[float]
) -> None:
    """Every label's mixture is at least the unnormalised geometric mean (AM-GM)."""
    w = np.array(weights[: len(rows)]) / sum(weights[: len(rows)])
    geometric = np.exp((w[:, None] * np.log(np.array(rows))).sum(axis=0))
    assert (np.array(mean_probabilities(rows, w.tolist())) >= geometric - 1e-12).all()


def test_a_zero_is_a_veto_in_the_geometric_mean_alone() -> None:
    rows = [(0.0, 0.5, 0.5), (0.9, 0.05, 0.05)]
    assert mean_logits(rows, (1, 1)) == pytest.approx((0.0, 0.5, 0.5))
    assert mean_probabilities(rows, (1, 1))[0] == pytest.approx(0.45)
    assert mean_logits([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)], (1, 1)) is None


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_an_unweighted_vote_is_a_count(votes: list[str]) -> None:
    counts = Counter(votes)
    assert counts[votes[plurality(votes, [1.0] * len(votes))]] == max(counts.values())
    if len(votes) > 1:
        completions = [said(vote, sample=i) for i, vote in enumerate(votes)]
        expected = from_votes(CLASSIFY, completions)
        assert vote_shares(LABELS, votes, [1.0] * len(votes)) == pytest.approx(expected)


def test_a_tie_goes_to_the_earliest() -> None:
    assert plurality(["b", "a"], (1, 1)) == 0
    assert plurality(["b", "a", "a"], (2, 1, 1)) == 0
    assert plurality(["b", "a", "a"], (1.9, 1, 1)) == 1


def test_classification_by_belief_and_by_vote() -> None:
    members = [
        member("a", p=(0.4, 0.35, 0.25)),
        member("a", p=(0.4, 0.35, 0.25)),
        member("b", p=(0.01, 0.98, 0.01)),
    ]
    mixture = combine(CLASSIFY, "mean_probabilities", members)
    assert mixture.text == "b"
    assert mixture.probabilities == pytest.approx((0.27, 0.56, 0.17))
    assert combine(CLASSIFY, "majority", members).text == "a"
    geometric = combine(CLASSIFY, "mean_logits", members)
    assert geometric.text == "b"
    assert sum(geometric.probabilities or ()) == pytest.approx(1)


def test_who_cannot_be_read_has_no_vote() -> None:
    members = [member("a"), member("who knows"), member("b", weight=1.5)]
    found = combine(CLASSIFY, "majority", members)
    assert (found.text, found.silent) == ("b", (1,))
    refused = MemberAnswers([said("a", finish_reason="refusal")], "auto")
    assert combine(CLASSIFY, "majority", [refused, member("b"), member("b")]).silent == (0,)


@pytest.mark.parametrize("how", ["majority", "mean_probabilities", "mean_logits"])
def test_without_more_than_half_of_the_weight_there_is_no_answer(how: Any) -> None:
    nobody = MemberAnswers([], "auto")
    one = member("a", p=(0.5, 0.3, 0.2))
    found = combine(CLASSIFY, how, [one, nobody])
    assert found.text is None
    assert found.problem == "1 of 2 members gave nothing that can be read"
    assert combine(CLASSIFY, how, [one._replace(weight=1.1), nobody]).text == "a"


def test_a_members_own_samples_count_as_its_beliefs_are_read() -> None:
    votes = [said(label, sample=i) for i, label in enumerate("aab")]
    found = combine(
        CLASSIFY,
        "mean_probabilities",
        [MemberAnswers(votes, "samples"), member("c", p=(0.2, 0.2, 0.6))],
    )
    expected = (np.array([2.5, 1.5, 0.5]) / 4.5 + np.array([0.2, 0.2, 0.6])) / 2
    assert found.probabilities == pytest.approx(tuple(expected))


def vote(*objects: Any, weights: tuple[float, ...] | None = None) -> Any:
    return field_majority(EXTRACT, list(objects), weights or (1.0,) * len(objects))


def test_extraction_is_voted_field_by_field() -> None:
    a = {"name": "x", "size": 1, "place": {"city": "Rome", "zip": "1"}}
    b = {"name": "y", "size": 2, "place": {"city": "Rome"}}
    c = {"name": "x", "size": 2.0, "tags": ["t"], "place": {"city": "Bonn", "zip": "1"}}
    assert vote(a, b, c) == {"name": "x", "size": 2, "place": {"city": "Rome", "zip": "1"}}
    assert vote(a, b, c, weights=(1, 5, 1)) == b


def test_to_leave_a_field_out_is_a_vote_and_null_is_another() -> None:
    assert vote({"name": "x"}, {"name": "x"}, {"name": "x", "size": 3}) == {"name": "x"}
    assert vote({"name": "x", "size": None}, {"name": "x", "size": None}, {"name": "x"}) == {
        "name": "x",
        "size": None,
    }


def test_fields_that_break_the_schema_together_are_not_put_together() -> None:
    task = ExtractionTask(
        kind="extraction",
        json_schema={
            "type": "object",
            "properties": {name: {"type": "integer"} for name in "xyz"},
            "anyOf": [{"required": [name]} for name in "xyz"],
        },
    )
    members: list[Any] = [{"x": 1}, {"y": 2}, {"z": 3}, {"y": 2}]
    # Each field alone is left out by most; the object that most gave whole is taken.
    assert field_majority(task, members, (1.0,) * 4) == {"y": 2}


objects = st.fixed_dictionaries(
    {"name": st.sampled_from("xy")},
    optional={
        "size": st.sampled_from([1, 2, None]),
        "place": st.fixed_dictionaries({}, optional={"city": st.sampled_from("rb")}),
    },
)


@given(objects, st.integers(1, 4))
def test_equal_objects_give_that_object(one: dict[str, Any], count: int) -> None:
    assert vote(*[one] * count) == one


@given(st.lists(objects, min_size=1, max_size=5))
def test_a_field_majority_always_fits_the_schema(many: list[dict[str, Any]]) -> None:
    assert EXTRACT.parse(json.dumps(vote(*many))).problem is None


@given(st.lists(st.text("ab ", min_size=1, max_size=12), min_size=1, max_size=5))
def test_the_medoid_is_the_text_most_like_the_others(texts: list[str]) -> None:
    naive = [
        sum(rouge_l(text, texts[j]) for j in range(len(texts)) if j != i)
        for i, text in enumerate(texts)
    ]
    assert naive[medoid(texts, [1.0] * len(texts))] == pytest.approx(max(naive))


def test_generation_takes_a_members_text_as_it_stands() -> None:
    texts = ["the film is long", "the film is very long", "a song"]
    found = combine(WRITE, "medoid", [member(text) for text in texts])
    assert found.text in texts[:2]
    assert found.probabilities is None
