"""Contamination: golden texts leave the training data, and what knows them is reported."""

from __future__ import annotations

from stillhouse.core.records import Example, LabelledQuery, Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.contamination import decontaminate

TASK = ClassificationTask(kind="classification", labels=("a", "b"), prompt="Judge: {text}")
SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def example(name: str, text: str) -> Example:
    return Example(
        id=name,
        messages=(*TASK.messages_for(text), Message(role="assistant", content="a")),
        task="task",
        group="",
        teacher="m",
        teacher_revision="r",
        label="a",
    )


def labelled(name: str, text: str) -> LabelledQuery:
    return LabelledQuery(id=name, messages=TASK.messages_for(text), reference="a")


EXAMPLES = [
    example("same", SENTENCE.upper()),
    example("near", SENTENCE + " fifteen"),
    example("free", "something else altogether that nobody has curated"),
]
GOLDEN = [labelled("g1", SENTENCE), labelled("g2", "unseen"), labelled("g3", "known to the tuner")]
LABELLED = [labelled("l1", "Known to the  tuner"), labelled("l2", "else")]


def test_both_ways() -> None:
    found = decontaminate(TASK, EXAMPLES, GOLDEN, LABELLED, 0.85)
    assert [e.id for e in found.examples] == ["free"]
    assert [(r.query_id, r.reason) for r in found.rejections] == [
        ("same", "contamination_golden"),
        ("near", "contamination_golden"),
    ]
    assert "g1" in found.rejections[0].detail
    assert found.as_json() == {
        "examples_removed": 2,
        "golden_in_traffic": ["g1"],
        "golden_in_labelled": ["g3"],
    }


def test_several_golden_texts_near_one_example_are_all_reported() -> None:
    golden = [labelled("g1", SENTENCE), labelled("g2", SENTENCE + " fourteen")]
    found = decontaminate(TASK, EXAMPLES[1:2], golden, [], 0.85)
    assert found.golden_in_traffic == ["g1", "g2"]


def test_without_near_duplicates_equal_texts_are_still_found() -> None:
    found = decontaminate(TASK, EXAMPLES, GOLDEN, LABELLED, 1.0)
    assert [e.id for e in found.examples] == ["near", "free"]
    assert found.golden_in_labelled == ["g3"]


def test_without_a_golden_set_nothing_is_removed() -> None:
    found = decontaminate(TASK, EXAMPLES, [], LABELLED, 0.85)
    assert found.examples == EXAMPLES
    assert found.rejections == []
