"""The teacher out of a cache: signals of a batch, with no teacher in memory.

Each tokenised example carries the number of its rows in the cache; a batch reads those rows alone,
in its own order, which is the order of its targets. Nothing depends on who else trains: a rank
reads what is in its batch. Knows caches and batches; knows no loss.

Legend: B batch, N targets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from stillhouse.models.head import Head
from stillhouse.models.head_file import load_head
from stillhouse.models.loading import pick_device
from stillhouse.models.restricted import Kept, check_width
from stillhouse.models.signal_cache import SignalCache
from stillhouse.models.signal_writer import Named
from stillhouse.models.signals import HiddenSignal
from stillhouse.train.batches import SIGNAL_ROWS, Item, Rows
from stillhouse.train.outputs import Batch, Needs
from stillhouse.train.teachers import TeacherView

TRAIN: Final = "train"
HELD_OUT: Final = "held_out"


@dataclass(frozen=True, slots=True)
class CachedSignals:
    """The caches of a captured dataset, the head where hidden states need it, and the tokens that
    a trimmed student kept, where not all."""

    train: SignalCache
    held_out: SignalCache
    head: Head | None = None
    kept: Kept | None = None

    def bound(
        self, rows: Rows, named: Sequence[Named], ids: Sequence[str], *, held_out: bool
    ) -> Rows:
        """The rows, each with its number: held-out ones are counted on after those of `train`.

        Raises:
            UserError: an example is missing or has other tokens.
        """
        cache, first = (self.held_out, len(self.train)) if held_out else (self.train, 0)
        items: list[Item] = []
        for item, one, name in zip(rows.items, named, ids, strict=True):
            number = cache.find(one.example, one.tokens, one.rows, name)
            items.append({**item, "signal_row": first + number})
        return Rows(items)

    def require(self, **wanted: object) -> None:
        """See `SignalCache.require`; of both."""
        self.train.require(**wanted)
        self.held_out.require(**wanted)


def open_signals(folder: Path) -> CachedSignals:
    """Open what the capture stage wrote, checksums compared; ranks share the reading.

    Raises:
        RunFolderError: missing, damaged or not finished.
    """
    part, parts = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return CachedSignals(
        SignalCache(folder / TRAIN, part=part, parts=parts),
        SignalCache(folder / HELD_OUT, part=part, parts=parts),
    )


def with_head(signals: CachedSignals, source: str, device: torch.device | str) -> CachedSignals:
    """The same, with the teacher's head where the format is hidden states: its rows of the kept
    tokens.

    Raises:
        UserError: as `load_head`, and a head without rows for them.
    """
    layout = signals.train.layout
    if layout.format != "hidden":
        return signals
    dtype = torch.bfloat16 if signals.train.manifest.key.precision == "bf16" else torch.float32
    head = load_head(source, dtype, str(pick_device(str(device))))
    if signals.kept is not None:
        check_width(signals.kept, int(head.weight.shape[0]), source)
        head = head.only(signals.kept.ids)
    return replace(signals, head=head)


@dataclass(frozen=True, slots=True)
class CachedTeacher:
    """A `TeacherSource` over captured signals."""

    signals: CachedSignals

    @torch.no_grad()
    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`; a cache has no insides to show.

        Raises:
            ValueError: hidden states of all layers or attention are asked for.
        """
        if needs.hidden_states or needs.attentions or needs.queries_keys_values:
            raise ValueError("a cache holds what the teacher said, not its insides")
        named: list[int] = batch[SIGNAL_ROWS].tolist()
        numbers = [number for number in named if number >= 0]  # others fill up a batch
        if not numbers:
            return _nothing(self.view({**batch, SIGNAL_ROWS: -1 - batch[SIGNAL_ROWS]}, needs))
        train = len(self.signals.train)
        held_out = numbers[0] >= train
        cache = self.signals.held_out if held_out else self.signals.train
        first = train if held_out else 0
        stored = cache.read([number - first for number in numbers], self.signals.head)
        signal, kept = stored.signal, self.signals.kept
        if kept is not None and not isinstance(signal, HiddenSignal):  # whose head has them alone
            signal = kept.only(signal)
        device = batch["labels"].device
        information = stored.information
        return TeacherView(
            signal.to(device),
            None,
            None if information is None else information.to(device),
        )


def _nothing(view: TeacherView) -> TeacherView:
    """The same kind of view, of no targets."""
    assert view.signal is not None
    none = torch.zeros(view.signal.positions, dtype=torch.bool)
    information = None if view.information is None else view.information[:0]
    return TeacherView(view.signal.select(none), None, information)
