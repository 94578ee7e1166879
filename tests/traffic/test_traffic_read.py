"""Reading the user's files: what logs hold is taken, every mistake names file, line and field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import DataError
from stillhouse.core.records import Message, Query, message_key
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.traffic.read import read_labelled, read_queries

TASK = ClassificationTask(
    kind="classification",
    name="reviews",
    labels=("fresh", "rotten"),
    system="Judge.",
    prompt="Review: {text}",
)
EXTRACTION = ExtractionTask(
    kind="extraction",
    json_schema={
        "type": "object",
        "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
        "required": ["city"],
    },
)
SUMMARY = GenerationTask(kind="generation")
USER = {"role": "user", "content": "x"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def error_of(folder: Path, *lines: object, labelled: bool = False, task: object = TASK) -> str:
    path = write(folder, *lines)
    with pytest.raises(DataError) as caught:
        (read_labelled if labelled else read_queries)(path, task)  # type: ignore[operator]
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_plain_text_is_put_into_the_tasks_chat(tmp_path: Path) -> None:
    file = read_queries(write(tmp_path, {"text": "nice"}), TASK)
    (query,) = file.queries
    assert query.messages == (
        Message(role="system", content="Judge."),
        Message(role="user", content="Review: nice"),
    )
    assert query.id == message_key(query.messages)
    assert query.task == "reviews"
    assert file.other_task == 0


def test_optional_fields_are_kept(tmp_path: Path) -> None:
    line = {"text": "x", "id": 17, "user": "u", "at": "2025-01-01", "metadata": {"k": [1, None]}}
    (query,) = read_queries(write(tmp_path, line), TASK).queries
    assert (query.id, query.user, query.at, query.metadata) == (
        "17",
        "u",
        "2025-01-01",
        {"k": [1, None]},
    )


def test_a_logged_request_and_response_loses_its_answer(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "said", "refusal": None, "tool_calls": []},
    ]
    (query,) = read_queries(write(tmp_path, {"messages": chat}), TASK).queries
    assert [(m.role, m.content) for m in query.messages] == [("system", "s"), ("user", "a\nb")]


def test_earlier_answers_of_a_dialogue_stay(tmp_path: Path) -> None:
    chat = [USER, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    (query,) = read_queries(write(tmp_path, {"messages": chat}), TASK).queries
    assert len(query.messages) == 3


def test_lines_of_other_tasks_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"text": "a", "task": "reviews"},
        {"text": "b", "task": "mail"},
        {"text": "c", "task": ""},
    )
    file = read_queries(path, TASK)
    assert len(file.queries) == 2
    assert file.other_task == 1


def test_lines_without_id_may_repeat(tmp_path: Path) -> None:
    file = read_queries(write(tmp_path, {"text": "a"}, {"text": "a"}), TASK)
    assert len(file.queries) == 2
    key = file.queries[0].id
    again = read_queries(write(tmp_path, {"text": "a"}, {"text": "a", "id": key}), TASK)
    assert len(again.queries) == 2


@pytest.mark.parametrize(
    "lines",
    [
        ({"text": "a", "id": "1"}, {"text": "b"}, {"text": "c", "id": "1"}),
        ({"text": "a", "id": "1"}, {"text": "b"}, {"text": "a", "id": "1"}),
        ({"text": "a", "id": "1"}, {"text": "b"}, {"text": "c", "id": 1}),
    ],
)
def test_an_id_written_twice_names_both_lines(tmp_path: Path, lines: tuple[object, ...]) -> None:
    text = error_of(tmp_path, *lines)
    assert "line 3" in text
    assert "already used in line 1" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({}, "text: text or messages is missing"),
        ({"text": "a", "messages": [USER]}, "both given"),
        ({"text": 3}, "text: must be a string"),
        ({"text": None}, "text: must be a string"),
        ({"text": "  "}, "text: is empty"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"txt": "a"}, "did you mean 'text'?"),
        ({"text": "a", "model": "gpt"}, "put it into metadata"),
        ({"text": "a", "label": "fresh"}, "traffic.labelled"),
        ({"text": "a", "id": ""}, "id: must be"),
        ({"text": "a", "id": None}, "id: must be"),
        ({"text": "a", "id": True}, "id: must be"),
        ({"text": "a", "user": 3}, "user: "),
        ({"text": "a", "metadata": []}, "metadata: "),
        ({"text": "a", "task": 3}, "task: must be a string"),
        ({"messages": []}, "messages: must be a list"),
        ({"messages": "hello"}, "messages: must be a list"),
        ({"messages": ["hello"]}, "messages.0: must be an object"),
        ({"messages": [{"content": "x"}]}, "messages.0.role: is missing"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content: must be"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0.content: is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: must end with"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: must end with"),
        ({"messages": [{**USER, "tool_calls": [1]}]}, "messages.0.tool_calls: is not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}]},
            "messages.0.content.0: is not a text part",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content.0"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content.0"),
    ],
)
def test_a_wrong_line_names_its_field(tmp_path: Path, line: object, said: str) -> None:
    text = error_of(tmp_path, {"text": "good"}, line)
    assert "line 2" in text
    assert said in text


def test_an_empty_file_is_an_empty_task(tmp_path: Path) -> None:
    assert "empty task" in error_of(tmp_path)
    assert "other tasks than reviews" in error_of(tmp_path, {"text": "a", "task": "mail"})
    assert "empty task" in error_of(tmp_path, labelled=True)


@pytest.mark.parametrize("key", ["label", "reference"])
def test_labels_are_stored_as_the_task_writes_them(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, {"text": "a", key: " Fresh."}, {"text": "b", key: "rotten"})
    assert [q.reference for q in read_labelled(path, TASK).queries] == ["fresh", "rotten"]


def test_numbers_serve_as_labels(tmp_path: Path) -> None:
    task = ClassificationTask(kind="classification", labels=("0", "1"))
    path = write(tmp_path, {"text": "a", "label": 0}, {"text": "b", "label": 1})
    assert [q.reference for q in read_labelled(path, task).queries] == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a"}, "label: is missing"),
        ({"text": "a", "label": "fresh", "reference": "fresh"}, "both given"),
        ({"text": "a", "label": "freshh"}, "(got 'freshh'); the nearest label is 'fresh'"),
        ({"text": "a", "label": "zzz"}, "the nearest label is"),
        ({"text": "a", "label": ""}, "is not one of the task's labels"),
        ({"text": "a", "label": None}, "label: must be a string"),
        ({"text": "a", "label": True}, "label: must be a string"),
        ({"text": "a", "lable": "fresh"}, "did you mean 'label'?"),
    ],
)
def test_a_wrong_label_names_line_value_and_nearest(
    tmp_path: Path, line: object, said: str
) -> None:
    text = error_of(tmp_path, {"text": "good", "label": "fresh"}, line, labelled=True)
    assert "line 2" in text
    assert said in text


def test_labelled_examples_of_one_class_are_an_error(tmp_path: Path) -> None:
    lines = [{"text": str(i), "label": "fresh"} for i in range(4)]
    assert "all 4 labelled examples are of one class" in error_of(tmp_path, *lines, labelled=True)


def test_objects_are_stored_as_canonical_json(tmp_path: Path) -> None:
    value = {"zip": "1", "city": "Zürich"}
    path = write(
        tmp_path, {"text": "a", "reference": value}, {"text": "b", "reference": json.dumps(value)}
    )
    first, second = read_labelled(path, EXTRACTION).queries
    assert first.reference == second.reference == '{"city": "Zürich", "zip": "1"}'


@pytest.mark.parametrize("value", [{"zip": "1"}, {"city": 1}, "no json", None, 3, []])
def test_an_object_that_breaks_the_schema_is_an_error(tmp_path: Path, value: object) -> None:
    line = {"text": "a", "reference": value}
    text = error_of(tmp_path, line, labelled=True, task=EXTRACTION)
    assert "reference: does not fit task.json_schema" in text


@pytest.mark.parametrize("value", ["", " ", None, 3, {}])
def test_a_free_text_reference_is_a_text(tmp_path: Path, value: object) -> None:
    line = {"text": "a", "reference": value}
    assert "reference: must be a text" in error_of(tmp_path, line, labelled=True, task=SUMMARY)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
LINES = st.dictionaries(
    st.sampled_from(["id", "text", "messages", "label", "task", "user", "metadata", "x"]),
    JSON_VALUES | st.sampled_from(["user", "fresh", [USER]]),
    max_size=4,
)


@settings(deadline=None)
@given(st.lists(LINES, max_size=3), st.booleans())
def test_any_lines_are_queries_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[object], labelled: bool
) -> None:
    path = write(tmp_path_factory.mktemp("any"), *lines)
    said = str(path)
    queries: list[Query] = []
    try:
        queries += (read_labelled if labelled else read_queries)(path, TASK).queries
        assert queries
    except DataError as error:
        said = str(error)
    assert str(path) in said
    assert len(said.splitlines()) == 1
    for query in queries:
        assert type(query).model_validate_json(query.to_json()) == query
