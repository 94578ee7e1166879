"""Rows of token ids for the four kinds of text models, from texts or from tokenised items.

Accepts, by kind: classifier (text, label) or text; causal_lm text, or a chat with prompt and
completion; masked_lm text; seq2seq (source, target); and for all of them mappings with `input_ids`,
as tokenizers give them. Knows tokenizers; knows no model and no loss.

Legend: B batch, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.signals import from_class_probabilities
from stillhouse.train.batches import Item, Rows, encode_chats
from stillhouse.train.kinds import Kind
from stillhouse.train.readers import LABELS
from stillhouse.train.teachers import BELIEFS

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
_SPECIAL = "special_tokens_mask"
_PROBABILITIES: Final = "teacher_probabilities"
_KEYS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "classifier": (_IDS, _MASK, _TYPES, LABELS, BELIEFS, _PROBABILITIES),
    "causal_lm": (_IDS, _MASK, LABELS),
    "masked_lm": (_IDS, _MASK, _TYPES, _SPECIAL, LABELS),
    "seq2seq": (_IDS, _MASK, LABELS),
}
_FORMS: Final[Mapping[Kind, str]] = {
    "classifier": "a text, or (text, label)",
    "causal_lm": "a text, or an Example",
    "masked_lm": "a text",
    "seq2seq": "(source, target)",
}


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns what a user gives into rows.

    `labels` are the class names of a classifier, by number. Texts are cut to `max_tokens`;
    tokenised items that are longer are an error, since what would be lost is the user's to say.
    """

    kind: Kind
    tokenizer: PreTrainedTokenizerBase | None
    max_tokens: int | None
    labels: Mapping[str, int]

    def rows(self, data: Iterable[Any], where: str) -> Rows:
        """Rows of `data`, called `where` in errors.

        Raises:
            UserError: no rows, an item that cannot be read, an unknown key, a missing tokenizer, or
                rows without targets.
        """
        items = list(data)
        if not items:
            raise UserError(where, "is empty", action="give at least one row")
        if isinstance(items[0], Mapping):
            rows = [self._tokenised(item, f"{where} row {n}") for n, item in enumerate(items)]
        else:
            rows = self._texts(items, where)
        self._check_targets(rows, where)
        return Rows(rows)

    def _tokenised(self, item: Mapping[str, Any], where: str) -> Item:
        keys = _KEYS[self.kind]
        unknown = [key for key in item if key not in keys]
        if unknown or _IDS not in item:
            raise UserError(
                where,
                f"holds keys that a {self.kind} is not read by" if unknown else "has no input_ids",
                value=unknown or list(item),
                action=f"keys are {', '.join(keys)}",
            )
        found = {key: _plain(value) for key, value in item.items() if key != _SPECIAL}
        mask = found.pop(_MASK, None)
        if mask is not None and not all(mask):  # padding that the user made: the batch has its own
            aligned = [_IDS, _TYPES, *([LABELS] if self.kind in ("causal_lm", "masked_lm") else [])]
            for key in aligned:
                if key in found:
                    found[key] = [v for v, real in zip(found[key], mask, strict=True) if real]
        if self.max_tokens is not None and len(found[_IDS]) > self.max_tokens:
            raise UserError(
                where,
                f"has {len(found[_IDS]):,} tokens, and {self.max_tokens:,} are read",
                action="cut it when it is tokenised",
            )
        if self.kind == "causal_lm":
            found.setdefault(LABELS, list(found[_IDS]))
        return found

    def _texts(self, items: Sequence[Any], where: str) -> list[Item]:
        if self.tokenizer is None:
            raise UserError(
                where,
                f"holds {type(items[0]).__name__} items, and there is no tokenizer to read them",
                action="give tokenizer=, or mappings with input_ids",
            )
        if self.kind == "causal_lm" and hasattr(items[0], "completion"):
            return list(encode_chats(items, self.tokenizer, self.max_tokens or 2048).rows.items)
        pairs = [self._pair(item, f"{where} row {n}") for n, item in enumerate(items)]
        inputs = self._ids([text for text, _ in pairs])
        if self.kind == "seq2seq":
            written = self._ids([target for _, target in pairs], target=True)
            return [{_IDS: a, LABELS: b} for a, b in zip(inputs, written, strict=True)]
        rows: list[Item] = []
        for number, (ids, (_, label)) in enumerate(zip(inputs, pairs, strict=True)):
            row: dict[str, Any] = {_IDS: ids}
            if self.kind == "causal_lm":
                end = self.tokenizer.eos_token_id
                if end is not None and ids[-1:] != [end]:
                    ids = [*ids, end]
                if self.max_tokens is not None:
                    ids = ids[: self.max_tokens]
                row = {_IDS: ids, LABELS: list(ids)}
            elif label is not None:
                row[LABELS] = self._number(label, f"{where} row {number}")
            rows.append(row)
        return rows

    def _pair(self, item: Any, where: str) -> tuple[str, Any]:
        alone = isinstance(item, str) and self.kind != "seq2seq"
        if alone:
            return item, None
        paired = isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
        if paired and self.kind in ("classifier", "seq2seq"):
            if self.kind == "classifier" or isinstance(item[1], str):
                return item[0], item[1]
        raise UserError(
            where,
            f"a {self.kind} is not read from this",
            value=item,
            action=f"give {_FORMS[self.kind]}, or a mapping with input_ids",
        )

    def _ids(self, texts: Sequence[str], *, target: bool = False) -> list[list[int]]:
        assert self.tokenizer is not None
        how: dict[str, Any] = {"text_target" if target else "text": list(texts)}
        if self.max_tokens is not None:
            how |= {"truncation": True, "max_length": self.max_tokens}
        found: list[list[int]] = self.tokenizer(**how, padding=False)[_IDS]
        return found

    def _number(self, label: Any, where: str) -> int:
        if isinstance(label, str):
            if label not in self.labels:
                raise UserError(
                    where, "has a label that the student does not know", value=label,
                    action=f"labels are {', '.join(self.labels)}",
                )  # fmt: skip
            return self.labels[label]
        return int(label)

    def _check_targets(self, rows: Sequence[Item], where: str) -> None:
        """Every row has what it is there for."""
        if self.kind == "seq2seq" and not all(LABELS in row for row in rows):
            raise UserError(where, "has rows without labels", action="labels are the target's ids")
        if self.kind in ("classifier", "masked_lm") and len({LABELS in row for row in rows}) > 1:
            raise UserError(where, "has labels in some rows and none in others")
        if self.kind == "classifier" or LABELS not in rows[0]:
            return
        first = 1 if self.kind == "causal_lm" else 0  # what comes first is not foretold
        empty = [n for n, row in enumerate(rows) if _no_target(row[LABELS][first:])]
        if empty:
            raise UserError(
                where,
                f"{len(empty):,} of {len(rows):,} rows have no target, the first is row {empty[0]}",
                action="leave them out, or check labels (-100 is: no target)",
            )


