"""The records that stages exchange, and their form on disk (DESIGN section 3).

Frozen and strict: an unknown key or a wrong type is an error where the record enters, never later.
Knows nothing about where records come from or what is done with them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
)

CLUSTER: Final = "cluster"
LABELLED: Final = "labelled:"  # how the ids of labelled queries in the traffic begin
# How the ids begin of queries that a model wrote, of those it was asked to write them by, and of
# those that a judge is asked.
SYNTHETIC: Final = "synthetic:"
EXPANDING: Final = "expand:"
JUDGING: Final = "judge:"

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "refusal", "content_filter", "tool_calls"]


class Record(BaseModel):
    """Base of all records: immutable, no unknown keys.

    A log-probability may be minus infinity; JSON has no such number, so it is written as a string
    and read back as the number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_json(self) -> str:
        """One JSONL line without the newline; fields that are `None` are left out."""
        return self.model_dump_json(exclude_none=True)


class Message(Record):
    """One turn of a chat."""

    role: Role
    content: str


class Query(Record):
    """One request of the user's traffic: a chat that ends where a model should answer."""

    id: str = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    task: str = ""
    user: str | None = None
    at: str | None = None
    metadata: Mapping[str, JsonValue] = Field(default_factory=dict)

    @field_validator("messages")
    @classmethod
    def _ends_before_an_answer(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if messages[-1].role == "assistant":
            raise ValueError("the last message must not be the assistant's: the model answers it")
        return messages

    @property
    def last_user_text(self) -> str:
        """Content of the last message."""
        return self.messages[-1].content

    @property
    def synthetic(self) -> bool:
        """Whether a model wrote it."""
        return self.id.startswith(SYNTHETIC)

    def in_cluster(self, label: int) -> Query:
        """The query with its cluster in its metadata; a `cluster` of the user's is kept aside."""
        metadata: dict[str, JsonValue] = dict(self.metadata)
        if CLUSTER in metadata:
            metadata[f"traffic_{CLUSTER}"] = metadata[CLUSTER]
        metadata[CLUSTER] = label
        return self.model_copy(update={"metadata": metadata})


class LabelledQuery(Query):
    """A query with its true answer, from the user's labelled or golden set."""

    reference: str = Field(validation_alias=AliasChoices("reference", "label"))

    def as_traffic(self) -> Query:
        """The query without its answer, as it joins the traffic; its id says where it is from."""
        return Query(
            id=f"{LABELLED}{self.id}",
            messages=self.messages,
            task=self.task,
            user=self.user,
            at=self.at,
            metadata=self.metadata,
        )


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: models emit such, and UTF-8 cannot hold them.

    The quality check of the dataset then rejects the answer by name; a paid answer is never lost.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


GeneratedText = Annotated[str, AfterValidator(well_formed)]


class TokenLogprob(Record):
    """One generated token with its log-probability and the alternatives, in nats."""

    token: GeneratedText
    logprob: float
    top: tuple[tuple[GeneratedText, float], ...] = ()


class Completion(Record):
    """What one model said to one query.

    `label_logprobs` is the belief over the task's labels of a model whose likelihoods can be read
    (nats, normalised over the labels). `latency_ms` and `cost_usd` are `None` when not measured.
    """

    query_id: str
    text: GeneratedText
    model: str
    revision: str
    sample: int = 0
    finish_reason: FinishReason = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    label_logprobs: dict[str, float] | None = None


class Example(Record):
    """An accepted (prompt, completion). On disk, `messages` is the chat with the answer last, so
    that TRL, `datasets` and fine-tuning APIs read the file as it stands.

    `label_probabilities` follows the order of the task's labels and sums to one.
    `group` names the near-duplicate cluster: a group is never split between train and held-out.
    `readmitted` names the filter that had rejected it, where `dataset.floor` brought it back.

    Provenance: `id` is the query's, `prompt_hash` the `message_key` of the prompt, `filters` the
    checks it passed, in order, and `user` a pseudonym (`core.lineage.pseudonym`), never the name.
    """

    id: str
    messages: tuple[Message, ...] = Field(min_length=2)
    task: str
    group: str
    teacher: str
    teacher_revision: str
    label: str | None = None
    label_probabilities: tuple[float, ...] | None = None
    reference: str | None = None
    readmitted: str | None = None
    prompt_hash: str | None = None
    filters: tuple[str, ...] = ()
    user: str | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The chat without the answer."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The answer."""
        return self.messages[-1].content

    def to_query(self) -> Query:
        """The query this example answers."""
        return Query(id=self.id, messages=self.prompt, task=self.task)


class Rejection(Record):
    """A completion that was not kept, with its reason. Never thrown away.

    `reason` is a short stable word (`empty`, `label`, `length`, `refusal`, ...); `detail` is for
    people. `completion` is `None` where the query itself was dropped (a duplicate, contamination);
    `user` is then whose it was.
    """

    query_id: str
    reason: str
    detail: str
    messages: tuple[Message, ...] = ()
    completion: Completion | None = None
    user: str | None = None


def message_key(messages: Sequence[Message]) -> str:
    """Content hash of a chat: 32 hex digits, equal for equal roles and contents."""
    return key_of_turns([(message.role, message.content) for message in messages])


def key_of_turns(turns: Sequence[tuple[object, object]]) -> str:
    """`message_key` of (role, content) pairs as JSON holds them."""
    payload = json.dumps(turns, ensure_ascii=False)
    return hashlib.sha256(payload.encode("utf-8", "surrogatepass")).hexdigest()[:32]
