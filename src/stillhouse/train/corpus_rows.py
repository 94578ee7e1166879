"""Rows of a corpus: texts as token blocks to train on, and one by one to score.

A causal model is trained on blocks of the texts joined end to end, each text closed by the end
token (as GPT and Llama are), and scored text by text, so that no score depends on what stood
before. A masked one reads each text alone, long ones in pieces. Knows tokenizers and texts; knows
no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from stillhouse.core.corpus import Passage
from stillhouse.core.errors import UserError
from stillhouse.train.batches import Item, Rows
from stillhouse.train.masking import MaskedRows, Masking


class Scored(NamedTuple):
    """Rows, and the number of the text that each is a piece of."""

    rows: Rows
    of: Sequence[int]


class Cutter:
    """Cuts texts for one kind of model.

    Args:
        tokenizer: the teacher's, and so the student's.
        kind: causal_lm or masked_lm.
        max_tokens: of a row, with its special tokens.
        vocabulary: rows of the model's table: random tokens in place of hidden ones are below.
        seed: of the masks.
        mask_share: of the tokens that are hidden.

    Raises:
        UserError: the tokenizer has no mask token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        kind: str,
        max_tokens: int,
        *,
        vocabulary: int,
        seed: int,
        mask_share: float,
    ) -> None:
        self._tokenizer, self._kind, self._max = tokenizer, kind, max_tokens
        self._masking: Masking | None = None
        if kind == "masked_lm":
            mask: Any = tokenizer.mask_token_id
            if mask is None:
                raise UserError(
                    "teacher.model",
                    "has a tokenizer without a mask token",
                    action="use objective.kind: causal_lm, or a BERT-like teacher",
                )
            self._masking = Masking(
                mask_token_id=int(mask),
                vocabulary=min(vocabulary, len(tokenizer)),
                never=frozenset(tokenizer.all_special_ids),
                seed=seed,
                share=mask_share,
            )

    def training(self, passages: Sequence[Passage]) -> Rows:
        """Rows to train on.

        Raises:
            UserError: the texts give no row.
        """
        if self._masking is not None:
            return self._masked(passages, held_out=False).rows
        joined = [token for ids in self._documents(passages) for token in ids]
        blocks = [joined[i : i + self._max] for i in range(0, len(joined), self._max)]
        items = [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]
        if not items:
            raise UserError("corpus.path", "gives no row to train on", action="give more text")
        return Rows(items)

    def scoring(self, passages: Sequence[Passage]) -> Scored:
        """Rows to watch or to score by, each of one text. Masks are the same each time.

        Raises:
            UserError: the texts give no row.
        """
        if self._masking is not None:
            return self._masked(passages, held_out=True)
        items: list[Item] = []
        of: list[int] = []
        for number, ids in enumerate(self._documents(passages)):
            for start in range(0, len(ids), self._max):
                piece = ids[start : start + self._max]
                if len(piece) > 1:
                    items.append({"input_ids": piece, "labels": piece})
                    of.append(number)
        if not items:
            raise UserError("corpus.path", "gives no row to score", action="give more text")
        return Scored(Rows(items), of)

    def _documents(self, passages: Sequence[Passage]) -> list[list[int]]:
        end = self._tokenizer.eos_token_id
        ids: list[list[int]] = self._tokenizer(
            [passage.text for passage in passages], padding=False, truncation=False, verbose=False
        )["input_ids"]
        if not isinstance(end, int):
            return ids
        return [row if row[-1:] == [end] else [*row, end] for row in ids]

    def _masked(self, passages: Sequence[Passage], *, held_out: bool) -> Scored:
        assert self._masking is not None
        before, after = frame_of(self._tokenizer)
        room = self._max - len(before) - len(after)
        bare: list[list[int]] = self._tokenizer(
            [passage.text for passage in passages],
            add_special_tokens=False,
            padding=False,
            truncation=False,
            verbose=False,
        )["input_ids"]
        never = self._masking.never
        items: list[Item] = []
        of: list[int] = []
        for number, ids in enumerate(bare):
            for start in range(0, len(ids), room):
                piece = ids[start : start + room]
                if any(token not in never for token in piece):
                    items.append({"input_ids": [*before, *piece, *after]})
                    of.append(number)
        if not items:
            raise UserError(
                "corpus.path", "gives no row with a token to hide", action="check the tokenizer"
            )
        return Scored(MaskedRows(items, self._masking, held_out=held_out), of)


class Frame(NamedTuple):
    """Special tokens around a text."""

    before: Sequence[int]
    after: Sequence[int]


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What a tokenizer puts before and after a text."""
    whole: list[int] = tokenizer("a")["input_ids"]
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return Frame(whole[:start], whole[start + len(bare) :])
    return Frame([], [])
