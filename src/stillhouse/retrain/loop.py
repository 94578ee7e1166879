"""What the steps of a cycle share: one task's loop, wired by its caller.

Knows seams; takes no step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stillhouse.core.jsonl import read_records
from stillhouse.core.live import LiveRows
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.progress import Progress
from stillhouse.core.records import SYNTHETIC, Example, Query
from stillhouse.evaluate.metrics import Resampling
from stillhouse.retrain.cycle_files import RUN, Forgotten, TaskFolder
from stillhouse.retrain.cycle_records import CycleLine, HeldOut, name_of
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.replay import Earlier
from stillhouse.retrain.seams import Gateway, Workshop

FIRST: Final = 0  # the window of the task's first run
BEST: Final = "best"  # the artefact that is served, where a student has it
FORMS: Final = "forms"
PARTS: Final = ("train.jsonl", "held_out.jsonl")  # of a run's dataset


@dataclass(frozen=True, slots=True)
class Loop:
    """One task's loop.

    `first_run` is the run folder of the first student, where loop.yaml names it; `near_duplicate`,
    `margin` and `how` are the recipe's; `calibrator` is the gate.json that gateway.yaml gives the
    task, `climbs_ungated` whether it lets a student without one climb where the task is gated, and
    `golden` how many rows the recipe's golden set has, `None` where it has none. `clock` gives Unix
    seconds.
    """

    name: str
    section: RetrainSection
    workshop: Workshop
    live: LiveRows
    registry: Registry
    files: TaskFolder
    progress: Progress
    clock: Callable[[], float]
    how: Resampling
    margin: float = 0.05
    near_duplicate: float = 0.85
    first_run: Path | None = None
    gateway: Gateway | None = None
    calibrator: Path | None = None
    climbs_ungated: bool = True
    golden: int | None = None
    seed: int = 0
    by: str = "retrain"

    def say(self, text: str) -> None:
        """One line for people."""
        self.progress.say(f"retrain {self.name}: {text}")

    def forgotten(self) -> Forgotten:
        """Users whose requests may not be used."""
        return self.files.forgotten(*(() if self.first_run is None else (self.first_run,)))

    def windows(self, lines: Sequence[CycleLine]) -> list[int]:
        """The earlier windows that have a held-out set, oldest first."""
        numbers = [FIRST, *(line.number for line in lines)]
        return [number for number in numbers if self.files.held_out(number)]

    def earlier_held_out(self, lines: Sequence[CycleLine]) -> list[HeldOut]:
        """All that judges or calibrates students of earlier windows, the newest last."""
        return [
            one
            for number in self.windows(lines)
            for one in (*self.files.held_out(number), *self.files.calibration(number))
        ]

    def earlier_examples(self, lines: Sequence[CycleLine]) -> list[Earlier]:
        """All that students learned from, each once, without what forgotten users asked.

        What a cycle's run held out, to watch its training by, is among it: the next run's share is
        drawn anew from all, and what is paid would else be lost a tenth at a time. The first run's
        is not: it judges students, as the windows' own do.
        """
        forgotten = self.forgotten()
        found = [] if self.first_run is None else _of_run(self.first_run)
        for line in lines:
            dataset = self.files.cycle(line.number) / RUN / "dataset"
            queries = {query.id: query for query in self.files.new_queries(line.number)}
            found += _learned_from(dataset, PARTS, queries, name_of(line.number))
        return [one for one in found if one.query.user not in forgotten]


def _of_run(root: Path) -> list[Earlier]:
    """Of the first run, without the labelled set, which every run has anew, and written queries."""
    for stage in ("expand", "traffic"):
        path = root / stage / "queries.jsonl"
        if path.exists():
            queries = {query.id: query for query in read_records(path, Query)}
            return [
                one
                for one in _learned_from(root / "dataset", PARTS[:1], queries, name_of(FIRST))
                if not one.query.id.startswith(("labelled:", SYNTHETIC))
            ]
    return []


def _learned_from(
    dataset: Path, parts: Sequence[str], queries: dict[str, Query], source: str
) -> list[Earlier]:
    return [
        Earlier(queries[example.id], source, example.label)
        for path in (dataset / part for part in parts)
        if path.exists()
        for example in read_records(path, Example)
        if example.id in queries
    ]


def served(entry: Path) -> Path:
    """What of a student's folder answers: its smaller form where it has one."""
    form = entry / FORMS / BEST
    return form if form.is_dir() else entry
