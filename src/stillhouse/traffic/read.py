"""Read the user's JSONL: traffic, and labelled or golden sets with true answers.

A line is `{"text": ...}`, put into the chat through the task's prompt, or `{"messages": [...]}` in
the chat form of the OpenAI API; `id`, `user`, `at`, `task` and `metadata` are optional. Labelled
lines have the true answer in `label` (or `reference`). Every mistake names file, line and field,
and a file is read whole before anything is done with it. Does not know what the queries are for.

Choices that logs make necessary:
- A request-and-response log ends with the assistant's answer: that last turn is dropped, since the
  teacher is to answer anew.
- Content given as a list of text parts is joined with newlines. Other parts are an error.
- A line whose `task` names another task than the recipe's is left out, and counted.
- A line without `id` gets the content hash of its chat; such lines may repeat (the stage drops
  repeats), while an `id` written twice is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from pydantic import ValidationError

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_objects
from stillhouse.core.records import LabelledQuery, Message, Query, message_key
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task, canonical_json, fold

Q = TypeVar("Q", bound=Query)

CONTENT_KEYS: Final = ("text", "messages")
QUERY_KEYS: Final = ("id", "task", "user", "at", "metadata")
TRUTH_KEYS: Final = ("label", "reference")
TEXT_PARTS: Final = ("text", "input_text")


class QueryFile(NamedTuple, Generic[Q]):
    """What a file holds: its queries in order, and how many lines belong to another task."""

    queries: list[Q]
    other_task: int


def read_queries(path: Path, task: Task) -> QueryFile[Query]:
    """Read a traffic file.

    Raises:
        DataError: no such file, a malformed line, an id written twice, or no query of this task.
    """
    file: QueryFile[Query] = QueryFile([], 0)
    seen = _Ids(path)
    for number, raw in read_objects(path):
        line = _Line(path, number, raw, task)
        line.check_keys((*CONTENT_KEYS, *QUERY_KEYS))
        if line.of_other_task():
            file = file._replace(other_task=file.other_task + 1)
            continue
        query = line.query(Query)
        seen.add(query, number, "id" in raw)
        file.queries.append(query)
    _not_empty(path, file, task)
    return file


def read_labelled(path: Path, task: Task) -> QueryFile[LabelledQuery]:
    """Read a labelled or golden file: queries with their true answers.

    Labels are matched without regard to case and surrounding punctuation and stored as the task
    writes them; the reference of an extraction task may be an object or its JSON text, and is
    stored as canonical JSON text.

    Raises:
        DataError: as `read_queries`, or a missing or impossible answer, or answers of one class.
    """
    file: QueryFile[LabelledQuery] = QueryFile([], 0)
    seen = _Ids(path)
    for number, raw in read_objects(path):
        line = _Line(path, number, raw, task)
        line.check_keys((*CONTENT_KEYS, *QUERY_KEYS, *TRUTH_KEYS))
        if line.of_other_task():
            file = file._replace(other_task=file.other_task + 1)
            continue
        query = line.query(LabelledQuery, reference=line.reference())
        seen.add(query, number, "id" in raw)
        file.queries.append(query)
    _not_empty(path, file, task)
    classes = {query.reference for query in file.queries}
    if isinstance(task, ClassificationTask) and len(classes) == 1:
        raise DataError(
            str(path),
            f"all {len(file.queries)} labelled examples are of one class",
            value=classes.pop(),
            action="add examples of the other labels",
        )
    return file


def _not_empty(path: Path, file: QueryFile[Q], task: Task) -> None:
    if file.queries:
        return
    if file.other_task:
        problem = f"empty task: all {file.other_task} lines belong to other tasks than {task.name}"
        raise DataError(str(path), problem, action="mend task.name in the recipe")
    raise DataError(str(path), "empty task: the file holds no query", action="check the path")


class _Ids:
    """Ids seen so far in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, tuple[int, bool, str]] = {}

    def add(self, query: Query, number: int, written: bool) -> None:
        content = message_key(query.messages)
        earlier = self._seen.setdefault(query.id, (number, written, content))
        line, was_written, same_content = earlier
        if line == number or (not (written and was_written) and content == same_content):
            return
        raise DataError(
            f"{self._path} line {number}",
            f"id: is already used in line {line}",
            value=query.id,
            action="give each query its own id, or leave id out",
        )