class TokenCollator:
    """Pads rows on the right to the longest of them: ids and types with their filler, labels of
    tokens with `IGNORE_INDEX`; gives `attention_mask`. Beliefs become `teacher_logits` [B, C]."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        ids = [item[_IDS] for item in items]
        batch = {_IDS: _padded(ids, self._pad), _MASK: _padded([[1] * len(row) for row in ids], 0)}
        if _TYPES in items[0]:
            batch[_TYPES] = _padded([item[_TYPES] for item in items], 0)
        if LABELS in items[0]:
            labels = [item[LABELS] for item in items]
            one = isinstance(labels[0], int)
            batch[LABELS] = torch.tensor(labels) if one else _padded(labels, IGNORE_INDEX)
        if BELIEFS in items[0]:
            batch[BELIEFS] = torch.stack([torch.as_tensor(item[BELIEFS]) for item in items])
        elif _PROBABILITIES in items[0]:
            beliefs = [item[_PROBABILITIES] for item in items]
            batch[BELIEFS] = from_class_probabilities(beliefs).logits
        return batch


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence(
        [torch.tensor(row, dtype=torch.int64) for row in rows],
        batch_first=True,
        padding_value=value,
    )


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _no_target(labels: Sequence[int]) -> bool:
    return all(label == IGNORE_INDEX for label in labels)
