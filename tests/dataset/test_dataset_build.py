"""Building examples: which sample is kept, which query is dropped, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.judgements import Judgement
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, LabelledQuery, Message, Query, Rejection
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.dataset.build import Dataset, build_dataset
from stillhouse.dataset.select import JudgementKey

TASK = ClassificationTask(kind="classification", labels=("good", "bad"), prompt="Judge: {text}")
SECTION = DatasetSection()
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def query(name: str, text: str) -> Query:
    return Query(id=name, messages=TASK.messages_for(text), task="task")


def said(name: str, text: str, sample: int = 0, **more: Any) -> Completion:
    return Completion(query_id=name, text=text, model="m", revision="r", sample=sample, **more)


def build(
    queries: Sequence[Query],
    *completions: Completion,
    section: DatasetSection = SECTION,
    **more: Any,
) -> Dataset:
    by_query: dict[str, list[Completion]] = {}
    for completion in completions:
        by_query.setdefault(completion.query_id, []).append(completion)
    return build_dataset(
        more.pop("task", TASK), section, "auto", queries=queries, completions=by_query, **more
    )


def reasons(dataset: Dataset) -> list[tuple[str, str]]:
    return [(rejection.query_id, rejection.reason) for rejection in dataset.rejections]


def test_an_example_is_the_chat_with_the_canonical_answer() -> None:
    dataset = build([query("a", "x")], said("a", " Good. "))
    (example,) = dataset.examples
    assert [(m.role, m.content) for m in example.messages] == [
        ("user", "Judge: x"),
        ("assistant", "good"),
    ]
    assert (example.id, example.label, example.task) == ("a", "good", "task")
    assert (example.teacher, example.teacher_revision) == ("m", "r")
    assert example.group
    assert example.label_probabilities is None


def test_most_accepted_samples_make_the_example_and_all_are_counted() -> None:
    dataset = build(
        [query("a", "x")],
        said("a", "bad", 2),
        said("a", "no idea", 0),
        said("a", "good", 1),
        said("a", "bad", 3),
    )
    (example,) = dataset.examples
    assert example.label == "bad"
    # 1 and 2 of 3 readable votes, with one half added to each.
    assert example.label_probabilities is not None
    assert math.isclose(example.label_probabilities[0], 1.5 / 4)
    assert reasons(dataset) == [("a", "label"), ("a", "minority")]
    assert dataset.rejections[1].detail == "said by 1 of 3 samples, what is kept by 2"
    assert (dataset.judged.completions, dataset.judged.accepted_completions) == (4, 3)
    assert dataset.judged.by_query == [(3, 4)]


def test_beliefs_come_from_likelihoods_where_there_are_any() -> None:
    logprobs = {"good": math.log(0.25), "bad": math.log(0.75)}
    dataset = build([query("a", "x")], said("a", "bad", label_logprobs=logprobs))
    found = dataset.examples[0].label_probabilities
    assert found is not None
    assert math.isclose(found[1], 0.75)


def test_unanswered_and_failed_queries_are_rejections() -> None:
    failure = Rejection(query_id="b", reason="teacher_error", detail="timed out")
    dataset = build([query("a", "x"), query("b", "y")], failures=[failure])
    assert dataset.examples == []
    assert reasons(dataset) == [("b", "teacher_error"), ("a", "unanswered")]


def test_equal_chats_are_kept_once_whatever_the_answer() -> None:
    queries = [query("a", "Some text"), query("b", "some  text"), query("c", "other")]
    dataset = build(queries, said("a", "good"), said("b", "bad"), said("c", "bad"))
    assert [e.id for e in dataset.examples] == ["a", "c"]
    assert reasons(dataset) == [("b", "duplicate")]


def test_a_repeat_of_a_rejected_answer_is_no_repeat() -> None:
    queries = [query("a", "same"), query("b", "same")]
    dataset = build(queries, said("a", "no idea"), said("b", "bad"))
    assert [e.id for e in dataset.examples] == ["b"]
    assert reasons(dataset) == [("a", "label")]


def test_near_duplicates_go_where_answers_agree_and_stay_together_where_not() -> None:
    queries = [query("a", LONG), query("b", LONG + " x"), query("c", LONG + " y"), query("d", "z")]
    dataset = build(
        queries, said("a", "good"), said("b", "good"), said("c", "bad"), said("d", "bad")
    )
    assert [e.id for e in dataset.examples] == ["a", "c", "d"]
    assert reasons(dataset) == [("b", "near_duplicate")]
    groups = {e.id: e.group for e in dataset.examples}
    assert groups["a"] == groups["c"] != groups["d"]


def test_near_duplicates_can_be_turned_off() -> None:
    section = DatasetSection(near_duplicate=1.0)
    queries = [query("a", LONG), query("b", LONG + " x")]
    dataset = build(queries, said("a", "good"), said("b", "good"), section=section)
    assert len(dataset.examples) == 2
    assert len({e.group for e in dataset.examples}) == 2


def test_golden_texts_leave_before_repeats_are_looked_for() -> None:
    golden = LabelledQuery(id="g", messages=TASK.messages_for(LONG), reference="good")
    queries = [query("a", LONG), query("b", LONG + " x"), query("c", "free")]
    dataset = build(
        queries, said("a", "good"), said("b", "good"), said("c", "bad"), golden=[golden]
    )
    assert [e.id for e in dataset.examples] == ["c"]
    assert reasons(dataset) == [("a", "contamination_golden"), ("b", "contamination_golden")]


def test_dialogues_with_one_last_turn_are_different_queries() -> None:
    def dialogue(name: str, first: str) -> Query:
        turns = (
            Message(role="user", content=first),
            Message(role="assistant", content="And now?"),
            Message(role="user", content="yes please"),
        )
        return Query(id=name, messages=turns)

    queries = [
        dialogue("a", "Shall I sell the house?"),
        dialogue("b", "Can you book me a flight to Rome?"),
    ]
    dataset = build(
        queries,
        said("a", "Sell it in spring."),
        said("b", "It is booked for Monday."),
        task=GenerationTask(kind="generation"),
    )
    assert [e.id for e in dataset.examples] == ["a", "b"]
    assert dataset.examples[0].group != dataset.examples[1].group


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["t u v", "t u v w", "x", "y z", LONG, LONG + " q"]),
            st.sampled_from(["good", "bad", "no idea", ""]),
        ),
        min_size=2,
        max_size=12,
    ),
    st.integers(0, 5),
)
def test_every_query_ends_as_an_example_or_a_rejection(
    pairs: list[tuple[str, str]], seed: int
) -> None:
    queries = [query(str(i), text) for i, (text, _) in enumerate(pairs)]
    dataset = build(queries, *(said(str(i), answer) for i, (_, answer) in enumerate(pairs)))
    examples = {e.id for e in dataset.examples}
    rejected = [rejection.query_id for rejection in dataset.rejections]
    assert examples.isdisjoint(rejected)
    assert sorted([*examples, *rejected]) == sorted(q.id for q in queries)
    if dataset.examples:
        train, held_out = dataset.split(0.3, seed)
        assert not {e.group for e in train} & {e.group for e in held_out}
        assert {e.id for e in train + held_out} == examples


def test_a_first_sample_in_the_minority_is_not_the_label() -> None:
    votes = ["bad", "good", "good", "good", "good"]
    dataset = build([query("a", "x")], *(said("a", vote, i) for i, vote in enumerate(votes)))
    (example,) = dataset.examples
    assert example.label == "good"
    assert example.label_probabilities is not None
    assert example.label_probabilities[0] > 0.5


def test_examples_without_belief_are_rejected_where_most_have_one() -> None:
    belief = {"good": math.log(0.9), "bad": math.log(0.1)}
    queries = [query(name, f"text {name * 5}") for name in "abc"]
    answers = [said(n, "good", label_logprobs=belief) for n in "ab"] + [said("c", "bad")]
    assert len(build(queries, *answers).examples) == 3
    dataset = build(queries, *answers, beliefs=True)
    assert [e.id for e in dataset.examples] == ["a", "b"]
    assert reasons(dataset) == [("c", "no_belief")]
    none = build(queries, *(said(n, "good") for n in "abc"), beliefs=True)
    assert len(none.examples) == 3, "training says what is wrong with the recipe"


def test_a_cluster_that_loses_its_beliefs_is_seen_to_and_nothing_without_one_comes_back() -> None:
    belief = {"good": math.log(0.9), "bad": math.log(0.1)}
    queries = [
        query(f"{kind}{i}", f"{kind} text {i}").in_cluster(0 if kind == "easy" else 1)
        for kind, count in (("easy", 6), ("hard", 4))
        for i in range(count)
    ]
    answers = [said(f"easy{i}", "good", label_logprobs=belief) for i in range(6)]
    answers += [said(f"hard{i}", "bad") for i in range(4)]
    section = DatasetSection.model_validate(
        {
            "near_duplicate": 1.0,
            "floor": 0.5,
            "judge": {"model": "openai:m", "gold": "g.jsonl"},
        }
    )
    judgements = {
        JudgementKey(q.id, "m", 0): Judgement(
            query_id=q.id, sample=0, model="m", mode="pointwise", score=score, good=score > 3
        )
        for q in queries
        for score in [1.0 if q.id in ("hard0", "hard1") else 5.0]
    }
    dataset = build_dataset(
        TASK,
        section,
        "logprobs",
        queries=queries,
        completions={a.query_id: [a] for a in answers},
        judgements=judgements,
        beliefs=True,
    )
    assert {e.id for e in dataset.examples} == {f"easy{i}" for i in range(6)}
    rows = {row.name: row for row in dataset.coverage.clusters}
    assert (rows["1"].queries, rows["1"].accepted, rows["1"].readmitted) == (4, 0, 0)
    assert sorted(reasons(dataset)) == [
        ("hard0", "judge"),
        ("hard1", "judge"),
        ("hard2", "no_belief"),
        ("hard3", "no_belief"),
    ]
    # None of them has a belief to read difficulty off: they are counted all the same.
    assert dataset.coverage.unmeasured is not None
    assert dataset.coverage.unmeasured["queries"] == 4


def test_the_held_out_share_is_of_what_may_be_held_out() -> None:
    rows = [query(f"q{i}", f"one {i} two {i} three") for i in range(100)]
    truth = [
        LabelledQuery(id=str(i), messages=TASK.messages_for(f"{i} four {i} five"), reference="good")
        for i in range(900)
    ]
    queries = [*rows, *(one.as_traffic() for one in truth)]
    section = DatasetSection(near_duplicate=1.0)
    answers = [said(q.id, "good") for q in queries]
    dataset = build(queries, *answers, section=section, labelled=truth)
    train, held_out = dataset.split(0.1, 0)
    assert len(held_out) == 10
    assert len(train) == 990
    assert {e.id[0] for e in held_out} == {"q"}


def test_synthetic_queries_are_never_held_out() -> None:
    rows = [query(f"q{i}", f"one {i} two {i} three") for i in range(60)]
    written = [query(f"synthetic:{i}", f"six {i} seven {i} eight") for i in range(200)]
    answers = [said(q.id, "good") for q in (*rows, *written)]
    dataset = build([*rows, *written], *answers, section=DatasetSection(near_duplicate=1.0))
    train, held_out = dataset.split(0.1, 0)
    assert len(held_out) == 6
    assert {e.id[0] for e in held_out} == {"q"}
    assert len(train) == 254
