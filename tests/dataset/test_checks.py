"""Quality checks: each reason, and what must not be rejected."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, Message, Query, Rejection
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask, Task
from stillhouse.dataset.checks import CHECKS, ExampleParts, check_completion
from stillhouse.dataset.validators import Validators

LABELS = ClassificationTask(kind="classification", labels=("fresh", "rotten", "rotten to the core"))
JSON = ExtractionTask(
    kind="extraction",
    json_schema={
        "type": "object",
        "properties": {"city": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["city"],
    },
)
FREE = GenerationTask(kind="generation", prompt="Summarise in one sentence: {text}")
ARTICLE = "The council met on Monday to discuss the new bridge, which is late and over budget."
SECTION = DatasetSection(max_chars=2000)


def judged(task: Task, text: str, section: DatasetSection = SECTION, **more: Any) -> object:
    query = Query(id="q", messages=task.messages_for(ARTICLE))
    completion = Completion(query_id="q", text=text, model="m", revision="r", **more)
    return check_completion(task, query, completion, section)


def reason(task: Task, text: str, section: DatasetSection = SECTION, **more: Any) -> str | None:
    verdict = judged(task, text, section, **more)
    if isinstance(verdict, Rejection):
        assert verdict.detail
        assert verdict.completion is not None
        assert verdict.completion.text == text
        assert verdict.messages
        return verdict.reason
    assert isinstance(verdict, ExampleParts)
    return None


def test_reason_names_are_stable() -> None:
    assert [name for name, _ in CHECKS] == [
        "refusal",
        "tool_calls",
        "empty",
        "truncated",
        "label",
        "schema",
        "too_short",
        "too_long",
        "encoding",
        "echo",
        "repetition",
    ]


def test_accepted_answers_are_canonical() -> None:
    assert judged(LABELS, " 'Fresh', I think") == ExampleParts("fresh", "fresh")
    assert judged(JSON, '```json\n{"city":"X","age":3}```') == (
        ExampleParts('{"age": 3, "city": "X"}', None)
    )
    assert judged(FREE, "  The bridge is late. \n") == ExampleParts("The bridge is late.", None)


@pytest.mark.parametrize("task", [LABELS, JSON, FREE])
@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_empty(task: Task, text: str) -> None:
    assert reason(task, text) == "empty"


@pytest.mark.parametrize("finish", ["refusal", "content_filter"])
def test_a_marked_refusal(finish: str) -> None:
    assert reason(LABELS, "fresh", finish_reason=finish) == "refusal"
    assert reason(FREE, "", finish_reason=finish) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I cannot help with that request.",
        "Sorry, I can't help.",
        "I cannot provide a summary of this text.",
        "As an AI language model, I do not have opinions.",
        "Unfortunately, I am unable to process this.",
        "I apologize, but I won't create that content.",
    ],
)
@pytest.mark.parametrize("task", [LABELS, JSON, FREE])
def test_a_refusal_by_its_opening(task: Task, text: str) -> None:
    assert reason(task, text) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your parcel is late. It arrives on Monday.",
        "Sorry about the delay: the bridge opens in May.",
        "I can help: the bridge is late.",
        "I cannot, " + "the mayor said, and went on to explain at length why. " * 10,
        "The speaker said: I cannot help you.",
    ],
)
def test_an_answer_that_only_sounds_like_a_refusal_is_kept(text: str) -> None:
    assert reason(FREE, text) in (None, "repetition")
    assert reason(FREE, text) != "refusal"


def test_a_tool_call() -> None:
    assert reason(FREE, "calling", finish_reason="tool_calls") == "tool_calls"


def test_truncated() -> None:
    assert reason(FREE, "The bridge is", finish_reason="length") == "truncated"
    assert reason(JSON, '{"city": "X"', finish_reason="length") == "truncated"
    assert reason(LABELS, "I think that", finish_reason="length") == "truncated"
    # A whole label followed by more says all there is to know ...
    assert reason(LABELS, "fresh, because", finish_reason="length") is None
    assert reason(LABELS, "fresh", finish_reason="length") is None
    # ... unless it could have become a longer one.
    assert reason(LABELS, "rotten", finish_reason="length") == "truncated"
    assert reason(LABELS, "rotten to the core", finish_reason="length") is None


@pytest.mark.parametrize("text", ["good", "freshly", "The review is fresh", "?"])
def test_label(text: str) -> None:
    assert reason(LABELS, text) == "label"


@pytest.mark.parametrize("text", ["no json", "{}", '{"city": 3}', '{"city": "X", "age": 1.5}'])
def test_schema(text: str) -> None:
    assert reason(JSON, text) == "schema"


def test_lengths_at_their_bounds() -> None:
    section = DatasetSection(min_chars=5, max_chars=10)
    assert [reason(FREE, "x y " + "z" * n, section) for n in (0, 1, 6, 7)] == [
        "too_short",
        None,
        None,
        "too_long",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "bad \x00 byte",
        "bell\x07",
        "lost \ufffd sign",
        "itâ€™s late",
        "cafÃ© late",
        "\ue000 private",
    ],
)
def test_encoding(text: str) -> None:
    assert reason(FREE, text) == "encoding"


@pytest.mark.parametrize(
    "text",
    [
        "tab\tand\nline",
        "naïve café — “quoted” 🙂",
        "日本語の要約",
        "Ângela São Paulo",
        "👩‍👩‍👧 family",
    ],
)
def test_honest_unicode_is_kept(text: str) -> None:
    assert reason(FREE, text) is None


def test_what_the_query_itself_holds_is_not_held_against_the_answer() -> None:
    query = Query(id="q", messages=FREE.messages_for("damaged \ufffd input text of some words"))
    completion = Completion(query_id="q", text="a \ufffd b", model="m", revision="r")
    assert isinstance(check_completion(FREE, query, completion, SECTION), ExampleParts)


def test_a_label_with_a_stray_byte_is_still_the_label() -> None:
    assert judged(LABELS, "fresh \x00") == ExampleParts("fresh", "fresh")


@pytest.mark.parametrize(
    "text",
    [
        ARTICLE,
        ARTICLE.upper() + "!!",
        "Summarise in one sentence: " + ARTICLE,
        "Summarise in one sentence: " + ARTICLE + " The bridge is late.",
    ],
)
def test_echo(text: str) -> None:
    assert reason(FREE, text) == "echo"


def test_quoting_a_part_is_no_echo() -> None:
    assert reason(FREE, "The new bridge is late and over budget.") is None


@pytest.mark.parametrize(
    "text",
    [
        "The bridge is late. " * 12,
        "the same line\n" * 6,
        "a b c d " * 10,
        "no" + "o" * 60,
        "One good line.\n" + "- a point that comes again\n" * 8,
    ],
)
def test_repetition(text: str) -> None:
    assert reason(FREE, text) == "repetition"


@pytest.mark.parametrize(
    "text",
    [
        "very very very good",
        "- alpha costs 1\n- beta costs 2\n- gamma costs 3\n- delta costs 4\n- alpha again",
        "-" * 80 + "\nA title\n" + "-" * 80,
        "The bridge is late. The bridge is dear. The council is angry. The mayor is silent, "
        "and the town is waiting for a road that was promised years ago.",
    ],
)
def test_lists_and_emphasis_are_no_repetition(text: str) -> None:
    assert reason(FREE, text) is None


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=300),
    st.sampled_from([LABELS, JSON, FREE]),
    st.sampled_from(["stop", "length", "refusal", "content_filter", "tool_calls"]),
)
def test_any_answer_is_judged(text: str, task: Task, finish: str) -> None:
    verdict = judged(task, text, finish_reason=finish)
    if isinstance(verdict, ExampleParts):
        # What is accepted is its own canonical form, and is accepted again.
        assert judged(task, verdict.text) == verdict
        assert Message(role="assistant", content=verdict.text).content.strip()
    else:
        assert isinstance(verdict, Rejection)
        assert verdict.reason in dict(CHECKS)


def test_a_text_that_needed_no_change_may_stay_where_the_recipe_says_so() -> None:
    section = DatasetSection.model_validate({"validators": {"echo": False}})
    assert reason(FREE, ARTICLE) == "echo"
    assert reason(FREE, ARTICLE, section) is None


@pytest.mark.parametrize(
    ("task", "text", "shown"),
    [
        (LABELS, " 'Fresh', I think", "fresh"),
        (JSON, '```json\n{"city":"X","age":3}```', '{"age": 3, "city": "X"}'),
        (FREE, "  The bridge is late. \n", "The bridge is late."),
    ],
)
def test_validators_read_what_is_kept(
    task: Task, text: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Validators, "problem", lambda self, query, text: seen.append(text))
    assert reason(task, text) is None
    assert seen == [shown]
