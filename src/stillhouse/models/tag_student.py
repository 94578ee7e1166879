"""A trained tag student: a token classifier that answers an extraction with JSON.

It reads `task.input_text(query)`, tags its tokens, and writes what lies under the tags of each
field. How sure it is stands in the answer's log-probabilities, one a token that was read. Knows
model folders and tasks; does not know how the student was trained.

Shapes: B batch, T tokens, C tags.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Query, TokenLogprob
from stillhouse.core.tagging import (
    OUTSIDE,
    inside_word,
    spans_of,
    tag_fields,
    tag_names,
    tagging_problem,
    written,
)
from stillhouse.core.tasks import ExtractionTask
from stillhouse.models.batching import BatchingCompleter, Call
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.completer import ModelInfo
from stillhouse.models.loading import Loaded
from stillhouse.models.tag_path import Floats, best_path

ROUND: Final = 6  # decimals of log-probabilities on the wire


def words_go_on(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token goes on with the word of the one before it, or with its last character,
    of which byte-level tokens have a part each."""
    ends = [0, *(end for _, end in offsets)]
    return [
        start < end or (start == end and inside_word(text, start))
        for (start, _), end in zip(offsets, ends, strict=False)
    ]


class TagsRead(NamedTuple):
    """What a text came to: `log_p` [T, C] (nats) of the tokens that stand in it, where they stand,
    and how many tokens there were with the special ones, after cutting."""

    log_p: Floats
    offsets: list[tuple[int, int]]
    tokens: int


class Tagger:
    """Reads texts with a token classifier of transformers, as it was trained to.

    Raises:
        UserError: its tokenizer cannot say where a token stands.
    """

    def __init__(self, loaded: Loaded) -> None:
        if not loaded.tokenizer.is_fast:
            raise UserError(
                loaded.name,
                "its tokenizer does not say where in the text a token stands",
                action="give a student with a tokenizer.json",
            )
        cuts = ClassifierReader(loaded)  # what a classifier is given, and how much of a text
        self.longest, self.classes, self._takes = cuts.longest, cuts.classes, cuts.takes
        self._loaded = loaded
        # Of its own: a fast tokenizer must not be used by two threads at a time.
        self._measuring = copy.deepcopy(loaded.tokenizer)

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return len(self._measuring(text, verbose=False)["input_ids"])

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> list[TagsRead]:
        """One forward pass; texts longer than `longest` tokens are cut at their end."""
        encoded = self._loaded.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        model = self._loaded.model
        inputs = {name: encoded[name].to(model.device) for name in self._takes if name in encoded}
        log_p = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()  # [B, T, C]
        offsets = encoded["offset_mapping"].numpy()  # [B, T, 2]
        mask = encoded["attention_mask"].numpy()
        real = (encoded["special_tokens_mask"].numpy() == 0) & (mask == 1)
        real &= offsets[..., 0] < offsets[..., 1]
        return [
            TagsRead(
                log_p[row][real[row]],
                [(int(start), int(end)) for start, end in offsets[row][real[row]]],
                int(mask[row].sum()),
            )
            for row in range(len(texts))
        ]


class TagStudent(BatchingCompleter):
    """Answers with the JSON of the task's schema. Nothing is drawn: `n` samples are one answer.

    Raises:
        UserError: `id2label` of the model is not the tags of the task's fields, in their order, or
            the schema is none that tags can fill.
    """

    def __init__(self, loaded: Loaded, task: ExtractionTask, batch_size: int) -> None:
        super().__init__(batch_size)
        problem = tagging_problem(task.json_schema)
        if problem is not None:
            raise UserError(
                "task.json_schema",
                f"is none of a tag student: {problem}",
                action="use its own task",
            )
        self._task, self._info = task, loaded.info("tags")
        self._fields = tag_fields(task.json_schema)
        self._names = tag_names(self._fields)
        self._reader = Tagger(loaded)
        if self._reader.classes != self._names:
            raise UserError(
                f"{loaded.name} id2label",
                f"holds {list(self._reader.classes)}, the task's tags are {list(self._names)}",
                action="train the student again for this task",
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
        tags = best_path(found.log_p, words_go_on(text, found.offsets))
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
