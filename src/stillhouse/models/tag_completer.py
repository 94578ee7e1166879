"""What every token classifier that answers with JSON does the same, whatever runs it.

A reader cuts texts and gives each token's log-probabilities over the tags; torch and onnxruntime
have one each. What lies under the tags of a field is its value, and how sure the student is stands
in the answer's log-probabilities, one a token that was read. Knows no weights and imports no
runtime.

Shapes: T tokens, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Query, TokenLogprob
from stillhouse.core.tagging import (
    OUTSIDE,
    real_tokens,
    spans_of,
    tag_fields,
    tag_names,
    tagging_problem,
    written,
)
from stillhouse.core.tasks import ExtractionTask, Task
from stillhouse.core.words import RULES, WORDS, inside_word
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.completer import ModelInfo
from stillhouse.models.tag_path import Floats, best_path

ROUND: Final = 6  # decimals of log-probabilities on the wire


class TagsRead(NamedTuple):
    """What a text came to: `log_p` [T, C] (nats) of the tokens that stand in it, where they stand,
    and how many tokens there were with the special ones, after cutting."""

    log_p: Floats
    offsets: list[tuple[int, int]]
    tokens: int


def extraction(task: Task) -> ExtractionTask:
    """The task of a tag student.

    Raises:
        UserError: it is of another kind.
    """
    if not isinstance(task, ExtractionTask):
        raise UserError(
            "student.head",
            "tags needs an extraction task",
            value=task.kind,
            action="use the head that the student was trained with",
        )
    return task


class TagReader(Protocol):
    """Reads texts. `classes` are its tags, in the order of its outputs; `words` is the rule by
    which it was taught where words are (`core.words`)."""

    classes: tuple[str, ...]
    words: int

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""

    def read(self, texts: Sequence[str]) -> Sequence[TagsRead]:
        """Each text, cut where the student was trained to cut it."""


def tags_read(
    log_p: Floats, offsets: Sequence[tuple[int, int]], special: Sequence[int]
) -> TagsRead:
    """What is kept of a text's tokens without padding.

    Args:
        log_p: [tokens, C] nats.
        offsets: where each stands in the text.
        special: 1 where the tokenizer added it.
    """
    kept = real_tokens(offsets, special)
    places = [
        (int(start), int(end)) for (start, end), real in zip(offsets, kept, strict=True) if real
    ]
    return TagsRead(log_p[np.asarray(kept, dtype=bool)], places, len(kept))


def words_go_on(text: str, offsets: Sequence[tuple[int, int]], words: int = WORDS) -> list[bool]:
    """Whether each token goes on with the word of the one before it, or with its last character,
    of which byte-level tokens have a part each. `words` is the rule of `core.words`."""
    ends = [0, *(end for _, end in offsets)]
    return [
        start < end or (start == end and inside_word(text, start, words))
        for (start, _), end in zip(offsets, ends, strict=False)
    ]


class TagCompleter(BatchingCompleter):
    """Answers `task.input_text(query)` with the JSON of the task's schema. Nothing is drawn: `n`
    samples are one answer.

    Args:
        held: what holds the reader's tags, for the message where they are not the task's.

    Raises:
        UserError: the tags are not those of the task's fields, in their order; the schema is none
            that tags can fill; or words were told apart by a rule that is not known here.
    """

    def __init__(
        self, reader: TagReader, task: ExtractionTask, info: ModelInfo, batch_size: int, held: str
    ) -> None:
        super().__init__(batch_size)
        problem = tagging_problem(task.json_schema)
        if problem is not None:
            raise UserError(
                "task.json_schema",
                f"is none of a tag student: {problem}",
                action="use its own task",
            )
        self._reader, self._task, self._info = reader, task, info
        self._fields = tag_fields(task.json_schema)
        self._names = tag_names(self._fields)
        if reader.classes != self._names:
            raise UserError(
                held,
                f"holds {list(reader.classes)}, the task's tags are {list(self._names)}",
                action="give a student of this task",
            )
        if reader.words not in RULES:
            raise UserError(
                held.partition(" ")[0],
                "tells words apart by a rule that this version does not know",
                value=reader.words,
                action="update stillhouse",
            )

    @property
    def info(self) -> ModelInfo:
        """A local model that gives log-probabilities of tags."""
        return self._info

    def length_of(self, query: Query) -> int:
        """Tokens of the varying text."""
        return self._reader.measure(self._task.input_text(query))

    def run_batch(self, calls: Sequence[Call]) -> list[Sequence[Completion]]:
        """One reading."""
        texts = [self._task.input_text(call.query) for call in calls]
        found = self._reader.read(texts)
        return [self._answers(*one) for one in zip(calls, texts, found, strict=True)]

    def _answers(self, call: Call, text: str, found: TagsRead) -> Sequence[Completion]:
        tags = best_path(found.log_p, words_go_on(text, found.offsets, self._reader.words))
        spans = spans_of(tags.tolist(), found.offsets, len(self._fields))
        most = call.sampling.logprobs
        said = Completion(
            query_id=call.query.id,
            text=written(self._fields, text, spans),
            model=self._info.name,
            revision=self._info.revision,
            prompt_tokens=found.tokens,
            completion_tokens=max(1, int((tags != OUTSIDE).sum())),
            logprobs=self._sureness(found.log_p, tags.tolist(), most) if most else None,
        )
        return [
            said if sample == 0 else said.model_copy(update={"sample": sample})
            for sample in range(call.sampling.n)
        ]

    def _sureness(self, log_p: Floats, tags: Sequence[int], most: int) -> tuple[TokenLogprob, ...]:
        """Of each token read, its tag and up to `most` of the likeliest ones."""
        ranked = np.argsort(-log_p, axis=-1, kind="stable")[:, :most].tolist()
        rows = log_p.tolist()
        return tuple(
            TokenLogprob(
                token=self._names[tag],
                logprob=round(row[tag], ROUND),
                top=tuple((self._names[other], round(row[other], ROUND)) for other in best),
            )
            for tag, row, best in zip(tags, rows, ranked, strict=True)
        )
