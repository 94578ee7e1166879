"""Selection among a query's answers: what is kept, what is rejected and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import UserError
from stillhouse.core.judgements import Judgement
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, LabelledQuery, Query, TokenLogprob
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask, Task
from stillhouse.dataset.build import Dataset, build_dataset
from stillhouse.dataset.select import JudgementKey

LABELS = ClassificationTask(kind="classification", labels=("good", "bad"))
FREE = GenerationTask(kind="generation")
JUDGE = {"model": "openai:m", "gold": "g.jsonl"}


def query(name: str = "q", task: Task = LABELS) -> Query:
    return Query(id=name, messages=task.messages_for(f"the text of {name}"))


def said(text: str, sample: int = 0, name: str = "q", **more: Any) -> Completion:
    more = {"model": "m", "revision": "r"} | more
    return Completion(query_id=name, text=text, sample=sample, **more)


def build(
    answers: Sequence[Completion],
    section: dict[str, Any],
    task: Task = LABELS,
    scores: dict[int, float | None] | None = None,
    **more: Any,
) -> Dataset:
    made = DatasetSection.model_validate(section)
    by_query: dict[str, list[Completion]] = {}
    for answer in answers:
        by_query.setdefault(answer.query_id, []).append(answer)
    judgements = {
        JudgementKey("q", "m", sample): Judgement(
            query_id="q",
            sample=sample,
            model="m",
            mode="pointwise",
            score=score,
            good=score is not None and score >= 4,
        )
        for sample, score in (scores or {}).items()
    }
    return build_dataset(
        task,
        made,
        "none",
        queries=more.pop("queries", [query(task=task)]),
        completions=by_query,
        judgements=judgements,
        **more,
    )


def kept(dataset: Dataset) -> list[str]:
    return [example.completion for example in dataset.examples]


def reasons(dataset: Dataset) -> list[tuple[int, str]]:
    return [(r.completion.sample if r.completion else -1, r.reason) for r in dataset.rejections]


VOTES = [said("bad", 0), said("good", 1), said("good", 2), said("good", 3)]


def test_a_majority_that_is_large_enough() -> None:
    found = build(VOTES, {"consistency": 0.75})
    assert kept(found) == ["good"]
    assert reasons(found) == [(0, "minority")]
    assert found.judged.shares == {"q": 0.75}


def test_low_agreement_rejects_with_its_share() -> None:
    found = build(VOTES, {"consistency": 0.8})
    assert kept(found) == []
    assert reasons(found) == [(i, "consistency") for i in range(4)]
    assert "agreement 0.75, below 0.8" in found.rejections[0].detail


def test_rejected_samples_do_not_agree() -> None:
    answers = [said("good", 0), said("good", 1), said("no idea", 2), said("", 3)]
    assert kept(build(answers, {"consistency": 0.5})) == ["good"]
    assert kept(build(answers, {"consistency": 0.6})) == []


def test_the_doubtful_field_is_named() -> None:
    task = ExtractionTask(
        kind="extraction", json_schema={"type": "object", "properties": {"n": {}, "m": {}}}
    )
    answers = [said(f'{{"n": 1, "m": {i % 2}}}', i) for i in range(4)]
    found = build(answers, {"consistency": 0.7}, task)
    assert "in the field m" in found.rejections[0].detail
    assert kept(build(answers, {"consistency": 0.5}, task)) == ['{"m": 0, "n": 1}']


def test_the_medoid_of_free_texts() -> None:
    answers = [
        said("Nothing like the others at all.", 0),
        said("The bridge is late and dear.", 1),
        said("The bridge is late and very dear.", 2),
        said("The bridge is late, and dear.", 3),
    ]
    found = build(answers, {"consistency": 0.4}, FREE)
    assert kept(found)[0].startswith("The bridge is late")
    # The others agree with less, and give way to the medoid.
    assert reasons(found)[0] == (0, "minority")
    assert {reason for _, reason in reasons(found)} == {"minority"}
    assert kept(build(answers, {"consistency": 0.95}, FREE)) == []


def test_one_answer_a_query_cannot_agree() -> None:
    with pytest.raises(UserError, match=r"dataset\.consistency.*there is one to each"):
        build([said("good")], {"consistency": 0.5})


def logprob(text: str, sample: int, *values: float) -> Completion:
    tokens = tuple(TokenLogprob(token="t", logprob=value) for value in values)
    return said(text, sample, logprobs=tokens)


def test_the_likeliest_by_the_mean_of_its_tokens() -> None:
    answers = [
        logprob("A short one.", 0, -1.0),
        logprob("A longer one, likelier by token.", 1, -0.5, -0.5, -0.5),
        said("One without.", 2),
    ]
    found = build(answers, {"best_of": "likelihood"}, FREE)
    assert kept(found) == ["A longer one, likelier by token."]
    assert reasons(found) == [(0, "not_best"), (2, "not_best")]


def test_the_label_likelihood_counts_for_labels() -> None:
    answers = [
        said("good", 0, label_logprobs={"good": -2.0, "bad": -0.1}),
        said("bad", 1, label_logprobs={"good": -2.0, "bad": -0.1}),
    ]
    assert kept(build(answers, {"best_of": "likelihood"})) == ["bad"]


def test_likelihood_without_logprobs_is_an_error() -> None:
    with pytest.raises(UserError, match=r"dataset\.best_of: likelihood needs"):
        build([said("x")], {"best_of": "likelihood"}, FREE)


THREE = [said("First text.", 0), said("Second text.", 1), said("Third text.", 2)]


def test_the_judge_rejects_and_keeps_its_best() -> None:
    section = {"judge": JUDGE, "best_of": "judge"}
    found = build(THREE, section, FREE, {0: 4.0, 1: 2.0, 2: 5.0})
    assert kept(found) == ["Third text."]
    assert sorted(reasons(found)) == [(0, "not_best"), (1, "judge")]


def test_a_verdict_that_is_missing_is_its_own_reason() -> None:
    found = build(THREE, {"judge": JUDGE}, FREE, {0: None, 1: 2.0})
    assert kept(found) == []
    assert sorted(reasons(found)) == [
        (0, "judge_unreadable"),
        (1, "judge"),
        (2, "judge_unreadable"),
    ]


def test_a_floor_brings_the_judges_best_back_marked() -> None:
    found = build(THREE, {"judge": JUDGE, "floor": 1.0}, FREE, {0: 1.5, 1: 3.0, 2: 2.0})
    (example,) = found.examples
    assert (example.completion, example.readmitted) == ("Second text.", "judge")
    assert sorted(reasons(found)) == [(0, "judge"), (2, "judge")]


def test_what_the_checks_rejected_never_comes_back() -> None:
    answers = [said("no idea", i) for i in range(3)]
    found = build(answers, {"consistency": 0.5, "floor": 1.0})
    assert found.examples == []
    assert {reason for _, reason in reasons(found)} == {"label"}


def test_several_teachers_must_agree() -> None:
    answers = [said("good", 0, model="a"), said("good", 0, model="b"), said("bad", 0, model="c")]
    assert kept(build(answers, {"agreement": 0.6})) == ["good"]
    found = build(answers, {"agreement": 0.7})
    assert kept(found) == []
    assert [r.reason for r in found.rejections] == ["agreement"] * 3
    with pytest.raises(UserError, match=r"dataset\.agreement: needs answers of several teachers"):
        build(VOTES, {"agreement": 0.5})


def test_an_ensembles_members_vote_on_its_answer() -> None:
    members = {"q": [said(t, 0, model=m) for t, m in (("good", "a"), ("bad", "b"), ("bad", "c"))]}
    combined = [said("bad", model="ensemble")]
    assert kept(build(combined, {"agreement": 0.6}, members=members)) == ["bad"]
    assert kept(build(combined, {"agreement": 0.7}, members=members)) == []


def test_a_true_answer_needs_no_agreement() -> None:
    truth = LabelledQuery(id="1", messages=query().messages, reference="bad")
    answers = [said("good", i, name="labelled:1") for i in range(2)] + [
        said("bad", 2, name="labelled:1")
    ]
    found = build(answers, {"consistency": 1.0}, queries=[truth.as_traffic()], labelled=[truth])
    assert kept(found) == ["bad"]
    assert found.examples[0].reference == "bad"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from(["good", "bad", "no idea", ""]), min_size=2, max_size=4),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([None, 0.5, 0.7, 1.0]),
    st.sampled_from([None, 0.3, 1.0]),
)
def test_every_query_ends_as_an_example_or_with_reasons(
    samples: list[list[str]], consistency: float | None, floor: float | None
) -> None:
    queries = [query(f"q{i}") for i in range(len(samples))]
    answers = [said(t, s, f"q{i}") for i, texts in enumerate(samples) for s, t in enumerate(texts)]
    section = {"consistency": consistency, "floor": floor, "near_duplicate": 1.0}
    found = build(answers, section, queries=queries)
    examples = {e.id for e in found.examples}
    assert examples | {r.query_id for r in found.rejections} >= {q.id for q in queries}
    rows = found.coverage.clusters
    assert sum(row.queries for row in rows) == len(queries)
    back = sum(e.readmitted is not None for e in found.judged.examples)
    assert sum(row.readmitted for row in rows) == back
    assert sum(row.accepted for row in rows) + back == len(found.judged.examples)
    if floor == 1.0:  # all that the checks left is there
        assert examples == {
            f"q{i}" for i, texts in enumerate(samples) if {"good", "bad"} & set(texts)
        }
    plain = build(answers, {"near_duplicate": 1.0}, queries=queries)
    assert examples <= {e.id for e in plain.examples}


def test_every_answer_that_is_not_kept_has_its_reason() -> None:
    texts = ["A cat sat.", "A cat sat.", "Dogs run far.", "A cat sits."]
    for section in ({}, {"consistency": 0.01}, {"best_of": "none", "near_duplicate": 1.0}):
        found = build([said(t, i) for i, t in enumerate(texts)], section, task=FREE)
        assert kept(found) == ["A cat sat."]
        assert reasons(found) == [(2, "minority"), (3, "minority")]
