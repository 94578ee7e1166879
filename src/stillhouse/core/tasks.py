"""Task kinds: what a query asks for, how it is put into a chat, how an answer is read back.

The kind decides the format check, the scorer and the confidence features. Knows text only: no
models, no files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from stillhouse.core.records import Message, Query

TEXT_SLOT = "{text}"
_EDGES = " \t\r\n\"'`*.,:;!"


class ParsedAnswer(NamedTuple):
    """An answer read against its task. `value` is `None` exactly when `problem` says why."""

    value: JsonValue
    problem: str | None


class TaskBase(BaseModel):
    """What all task kinds have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="task",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Short name of the task.",
    )
    system: str | None = Field(default=None, description="System message put before each query.")
    prompt: str = Field(
        default=TEXT_SLOT,
        description="User message for traffic that is plain text; {text} is where the text goes.",
    )

    @field_validator("prompt")
    @classmethod
    def _has_slot(cls, prompt: str) -> str:
        if prompt.count(TEXT_SLOT) != 1:
            raise ValueError("must contain {text} exactly once")
        return prompt

    def messages_for(self, text: str) -> tuple[Message, ...]:
        """The chat that asks this task about one plain text."""
        head, tail = self.prompt.split(TEXT_SLOT)
        user = Message(role="user", content=head + text + tail)
        if self.system is None:
            return (user,)
        return (Message(role="system", content=self.system), user)

    def input_text(self, query: Query) -> str:
        """What a label student and the linear baseline read: `varying_text`."""
        return self.varying_text(query)

    def last_text(self, query: Query) -> str:
        """The last message without the prompt around it, where it has that form."""
        content = query.last_user_text
        head, tail = self.prompt.split(TEXT_SLOT)
        if len(content) >= len(head) + len(tail) and content.startswith(head):
            if content.endswith(tail):
                return content[len(head) : len(content) - len(tail)]
        return content

    def misfit(self, query: Query) -> str | None:
        """Why a chat is not of the form in which this task's plain texts are asked, or `None`.

        A system message matters where the task sets one; the last message must be the user's, with
        the prompt around its text.
        """
        first, last = query.messages[0], query.messages[-1]
        if self.system is not None:
            if first.role not in ("system", "developer") or first.content != self.system:
                return "the system message is not the task's"
        if last.role != "user":
            return "the last message is not the user's"
        head, tail = self.prompt.split(TEXT_SLOT)
        whole = len(last.content) >= len(head) + len(tail)
        if not (whole and last.content.startswith(head) and last.content.endswith(tail)):
            return "the last message has not the form of the task's prompt"
        return None

    def varying_text(self, query: Query) -> str:
        """All of the chat that varies between queries: earlier turns, then the input text.

        System messages and the instruction around the text are left out. Equal texts ask the same
        thing, and look the same to a label student; similar ones are near-duplicates.
        """
        earlier = [m.content for m in query.messages[:-1] if m.role not in ("system", "developer")]
        return "\n".join([*earlier, self.last_text(query)])


class ClassificationTask(TaskBase):
    """Closed labels."""

    kind: Literal["classification"]
    labels: tuple[str, ...] = Field(min_length=2, description="The closed set of labels.")

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        folded = [fold(label) for label in labels]
        if len(set(folded)) != len(folded) or "" in folded:
            raise ValueError("labels must be distinct and not empty (case and quotes are ignored)")
        return labels

    def parse(self, text: str) -> ParsedAnswer:
        """The label an answer names: alone, or first followed by a boundary."""
        folded = fold(text)
        for label in self.labels:
            if folded == fold(label):
                return ParsedAnswer(label, None)
        hits = [
            label
            for label in self.labels
            if re.match(re.escape(fold(label)) + r"(?![\w-])", folded) is not None
        ]
        if hits:
            return ParsedAnswer(max(hits, key=len), None)
        return ParsedAnswer(None, f"not one of the labels: {text[:60]!r}")


class ExtractionTask(TaskBase):
    """A JSON object of a given shape."""

    kind: Literal["extraction"]
    json_schema: dict[str, JsonValue] = Field(description="JSON Schema of the answer.")

    @model_validator(mode="after")
    def _is_object_schema(self) -> ExtractionTask:
        if self.json_schema.get("type") != "object" or not self.json_schema.get("properties"):
            raise ValueError("json_schema must be of type object and list its properties")
        unread = unread_keyword(self.json_schema)
        if unread is not None:
            raise ValueError(
                f"json_schema uses {unread}, which is not checked here; leave it out "
                f"(checked: {', '.join(sorted(_CHECKED_KEYWORDS))})"
            )
        return self

    def parse(self, text: str) -> ParsedAnswer:
        """The JSON object in an answer, code fence allowed, checked against the schema."""
        try:
            value = json_value(text)
        except ValueError:
            # A fence is looked for second: a string inside a bare object may hold one.
            from_fence = re.search(r"```(?:json)?\s*(.*?)```", text, re.DOTALL)
            try:
                value = json_value(from_fence.group(1) if from_fence else "")
            except ValueError:
                return ParsedAnswer(None, f"not JSON: {text[:60]!r}")
        problem = schema_problem(value, self.json_schema, "")
        return ParsedAnswer(None if problem else value, problem)


