"""What a student says at each look at the held-out set, item by item, kept until the run is read.

A classifier is kept sample by sample, a text student batch by batch (the order of the held-out set
does not change). The file lies beside the checkpoints: a killed run finds the looks before the
kill, and one that is taken again replaces its first. Knows sums of an objective and one file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from stillhouse.train.detect import Blocks, Integers
from stillhouse.train.objectives import HeldOutSums

LOOKS: Final = "looks.jsonl"


class Look(NamedTuple):
    """One look: sums over blocks of divergence (nats) and agreement (items), the items in each,
    and a classifier's answers by their numbers [N]; `watched` are those to the watch set."""

    step: int
    divergence: Blocks
    agreement: Blocks
    choices: Integers | None
    watched: Integers | None = None


def look_of(step: int, sums: Sequence[HeldOutSums], answers: Sequence[int] | None) -> Look:
    """A look from the sums of its batches.

    Args:
        step: optimizer steps done.
        sums: of each batch, in order.
        answers: what a classifier should say of each sample (the labels it is judged by) [N].
    """
    parts = [(one.choices, one.each) for one in sums]
    if answers is not None and all(c is not None and e is not None for c, e in parts):
        choices = np.concatenate([c.cpu().numpy() for c, _ in parts if c is not None])
        each = np.concatenate([e.double().cpu().numpy() for _, e in parts if e is not None])
        ones = np.ones(len(choices))
        agreed = (choices == np.asarray(answers)).astype(np.float64)
        return Look(step, Blocks(each, ones), Blocks(agreed, ones), choices)
    items = np.array([float(one.items) for one in sums])
    divergence = np.array([float(one.divergence) for one in sums])
    agreed = np.array([float(one.agreed) for one in sums])
    return Look(step, Blocks(divergence, items), Blocks(agreed, items), None)


def keep_looks(
    folder: Path,
    answers: Sequence[int] | None,
    watch: Callable[[], Integers | None] = lambda: None,
) -> Callable[[int, Sequence[HeldOutSums]], None]:
    """A function that writes each look to a folder, for a trainer to call; `watch` gives a
    classifier's answers to the watch set as they are then."""

    def keep(step: int, sums: Sequence[HeldOutSums]) -> None:
        look, watched = look_of(step, sums, answers), watch()
        line = {
            "step": step,
            "divergence": look.divergence.sums.tolist(),
            "agreed": look.agreement.sums.tolist(),
            "items": look.divergence.items.tolist(),
            "choices": None if look.choices is None else look.choices.tolist(),
            "watched": None if watched is None else watched.tolist(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOOKS).open("a", encoding="utf-8") as handle:
            handle.write("\n" + json.dumps(line))  # after what a kill left torn

    return keep


def read_looks(folder: Path) -> list[Look]:
    """The looks of a run, by step; none where it was not looked at in one process."""
    path = folder / LOOKS
    found: dict[int, Look] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            said = json.loads(line)
        except ValueError:  # empty, or torn by a kill: its look was taken again
            continue
        items = np.array(said["items"], dtype=np.float64)
        found[said["step"]] = Look(
            said["step"],
            Blocks(np.array(said["divergence"], dtype=np.float64), items),
            Blocks(np.array(said["agreed"], dtype=np.float64), items),
            None if said["choices"] is None else np.array(said["choices"], dtype=np.int64),
            None if said.get("watched") is None else np.array(said["watched"], dtype=np.int64),
        )
    return [found[step] for step in sorted(found)]
