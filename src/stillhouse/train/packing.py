"""Several short examples in one row: no padding, and no example sees another.

Rows are filled by best fit, longest first, up to the longest example of the micro-batch. Each
example keeps positions of its own, from 0, which is how transformers knows where one ends and the
next begins and masks one from the other; `check_packing` compares packed with unpacked rows on the
model at hand, since not every architecture does. Knows items and models; knows no loss.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.signals import accepts
from stillhouse.train.batches import Collator, Item, Rows
from stillhouse.train.outputs import EXAMPLES, POSITIONS

TOLERANCE: Final = 1e-3  # of logits, in float32


def packed_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the examples of each row: best fit, longest first.

    Args:
        lengths: tokens of each example, at most `capacity`.
        capacity: most tokens of a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[number]
        fits = [(left, row) for row, left in enumerate(room) if left >= need]
        if fits:
            _, row = min(fits)
            rows[row].append(number)
            room[row] -= need
        else:
            rows.append([number])
            room.append(capacity - need)
    return rows


@dataclass(frozen=True, slots=True)
class PackingCollator:
    """As `Collator`, with several examples to a row.

    Gives `position_ids` [B, T], from 0 in each example, and `examples`, their number. All that
    belongs to targets or examples is in the order of the rows, left to right.
    """

    pad_token_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        lengths = [len(item["input_ids"]) for item in items]
        rows = packed_rows(lengths, max(lengths))
        ordered = [items[number] for row in rows for number in row]
        batch = Collator(self.pad_token_id)(ordered)  # what belongs to targets, in their order
        packed: list[dict[str, Any]] = []
        for row in rows:
            labels = [label for number in row for label in _labels(items[number])]
            packed.append(
                {"input_ids": [t for n in row for t in items[n]["input_ids"]], "labels": labels}
            )
        batch |= Collator(self.pad_token_id)(packed)
        places = torch.zeros_like(batch["input_ids"])
        for place, row in zip(places, rows, strict=True):
            own = torch.cat([torch.arange(lengths[number]) for number in row])
            place[: len(own)] = own
        return {**batch, POSITIONS: places, EXAMPLES: torch.tensor(len(items))}


def packed_padding_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """`batches.padding_share`, of packed micro-batches."""
    laid = real = 0
    for start in range(0, len(order), batch_size):
        own = [lengths[i] for i in order[start : start + batch_size]]
        laid += len(packed_rows(own, max(own))) * max(own)
        real += sum(own)
    return 1.0 - real / laid


def _labels(item: Item) -> list[int]:
    """An example's labels; its first token is never a target, least of all of the one before."""
    labels: list[int] = item["labels"]
    return [IGNORE_INDEX, *labels[1:]]


@torch.no_grad()
def check_packing(model: Any, rows: Rows, pad_token_id: int) -> None:
    """Compare packed with unpacked logits of a few examples.

    Raises:
        UserError: this architecture lets packed examples see one another.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows.items[i]["input_ids"]))
    chosen = [rows.items[i] for i in (*order[:3], order[-1])]
    batch = PackingCollator(pad_token_id)(chosen)
    was_training = model.training
    model.eval()
    try:
        fits = "position_ids" in accepts(model)
        if fits:
            got = model(
                input_ids=batch["input_ids"].to(model.device),
                position_ids=batch[POSITIONS].to(model.device),
                use_cache=False,
            ).logits
            lengths = [len(item["input_ids"]) for item in chosen]
            for row, numbers in enumerate(packed_rows(lengths, max(lengths))):
                start = 0
                for number in numbers:
                    alone = torch.tensor([chosen[number]["input_ids"]], device=model.device)
                    wanted = model(input_ids=alone, use_cache=False).logits[0]
                    part = got[row, start : start + lengths[number]]
                    fits = fits and torch.allclose(part, wanted, rtol=TOLERANCE, atol=TOLERANCE)
                    start += lengths[number]
    finally:
        model.train(was_training)
    if not fits:
        raise UserError(
            "train.packing",
            f"examples in one row of a {type(model).__name__} see one another",
            action="set packing: false",
        )
