"""Examples for a tag student: the varying text in, a BIO tag for each of its tokens out.

The values of the teacher's answer are found in the text (`alignment`), and a token that shares a
character with one is of its field. Where a value is not found, nobody knows which of the other
tokens are its own: those are no targets in that example (as in learning from partial annotation,
Tsuboi et al. 2008). Knows examples and a tokenizer; no model and no loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.core.records import Example
from stillhouse.core.tagging import (
    OUTSIDE,
    Span,
    TagField,
    Value,
    real_tokens,
    spans_of,
    tag_fields,
    values_of,
)
from stillhouse.core.tasks import ExtractionTask
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.alignment import Places, Wanted, align
from stillhouse.train.batches import Encoded, Item, Rows


@dataclass(slots=True)
class Tagged:
    """What became of the values: how many there are of each field, how many of them tags say."""

    fields: Sequence[TagField]
    values: Counter[int] = field(default_factory=Counter)
    found: Counter[int] = field(default_factory=Counter)
    # Values that the text has with other case or white space: the student answers as it has them.
    respelt: Counter[int] = field(default_factory=Counter)
    empty: Counter[int] = field(default_factory=Counter)  # texts that the student does not say
    pieces: int = 0  # values that stand in several places
    left_out: int = 0  # examples without any target
    unreadable: int = 0  # of these, answers that are not of the schema

    @property
    def lost(self) -> int:
        """Values that no tags say."""
        return self.values.total() - self.found.total()

    def as_json(self) -> dict[str, object]:
        """For `train.json`."""
        names = [one.name for one in self.fields]
        return {
            "values": self.values.total(),
            "found": self.found.total(),
            "in_pieces": self.pieces,
            "respelt": self.respelt.total(),
            "empty": self.empty.total(),
            "examples_left_out": self.left_out,
            "unreadable": self.unreadable,
            "said": self.said(),
            "fields": {
                name: {"values": self.values[number], "found": self.found[number]}
                for number, name in enumerate(names)
            },
        }

    def said(self) -> str | None:
        """What a person must know of it, or `None`."""
        parts = []
        values = f"of {self.values.total():,} values of the teacher's answers"
        if self.lost:
            parts.append(
                f"{self.lost:,} {values} are not in their texts and are not learned "
                f"({self._most(self.values - self.found)})"
            )
        if self.respelt:
            parts.append(
                f"{self.respelt.total():,} {values} have other case or white space than their "
                f"texts, which the student copies ({self._most(self.respelt)})"
            )
        if self.empty:
            parts.append(
                f"{self.empty.total():,} fields of the teacher's answers are empty texts, and the "
                f"student leaves them out ({self._most(self.empty)}); one that is required and may "
                "not be null it writes empty"
            )
        if self.left_out:
            parts.append(f"{self.left_out:,} examples without anything to learn are left out")
        return "; ".join(parts) or None

    def _most(self, counted: Counter[int]) -> str:
        number, count = max(counted.items(), key=lambda one: one[1])
        return f"most of {self.fields[number].name}: {count:,}"


def encode_tags(
    examples: Sequence[Example],
    task: ExtractionTask,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> Encoded:
    """Token ids and tags; see the module. Texts of more tokens are cut at their end.

    The facts are those of `Tagged`.

    Raises:
        DataError: no example has a target.
    """
    fields = tag_fields(task.json_schema)
    texts = [task.input_text(example.to_query()) for example in examples]
    whole = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=max_tokens,
        padding=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    told = Tagged(fields)
    items: list[Item] = []
    for number, example in enumerate(examples):
        ids = encoded["input_ids"][number]
        tokens = Tokens(encoded["offset_mapping"][number], encoded["special_tokens_mask"][number])
        answer = task.parse(example.completion).value
        labels = None
        if isinstance(answer, dict):
            labels = _labels(texts[number], tokens, answer, told)
        else:
            told.unreadable += 1
        if labels is None:
            told.left_out += 1
        else:
            items.append({"input_ids": ids, "labels": labels})
    if not items:
        raise DataError(
            "student.head",
            f"of {len(examples):,} answers to train on or hold out none says anything of its text",
            value="tags",
            action="give more traffic, or use head: text, which writes what it was not given",
        )
    cut = sum(len(a) > len(b) for a, b in zip(whole, encoded["input_ids"], strict=True))
    return Encoded(Rows(items), cut, told.as_json(), told.said())


class Tokens:
    """Where the tokens of a text stand; `real` are those that stand anywhere."""

    def __init__(self, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> None:
        self.offsets = [(int(start), int(end)) for start, end in offsets]
        self.real = real_tokens(self.offsets, special)

    def tags(self, field_number: int, places: Places) -> dict[int, int]:
        """Tags of the tokens that share a character with the places of a field, by position."""
        found: dict[int, int] = {}
        for place in places:
            first = True
            for position, (start, end) in enumerate(self.offsets):
                if self.real[position] and start < place.end and place.start < end:
                    found[position] = 2 * field_number + (1 if first else 2)
                    first = False
        return found


def _labels(text: str, tokens: Tokens, answer: Mapping[str, Any], told: Tagged) -> list[int] | None:
    """A tag for each token, `IGNORE_INDEX` where none is known; `None` where none is at all."""
    fields = told.fields
    told.empty.update(n for n, one in enumerate(fields) if _dropped(one, answer.get(one.name)))
    values = values_of(fields, answer)
    places = align(text, [Wanted(one.text, fields[one.field].many) for one in values])
    tags: dict[int, int] = {}
    lost = False
    for value, found in zip(values, places, strict=True):
        told.values[value.field] += 1
        new = {} if found is None else tokens.tags(value.field, found)
        said = _said(value, new, tokens, text)
        if found is None or new.keys() & tags.keys() or not _alike(said, value.text):
            lost = True
            continue
        told.found[value.field] += 1
        if said.strip() != value.text.strip():
            told.respelt[value.field] += 1
        told.pieces += len(found) > 1
        tags |= new
    other = IGNORE_INDEX if lost else OUTSIDE
    labels = [
        tags.get(position, other) if real else IGNORE_INDEX
        for position, real in enumerate(tokens.real)
    ]
    return labels if any(label != IGNORE_INDEX for label in labels) else None


def _dropped(field: TagField, given: object) -> bool:
    """Whether an answer says a text that is empty, where a student leaves the field out."""
    written_empty = field.required and not field.nullable
    return isinstance(given, str) and not given.strip() and not written_empty


def _said(value: Value, tags: Mapping[int, int], tokens: Tokens, text: str) -> str:
    """What these tags alone answer: a token may reach beyond the value, or be cut off."""
    order = sorted(tags)
    offsets = [tokens.offsets[position] for position in order]
    numbers = [tags[position] for position in order]
    spans: Sequence[Span] = spans_of(numbers, offsets, value.field + 1)[value.field]
    return " ".join(text[one.start : one.end] for one in spans)


def _alike(said: str, value: str) -> bool:
    """Whether two texts are the same, white space and case aside."""
    return said.casefold().split() == value.casefold().split()
