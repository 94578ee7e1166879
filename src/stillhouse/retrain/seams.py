"""What a cycle asks of others: a workshop that asks, trains and predicts, and a gateway.

The workshop is `stillhouse.retraining`'s, over the pipeline; tests have doubles. Knows records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from pydantic import JsonValue

from stillhouse.core.records import Query
from stillhouse.core.tasks import Task
from stillhouse.retrain.cycle_records import HeldOut, Promise
from stillhouse.serve.gate_file import GateFile

Standing = Literal["climbing", "full", "rolled_back"]


class Asked(NamedTuple):
    """The teacher's answers by query id, those it failed left out, and the chats by the revision
    that answered."""

    answers: Mapping[str, str]
    revisions: Mapping[str, int]


class Trained(NamedTuple):
    """A trained student's folder, its best smaller form where there is one that passed its gate,
    how many examples it learnt from, and facts for the lineage."""

    student: Path
    form: Path | None
    examples: int
    facts: Mapping[str, JsonValue]


class Samples(NamedTuple):
    """Held-out requests to calibrate by: those that shape the confidence, and those that choose the
    threshold and have done nothing else."""

    fits: Sequence[HeldOut]
    tests: Sequence[HeldOut]


class Gated(NamedTuple):
    """What came of calibrating a student: its gate (`None`: it answered none of the samples), how
    many answers shaped the confidence, how many samples it refused, and about how many would have
    to choose a threshold where none was found (`None`: no number is foreseen)."""

    gate: GateFile | None
    fitted: int
    refused: int
    wanted: int | None


class Workshop(Protocol):
    """Who asks the teacher, trains and predicts for one task. Every call can be made again after a
    kill: it goes on from what is finished, and pays for nothing twice."""

    @property
    def task(self) -> Task:
        """The recipe's task."""

    @property
    def teacher(self) -> str:
        """The recipe's teacher."""

    def reuses_log(self) -> bool:
        """Whether a bare text of the teacher can teach the student: no beliefs are needed."""

    def first_revisions(self) -> Sequence[str]:
        """The revisions that taught the task's first student; empty where they are not known."""

    def spent_usd(self) -> float:
        """What all answers in the store have cost so far."""

    def answers(self) -> int:
        """Chats that have an answer in the store."""

    def ask(self, folder: Path, queries: Sequence[Query], limit_usd: float | None) -> Asked:
        """Answers to these queries alone, from the store where they are there.

        Args:
            folder: what the work keeps.
            queries: distinct chats, at least two.
            limit_usd: on `spent_usd`.

        Raises:
            BudgetError: asking on would cross the limit.
            TeacherError: the teacher cannot be reached.
        """

    def prepare(
        self,
        folder: Path,
        queries: Sequence[Query],
        known: Mapping[str, str],
        limit_usd: float | None,
    ) -> Asked:
        """Answers to the queries that a student will learn from, in its run folder.

        Args:
            known: what the teacher said to some of them live, by query id: used where
                `reuses_log`.

        Raises:
            BudgetError: asking on would cross the limit.
            TeacherError: the teacher cannot be reached.
        """

    def train(
        self,
        folder: Path,
        queries: Sequence[Query],
        limit_usd: float | None,
        start: Path | None,
    ) -> Trained:
        """Dataset, training and evaluation from these queries, whose answers are there.

        Args:
            start: the student that training goes on from; `None`: the recipe's source.

        Raises:
            DataError: no dataset can be made of them.
        """

    def calibrate(
        self,
        student: Path,
        run: Path,
        out: Path,
        samples: Samples,
        promise: Promise,
    ) -> Gated:
        """Ask a student as the gateway asks it, and fit its gate; the same as often as it is done.

        Args:
            student: its folder.
            run: the run that made it, for its training texts and its golden set.
            out: folder that gate.json is written to, and novelty.npz where the gate has it.
            samples: none of them is looked at where the promise is of the golden set: one half of
                that fits, the other chooses.
        """

    def predict(self, student: Path, queries: Sequence[Query]) -> list[str]:
        """A student's answers, in the order of the queries."""


class GatewayStanding(NamedTuple):
    """Where a candidate stands, at which stage, and the last decision's words."""

    standing: Standing
    stage: str
    said: str


class Gateway(Protocol):
    """Whoever moves live traffic over to a candidate."""

    def offer(self, task: str, path: Path, name: str, reason: str) -> None:
        """Begin its experiment; the same offer again changes nothing."""

    def standing(self, task: str, name: str) -> GatewayStanding:
        """How far it is."""

    def student(self, task: str) -> str | None:
        """Name of the student that answers; `None`: the task has none."""

    def withdraw(self, task: str, reason: str) -> None:
        """End the experiment; the incumbent stays."""

    def put_back(self, task: str, path: Path, name: str, reason: str) -> str | None:
        """Answer with another student at once, without a climb; why it refuses, where it does."""
