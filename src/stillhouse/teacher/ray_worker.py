"""What runs inside a Ray cluster's processes: a copy of the teacher that answers batches.

Everything that goes wrong with a query or with a node comes back as data, with its reason; only a
bug raises. Imports no Ray: it is plain code that is called there. Knows neither store nor driver.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stillhouse.core.errors import StillhouseError, UnanswerableQueryError, UserError
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.teacher.build import NamedCompleter, open_teacher

# What came of a query: answers, its own fault, the teacher's, or a reason to stop altogether.
ANSWERED: Final = "answered"
QUERY_FAILED: Final = "query"
TEACHER_FAILED: Final = "teacher"
UNUSABLE_NODE: Final = "node"
# Times a batch is begun: nodes may be lost, but not as often as that.
MOST_TRIES: Final = 4


class Opening(NamedTuple):
    """How a node opens the teacher.

    `section` is the recipe's, as JSON. `name` is what the teacher answers as. `path` must be there
    on every node: weights, or the tuned teacher's folder; `None` where a node finds them itself.
    """

    section: str
    name: str
    tuned: str | None
    path: str | None

    def problem(self) -> str:
        """What keeps this node from opening it, seen without opening; empty where nothing does."""
        if self.path is not None and not Path(self.path).exists():
            return f"there is no {self.path}"
        return ""

    def open(self) -> Completer:
        """The teacher, under its name.

        Raises:
            UserError: it cannot be opened on this node.
        """
        problem = self.problem()
        if problem:
            raise UserError(self.name, problem, action=SAME_PATH)
        section = TeacherSection.model_validate_json(self.section)
        tuned = None if self.tuned is None else Path(self.tuned)
        return NamedCompleter(open_teacher(section, PricesSection(), tuned), self.name)


SAME_PATH: Final = "put the weights at the same path on every node, or on a shared file system"


class Described(NamedTuple):
    """A teacher as a node sees it, or why it cannot be opened there."""

    info: ModelInfo | None
    problem: str


def look(opening: Opening) -> str:
    """What keeps this node from opening the teacher; empty where nothing shows."""
    return opening.problem()


def describe(opening: Opening) -> Described:
    """Open the teacher once, to know what it is."""
    try:
        completer = opening.open()
    except StillhouseError as error:
        return Described(None, f"{error} (on node {socket.gethostname()})")
    info = completer.info
    asyncio.run(completer.aclose())
    return Described(replace(info, notes=dict(info.notes)), "")


class Attempts:
    """How often each batch was begun; Ray makes one, beside the driver, for a whole run.

    A query that kills its process (a crash in native code, memory) would else be tried for ever:
    Ray runs again what was lost, and cannot tell what was to blame.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def begin(self, row: int) -> int:
        """Count another start of the batch whose first row this is."""
        self._counts[row] += 1
        return self._counts[row]


class Labeller:
    """A teacher, opened once, that answers batches. Ray makes one per actor.

    Args:
        attempts: Ray's handle of the run's `Attempts`.
        opening: how it is opened.
        sampling: how answers are drawn; `n` and `seed` are those of a query without any answer.
        revision: of the weights that the run asks; those of another give another answer.
    """

    def __init__(self, attempts: Any, opening: Opening, sampling: Sampling, revision: str) -> None:
        self._attempts, self._sampling = attempts, sampling
        self._loop = asyncio.new_event_loop()
        self._completer: Completer | None = None
        self._problem = ""
        try:
            self._completer = opening.open()
        except StillhouseError as error:
            self._problem = str(error)
            return
        found = self._completer.info.revision
        if found != revision:
            self._problem = (
                f"{opening.name}: holds other weights than the rest of the cluster (revision "
                f"{found}, not {revision}); {SAME_PATH}"
            )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a batch.

        Args:
            batch: columns `row` (number), `query` (JSON) and `have` (samples there are already).

        Returns:
            Columns `row`, `kind`, `answers` (JSON lines, one a sample) and `detail` (the reason).
        """
        queries = [Query.model_validate_json(text) for text in batch["query"]]
        outcomes: Sequence[tuple[str, str, str]]
        if self._completer is None or self._problem:
            detail = f"{self._problem} (on node {socket.gethostname()})"
            outcomes = [(UNUSABLE_NODE, "", detail)] * len(queries)
        elif (tries := self._loop.run_until_complete(self._begin(batch))) > MOST_TRIES:
            detail = (
                f"the process that answered it, or another query of its batch, died {tries - 1} "
                "times; Ray's logs may say why"
            )
            outcomes = [(TEACHER_FAILED, "", detail)] * len(queries)
        else:
            answers = self._loop.run_until_complete(
                self._ask(self._completer, queries, [int(have) for have in batch["have"]])
            )
            outcomes = [_outcome(answer) for answer in answers]
        kinds, answered, details = zip(*outcomes, strict=True)
        return {
            "row": batch["row"],
            "kind": np.array(kinds, dtype=object),
            "answers": np.array(answered, dtype=object),
            "detail": np.array(details, dtype=object),
        }

    def close(self) -> None:
        """Free the model and the loop; an actor's end does it as well."""
        if self._completer is not None:
            self._loop.run_until_complete(self._completer.aclose())
        self._loop.close()

    async def _begin(self, batch: Mapping[str, Any]) -> int:
        return int(await self._attempts.begin.remote(int(batch["row"][0])))

    async def _ask(
        self, completer: Completer, queries: Sequence[Query], have: Sequence[int]
    ) -> list[Sequence[Completion] | BaseException]:
        """Ask all at once, each for what it lacks: the completer forms its own batches."""
        sampling = self._sampling
        return await asyncio.gather(
            *(
                completer.complete(
                    query, replace(sampling, n=sampling.n - count, seed=sampling.seed + count)
                )
                for query, count in zip(queries, have, strict=True)
            ),
            return_exceptions=True,
        )


def _outcome(answer: Sequence[Completion] | BaseException) -> tuple[str, str, str]:
    if isinstance(answer, UnanswerableQueryError):
        return QUERY_FAILED, "", str(answer)
    if isinstance(answer, UserError):
        return UNUSABLE_NODE, "", str(answer)
    if isinstance(answer, StillhouseError):
        return TEACHER_FAILED, "", str(answer)
    if isinstance(answer, BaseException):
        raise answer
    return ANSWERED, "\n".join(completion.to_json() for completion in answer), ""
