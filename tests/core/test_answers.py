"""What several samples agree on: the most frequent answer, the earliest among equals."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.answers import agreed
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask, ExtractionTask

TASK = ClassificationTask(kind="classification", labels=("ham", "spam"))


def said(text: str, sample: int, **more: Any) -> Completion:
    return Completion(query_id="q", text=text, model="m", revision="r", sample=sample, **more)


def chosen(*texts: str) -> int | None:
    found = agreed(TASK, [said(text, i) for i, text in enumerate(texts)])
    return None if found is None else found.sample


def test_the_majority_wins_and_the_earliest_among_equals() -> None:
    assert chosen("spam", "ham", "Ham.") == 1
    assert chosen("spam", "ham") == 0
    assert chosen("what?", "ham") == 1
    assert chosen("what?") is None
    assert chosen() is None


def test_refusals_have_no_vote() -> None:
    answers = [said("ham", 0, finish_reason="refusal"), said("spam", 1)]
    found = agreed(TASK, answers)
    assert found is not None
    assert found.sample == 1


def test_objects_are_equal_whatever_their_order_of_keys() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {}, "b": {}}}
    task = ExtractionTask(kind="extraction", json_schema=schema)
    texts = ['{"a": 9}', '{"a": 1, "b": 2}', '{"b": 2, "a": 1}']
    found = agreed(task, [said(text, i) for i, text in enumerate(texts)])
    assert found is not None
    assert found.sample == 1


@given(st.lists(st.sampled_from(["ham", "spam", "?"]), max_size=7), st.randoms())
def test_the_order_in_which_answers_came_does_not_matter(texts: list[str], draw: Any) -> None:
    answers = [said(text, i) for i, text in enumerate(texts)]
    shuffled = answers[:]
    draw.shuffle(shuffled)
    assert agreed(TASK, answers) == agreed(TASK, shuffled)
