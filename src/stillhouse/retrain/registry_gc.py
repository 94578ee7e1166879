"""Which retired students may go: those that were retired long ago and that nothing needs.

A student is needed while it is not retired, has an alias (`previous` is one), was retired lately,
or one that is needed descends from it. Deletes nothing itself. Knows entries and moves alone.
"""

from __future__ import annotations

from typing import NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import Entry, Move

DAY_S = 86400.0


class Removable(NamedTuple):
    """A student that may go, and since when it is retired (Unix seconds)."""

    entry: Entry
    retired_at: float


def removable(
    registry: RegistryReader, *, days: float, now: float, ancestors: bool = False
) -> list[Removable]:
    """Students that may go, the one retired first in front.

    With `ancestors`, a student does not stay for those that descend from it: where each is started
    from the one before, all would stay else.

    Raises:
        UserError: `days` is below 0.
    """
    if not days >= 0:
        raise UserError("--days", "has to be 0 or more", value=days)
    entries = {entry.id: entry for entry in registry.entries()}
    retired: dict[str, float] = {}
    for task in registry.tasks():
        retired |= _retired_at(registry.history(task))
    needed = {
        name
        for name, entry in entries.items()
        if entry.stage != "retired" or entry.aliases or now - retired[name] < days * DAY_S
    }
    if not ancestors:
        for name in list(needed):
            parent = entries[name].parent
            while parent in entries and parent not in needed:
                needed.add(parent)
                parent = entries[parent].parent
    going = [Removable(entries[name], retired[name]) for name in entries if name not in needed]
    return sorted(going, key=lambda one: (one.retired_at, one.entry.id))


def _retired_at(moves: list[Move]) -> dict[str, float]:
    return {
        move.ref: move.at
        for move in moves
        if move.to_stage == "retired" and move.from_stage != "retired"
    }
