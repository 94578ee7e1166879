"""The teacher check: numbers worked out by hand, the baseline, the warning."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from progress_lines import Lines

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, LabelledQuery, Rejection
from stillhouse.core.statistics import wilson
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask, Task
from stillhouse.teacher.ask import AskResult
from stillhouse.teacher.check import TeacherCheck, check_teacher, linear_baseline

TASK = ClassificationTask(kind="classification", labels=("good", "bad"))


def labelled(truths: Sequence[str], task: Task = TASK) -> list[LabelledQuery]:
    return [
        LabelledQuery(
            id=f"q{i}",
            messages=task.messages_for(f"{'lovely' if truth == 'good' else 'awful'} film {i}"),
            reference=truth,
        )
        for i, truth in enumerate(truths)
    ]


def answered(answers: Sequence[str | list[str] | None]) -> AskResult:
    found: dict[str, tuple[Completion, ...]] = {}
    failures: list[Rejection] = []
    for i, answer in enumerate(answers):
        if answer is None:
            failures.append(Rejection(query_id=f"q{i}", reason="no_answer", detail="down"))
            continue
        texts = [answer] if isinstance(answer, str) else answer
        found[f"q{i}"] = tuple(
            Completion(query_id=f"q{i}", text=text, model="m", revision="r", sample=s)
            for s, text in enumerate(texts)
        )
    return AskResult(found, tuple(failures), 0.0, 1.0, len(answers), 0, {})


def check(
    truths: Sequence[str],
    answers: Sequence[str | list[str] | None],
    *,
    task: Task = TASK,
    training: Sequence[LabelledQuery] = (),
    lines: Lines | None = None,
) -> TeacherCheck:
    return check_teacher(
        task,
        "openai:m",
        "r",
        labelled(truths, task),
        answered(answers),
        training=training,
        confidence=0.95,
        seed=0,
        progress=lines or Lines(),
    )


def test_accuracy_unusable_and_label_bias() -> None:
    result = check(
        ["good", "good", "bad", "bad", "bad"],
        ["Good.", "bad", "bad", "who knows", None],
    )
    assert result.accuracy == wilson(2, 5)
    assert result.unusable == wilson(1, 4)
    assert result.no_answer == 1
    assert result.n == 5
    assert result.first_problem == "not one of the labels: 'who knows'"
    assert result.labels is not None
    assert {k: (v.true, v.predicted) for k, v in result.labels.items()} == {
        "good": (2, 1),
        "bad": (3, 2),
    }


def test_several_samples_agree_by_majority() -> None:
    result = check(["good", "bad"], [["bad", "good", "good"], ["good", "bad", "?"]])
    # q0: good; q1: one each, the first stands.
    assert result.accuracy == wilson(1, 2)
    assert result.unusable == wilson(1, 6)


def test_a_refusal_counts_as_wrong_even_if_it_names_the_label() -> None:
    asked = answered(["good", "good"])
    refused = asked.completions_by_query["q0"][0].model_copy(update={"finish_reason": "refusal"})
    asked = asked._replace(completions_by_query={**asked.completions_by_query, "q0": (refused,)})
    result = check_teacher(
        TASK, "openai:m", "r", labelled(["good", "good"]), asked,
        training=(), confidence=0.95, seed=0, progress=Lines(),
    )  # fmt: skip
    assert result.accuracy == wilson(1, 2)
    assert result.first_problem == "refused (refusal)"


def test_a_teacher_none_of_whose_answers_can_be_used_is_an_error() -> None:
    with pytest.raises(UserError, match=r"none of its 2 answers.*query q0.*'Sure! Here"):
        check(["good", "bad"], ["Sure! Here you go", "Hm"])


def test_the_baseline_is_trained_on_the_tune_part_where_there_is_one() -> None:
    train = labelled(["good", "bad"] * 20)
    baseline = linear_baseline(TASK, labelled(["bad", "good"] * 10), train, confidence=0.95, seed=0)
    assert baseline is not None
    assert (baseline.how, baseline.trained_on) == ("separate", 40)
    assert baseline.accuracy == wilson(20, 20)  # one word tells the classes apart


def test_the_baseline_is_cross_validated_without_and_keeps_equal_chats_together() -> None:
    queries = labelled(["good", "bad"] * 25)
    baseline = linear_baseline(TASK, queries, (), confidence=0.95, seed=0)
    assert baseline is not None
    assert (baseline.how, baseline.accuracy) == ("cross_validated", wilson(50, 50))
    assert baseline == linear_baseline(TASK, queries, (), confidence=0.95, seed=0)
    # Every chat twice, labels at random to the words: nothing can be learned, nothing leaks.
    noise = [
        LabelledQuery(id=f"{i}", messages=TASK.messages_for(f"w{i % 40}"), reference=label)
        for i, label in enumerate((["good", "bad"] * 20) * 2)
    ]
    leak_free = linear_baseline(TASK, noise, (), confidence=0.95, seed=0)
    assert leak_free is not None
    assert leak_free.accuracy.estimate < 0.8


def test_one_text_alone_has_no_baseline() -> None:
    result = check(["good"], ["good"])
    assert result.baseline is None
    assert result.better_than_baseline is None


def test_a_teacher_no_better_than_the_baseline_is_warned_of() -> None:
    truths = ["good", "bad"] * 10
    lines = Lines()
    result = check(truths, ["good"] * 20, lines=lines)
    assert result.better_than_baseline is False
    assert len(lines.said) == 1
    assert lines.said[0].startswith("WARNING: teacher openai:m is right on 50.0%")


def test_a_better_teacher_is_not() -> None:
    truths = ["good", "bad"] * 10
    queries = [
        LabelledQuery(id=f"q{i}", messages=TASK.messages_for(f"w{i}"), reference=truth)
        for i, truth in enumerate(truths)
    ]
    lines = Lines()
    result = check_teacher(
        TASK, "openai:m", "r", queries, answered(truths),
        training=(), confidence=0.95, seed=0, progress=lines,
    )  # fmt: skip
    assert result.better_than_baseline is True
    assert "WARNING" not in lines.said[0]


def test_extraction_is_scored_by_equal_json() -> None:
    task = ExtractionTask(
        kind="extraction",
        json_schema={"type": "object", "properties": {"a": {"type": "string"}}},
    )
    result = check(
        ['{"a": "x"}', '{"a": "x", "b": 1}'],
        ['```json\n{ "a": "x" }\n```', '{"a": "y", "b": 1}'],
        task=task,
    )
    assert result.accuracy == wilson(1, 2)
    assert result.baseline is None


def test_free_text_has_no_accuracy() -> None:
    task = GenerationTask(kind="generation")
    assert check(["x"], ["y"], task=task).accuracy is None


def test_no_query_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        check([], [])