class _Line:
    """One line of a file, read against the task."""

    def __init__(self, path: Path, number: int, raw: Mapping[str, object], task: Task) -> None:
        self._where = f"{path} line {number}"
        self._raw = raw
        self._task = task

    def wrong(self, field: str, problem: str, value: object = None, action: str = "") -> DataError:
        return DataError(self._where, f"{field}: {problem}", value=value, action=action)

    def check_keys(self, known: tuple[str, ...]) -> None:
        for key in self._raw:
            if key in known:
                continue
            if key in TRUTH_KEYS:
                raise self.wrong(
                    key,
                    "traffic has no true answers",
                    action="give this file as traffic.labelled or traffic.golden",
                )
            near = difflib.get_close_matches(key, known, n=1)
            raise self.wrong(
                key,
                "unknown key",
                action=f"did you mean {near[0]!r}?"
                if near
                else f"put it into metadata; known keys: {', '.join(known)}",
            )

    def of_other_task(self) -> bool:
        name = self._raw.get("task")
        if name is not None and not isinstance(name, str):
            raise self.wrong("task", "must be a string", value=name)
        return bool(name) and name != self._task.name

    def query(self, record: type[Q], **more: object) -> Q:
        optional = {key: self._raw[key] for key in QUERY_KEYS if self._raw.get(key) is not None}
        try:
            messages = self._messages()
            fields = {**optional, **more, "messages": messages, "task": self._task.name}
            fields["id"] = self._id(messages)
            return record.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "line"
            message = first["msg"].removeprefix("Value error, ")
            raise self.wrong(field, message, value=first.get("input")) from None

    def _id(self, messages: tuple[Message, ...]) -> str:
        given = self._raw.get("id")
        if "id" not in self._raw:
            return message_key(messages)
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        if not isinstance(given, str) or not given.strip():
            raise self.wrong("id", "must be a string that is not empty", value=repr(given))
        return given

    def _messages(self) -> tuple[Message, ...]:
        present = [key for key in CONTENT_KEYS if key in self._raw]
        if len(present) != 1:
            problem = "text or messages is missing" if not present else "text and messages are both"
            raise self.wrong(
                "text",
                problem if not present else problem + " given",
                action="write {'text': ...} or {'messages': [...]}",
            )
        if present == ["text"]:
            text = self._raw["text"]
            if not isinstance(text, str):
                raise self.wrong("text", "must be a string", value=text)
            if not text.strip():
                raise self.wrong("text", "is empty", action="leave the line out")
            return self._task.messages_for(text)
        return self._chat(self._raw["messages"])

    def _chat(self, raw: object) -> tuple[Message, ...]:
        if not isinstance(raw, list) or not raw:
            raise self.wrong("messages", "must be a list that is not empty", value=repr(raw))
        messages = [self._message(item, f"messages.{index}") for index, item in enumerate(raw)]
        if messages[-1].role == "assistant":
            messages.pop()
        if not messages or messages[-1].role in ("system", "developer", "assistant"):
            raise self.wrong(
                "messages", "must end with a user's turn (a last answer after it is dropped)"
            )
        if not messages[-1].content.strip():
            raise self.wrong(f"messages.{len(messages) - 1}.content", "is empty")
        return tuple(messages)

    def _message(self, raw: object, at: str) -> Message:
        if not isinstance(raw, dict):
            raise self.wrong(at, "must be an object with role and content", value=raw)
        for key in ("role", "content"):
            if key not in raw:
                raise self.wrong(f"{at}.{key}", "is missing")
        for key, value in raw.items():
            # Logs of the OpenAI API carry empty fields ("refusal": null, "annotations": []).
            if key not in ("role", "content", "name") and value not in (None, [], {}, ""):
                raise self.wrong(f"{at}.{key}", "is not supported: chats are text only")
        content = self._content(raw["content"], f"{at}.content")
        try:
            return Message.model_validate({"role": raw["role"], "content": content})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join((at, *(str(part) for part in first["loc"])))
            raise self.wrong(field, first["msg"], value=first.get("input")) from None

    def _content(self, raw: object, at: str) -> str:
        if isinstance(raw, str):
            return raw
        if not isinstance(raw, list):
            raise self.wrong(at, "must be a string or a list of text parts", value=repr(raw))
        texts: list[str] = []
        for index, part in enumerate(raw):
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if isinstance(part, dict) else None
            if kind not in TEXT_PARTS or not isinstance(text, str):
                raise self.wrong(
                    f"{at}.{index}", "is not a text part: chats are text only", value=kind or part
                )
            texts.append(text)
        return "\n".join(texts)

    def reference(self) -> str:
        """The true answer, as the task writes it."""
        present = [key for key in TRUTH_KEYS if key in self._raw]
        if len(present) != 1:
            problem = "label and reference are both given" if present else "is missing"
            raise self.wrong("label", problem, action="write the true answer once, in 'label'")
        key, value = present[0], self._raw[present[0]]
        if isinstance(self._task, ClassificationTask):
            return self._label(self._task, key, value)
        if isinstance(self._task, ExtractionTask):
            return self._object(self._task, key, value)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "must be a text that is not empty", value=repr(value))
        return value

    def _label(self, task: ClassificationTask, key: str, value: object) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(text, str):
            raise self.wrong(key, "must be a string", value=repr(value))
        by_fold = {fold(label): label for label in task.labels}
        if fold(text) in by_fold:
            return by_fold[fold(text)]
        near = difflib.get_close_matches(fold(text), list(by_fold), n=1, cutoff=0.0)
        nearest = by_fold[near[0]] if near else task.labels[0]
        raise self.wrong(
            key,
            f"is not one of the task's labels ({', '.join(task.labels)})",
            value=text,
            action=f"the nearest label is {nearest!r}",
        )

    def _object(self, task: ExtractionTask, key: str, value: object) -> str:
        answer = task.parse(value if isinstance(value, str) else canonical_json(value))
        if answer.problem is not None:
            raise self.wrong(
                key, f"does not fit task.json_schema: {answer.problem}", value=repr(value)
            )
        return canonical_json(answer.value)