class GenerationTask(TaskBase):
    """Free text: a summary, a reply."""

    kind: Literal["generation"]

    def parse(self, text: str) -> ParsedAnswer:
        """The text itself; an empty one is a problem."""
        stripped = text.strip()
        return ParsedAnswer(stripped, None) if stripped else ParsedAnswer(None, "empty")


Task = Annotated[ClassificationTask | ExtractionTask | GenerationTask, Field(discriminator="kind")]


def has_truth(task: Task) -> bool:
    """Whether labelled queries of this task can be scored by one true answer."""
    return isinstance(task, ClassificationTask | ExtractionTask)


def json_value(text: str) -> JsonValue:
    """Read JSON as the standard defines it: NaN, Infinity and lone surrogates are not in it.

    Raises:
        ValueError: not such JSON.
    """
    try:
        value: JsonValue = json.loads(text.strip())
        canonical_json(value).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def canonical_json(value: object) -> str:
    """The one text of a JSON value: keys sorted, no escapes beyond need.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False)


def fold(text: str) -> str:
    """Case, surrounding space, quotes and punctuation do not distinguish labels."""
    return text.strip(_EDGES).casefold()


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


_CHECKED_KEYWORDS = frozenset(
    ["type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items"]
)
_REMARKS = frozenset(["title", "description", "default", "examples", "$schema", "$id", "$comment"])


def unread_keyword(schema: JsonValue) -> str | None:
    """The first keyword of a schema that `schema_problem` would pass over, or `None`."""
    if not isinstance(schema, dict):
        return None
    for keyword, inner in schema.items():
        if keyword not in _CHECKED_KEYWORDS | _REMARKS:
            return keyword
        parts: list[JsonValue] = []
        if keyword == "properties" and isinstance(inner, dict):
            parts = list(inner.values())
        elif keyword == "anyOf" and isinstance(inner, list):
            parts = inner
        elif keyword in ("items", "additionalProperties"):
            parts = [inner]
        for part in parts:
            unread = unread_keyword(part)
            if unread is not None:
                return unread
    return None


def schema_problem(value: object, schema: Mapping[str, JsonValue], where: str) -> str | None:
    """The first way in which `value` breaks `schema`, or `None`.

    Reads what structured-output APIs accept: type, enum, const, anyOf, properties, required,
    additionalProperties (false or a schema), items.
    """
    at = where or "answer"
    options = schema.get("anyOf")
    if isinstance(options, list):
        problems = [
            schema_problem(value, option, where) if isinstance(option, dict) else None
            for option in options
        ]
        if options and all(problems):
            return problems[0]
    if "const" in schema and canonical_json(value) != canonical_json(schema["const"]):
        return f"{at} is not {schema['const']!r}"
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if names and not any(_is_of(value, str(name)) for name in names):
        return f"{at} is not of type {' or '.join(str(n) for n in names)}"
    allowed = schema.get("enum")
    if isinstance(allowed, list) and not _among(value, allowed):
        return f"{at} is not one of {allowed}"
    if isinstance(value, dict):
        properties = schema.get("properties")
        known: dict[str, JsonValue] = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        for name in required if isinstance(required, list) else []:
            if name not in value:
                return f"{at} lacks {name!r}"
        for name, item in value.items():
            sub = known.get(name)
            if sub is None and name not in known:
                others = schema.get("additionalProperties")
                if others is False:
                    return f"{at} has the unknown key {name!r}"
                sub = others
            if isinstance(sub, dict):
                problem = schema_problem(item, sub, f"{where}.{name}" if where else str(name))
                if problem:
                    return problem
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, dict):
        for index, item in enumerate(value):
            problem = schema_problem(item, items, f"{at}[{index}]")
            if problem:
                return problem
    return None


def _among(value: object, allowed: list[JsonValue]) -> bool:
    """Whether a JSON value is one of a list; 1, 1.0 and true are three values."""
    return canonical_json(value) in [canonical_json(option) for option in allowed]


def _is_of(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, _JSON_TYPES.get(name, ()))
