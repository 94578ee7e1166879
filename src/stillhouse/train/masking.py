"""Rows for masked language models: which tokens are hidden, drawn anew each epoch from a seed.

What is hidden in a row is a function of seed, epoch and row number alone. So it is the same for
student and teacher, for any micro-batch size and padding, and after a resume. Knows token ids;
knows no tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.batches import Item, Rows, without_targets

_TRAIN, _HELD_OUT = 0, 1


@dataclass(frozen=True, slots=True)
class Masking:
    """How tokens are hidden: `share` of them become targets; of these `masked` are replaced by the
    mask token, `random` by any token, and the rest left as they are (BERT: 15%; 80, 10, 10)."""

    mask_token_id: int
    vocabulary: int  # random tokens are below this
    never: frozenset[int]  # special tokens: neither hidden nor put in place of others
    seed: int
    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1


class MaskedRows(Rows):
    """Token rows with some tokens hidden; `labels` hold the hidden ones.

    Every row has at least one target, so short texts count too. Held-out rows keep the same
    masks in every look.
    """

    def __init__(self, items: Sequence[Item], masking: Masking, *, held_out: bool = False) -> None:
        super().__init__(items)
        self._masking = masking
        self._stream = _HELD_OUT if held_out else _TRAIN
        self._epoch = 0
        ordinary = np.ones(masking.vocabulary, dtype=bool)
        ordinary[sorted(masking.never)] = False
        self._ordinary = np.flatnonzero(ordinary)
        self._can_hide = ordinary

    def set_epoch(self, epoch: int) -> None:
        """New masks, but for held-out rows."""
        if self._stream == _TRAIN:
            self._epoch = epoch

    @property
    def highest(self) -> int:
        """The highest id that may be put in place of a token."""
        return max(self._masking.mask_token_id, int(self._ordinary.max(initial=0)))

    def hideable(self, index: int) -> int:
        """How many tokens of a row may be hidden."""
        return int(self._can_hide[np.asarray(self.items[index]["input_ids"])].sum())

    def __getitem__(self, index: int) -> Item:
        if index < 0:
            return without_targets(self[-1 - index])
        item, masking = self.items[index], self._masking
        ids = np.asarray(item["input_ids"], dtype=np.int64)
        draw = np.random.default_rng((masking.seed, self._stream, self._epoch, index))
        places = np.flatnonzero(self._can_hide[ids])
        chance, what = draw.random(len(places)), draw.random(len(places))
        hidden = chance < masking.share
        if not hidden.any():
            hidden[chance.argmin()] = True
        labels = np.full_like(ids, IGNORE_INDEX)
        labels[places[hidden]] = ids[places[hidden]]
        read = ids.copy()
        read[places[hidden & (what < masking.masked)]] = masking.mask_token_id
        changed = places[
            hidden & (what >= masking.masked) & (what < masking.masked + masking.random)
        ]
        read[changed] = draw.choice(self._ordinary, len(changed))
        return {**item, "input_ids": read.tolist(), "labels": labels.tolist()}
