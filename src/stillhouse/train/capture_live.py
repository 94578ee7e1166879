"""Signals of a local teacher that reads the accepted answers: one forward pass a batch.

A row depends on its example, the seed and the teacher: a sampled row's random numbers come from the
example itself, so the cache is the same however examples are batched, sharded or resumed, up to the
last bits of the teacher's arithmetic. Batches are formed within a shard, which fixes those as well.
Knows models and tokenised rows; no file.

Legend: B batch, T tokens, N targets of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Ticker
from stillhouse.models.drawing import uniforms
from stillhouse.models.signal_codec import Arrays, encode_belief, encode_hidden, joined, split
from stillhouse.models.signal_layout import Layout
from stillhouse.models.signal_writer import Named, digest
from stillhouse.train.batches import Collator, Rows
from stillhouse.train.finite import unusable
from stillhouse.train.outputs import CausalReader, Needs

CHUNK: Final = 128  # targets whose whole vocabulary is held at a time


class Chunk(NamedTuple):
    """Some consecutive targets of a batch."""

    hidden: Tensor | None  # [n, H], where the head is one linear layer
    logits: Tensor  # [n, V]


@dataclass(frozen=True, slots=True)
class LiveBeliefs:
    """What a teacher says of tokenised examples.

    Args:
        model: a causal language model in evaluation mode.
        rows: the examples, as its student reads them.
        named: the same examples' digests.
        layout: how signals are stored.
        pad_token_id: pads batches, on the right.
        batch_size: examples a forward pass.
        seed: of draws.
    """

    model: Any
    rows: Rows
    named: Sequence[Named]
    layout: Layout
    pad_token_id: int
    batch_size: int
    seed: int

    def arrays(self, numbers: Sequence[int], ticker: Ticker) -> list[Arrays]:
        """Stored arrays of some examples, in their order."""
        found: dict[int, Arrays] = {}
        for members in self._batches(numbers):
            counts = [self.named[number].rows for number in members]
            encoded = self.encoded(members)
            found.update(zip(members, split(encoded, counts), strict=True))
            ticker.advance(sum(counts))
        return [found[number] for number in numbers]

    def _batches(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Examples of like length together."""
        order = sorted(numbers, key=lambda n: (len(self.rows[n]["input_ids"]), n))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def encoded(self, members: Sequence[int]) -> dict[str, Tensor]:
        """Stored arrays of a batch of examples, one after the other."""
        layout, parts = self.layout, []
        drawn = self._numbers(members) if layout.format == "sampled" else None
        at = 0
        for chunk in self.chunks(members):
            if bool(unusable(chunk.logits).any()):
                raise UserError(
                    "teacher",
                    "its logits are not numbers for some of the examples",
                    action="capture in float32 (train.precision: fp32), or check its weights",
                )
            if layout.format == "hidden":
                assert chunk.hidden is not None, "the plan looked for a head"
                parts.append(encode_hidden(layout, chunk.hidden))
                continue
            size = len(chunk.logits)
            numbers = None if drawn is None else drawn[at : at + size]
            parts.append(encode_belief(layout, chunk.logits[:, : layout.width], numbers))
            at += size
        return joined(parts)

    @torch.no_grad()
    def chunks(self, members: Sequence[int]) -> Iterator[Chunk]:
        """The teacher's view of a batch of examples, a few targets at a time, row-major."""
        batch = Collator(self.pad_token_id)([self.rows[number] for number in members])
        device = self.model.device
        batch = {name: value.to(device) for name, value in batch.items()}
        outputs = CausalReader().read(self.model, batch, Needs(last_hidden=True))
        if outputs.last_hidden is None or outputs.head is None:
            assert outputs.logits is not None
            for logits in torch.split(outputs.logits, CHUNK):
                yield Chunk(None, logits)
            return
        for hidden in torch.split(outputs.last_hidden, CHUNK):
            yield Chunk(hidden, outputs.head.logits(hidden))

    def _numbers(self, members: Sequence[int]) -> Tensor:
        """Uniform numbers [N, S], each example's its own."""
        layout = self.layout
        return torch.cat(
            [
                uniforms(_seed(self.seed, one), one.rows, layout.samples, layout.draws)
                for one in (self.named[number] for number in members)
            ]
        )


def _seed(seed: int, one: Named) -> int:
    return int.from_bytes(digest(seed.to_bytes(8, "little"), one.example, one.tokens)[:8], "little")
