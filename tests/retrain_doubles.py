"""A loop without models: a teacher that reads a word, students that are tables of words.

The workshop keeps its paid answers in a file, as the real one does, and notes every answer it is
asked for: an answer that is paid twice shows. `kill_at` makes the n-th write to the disk, counted
over all of the loop's, end the process's work, as a kill would.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.core.errors import BudgetError, TeacherError
from stillhouse.core.hashing import unit_hash
from stillhouse.core.jsonl import write_json, write_records
from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.progress import Silent
from stillhouse.core.records import Example, Message, Query
from stillhouse.core.selection import Vectors
from stillhouse.core.tasks import ClassificationTask
from stillhouse.evaluate.metrics import Resampling
from stillhouse.retrain.cycle_files import TaskFolder
from stillhouse.retrain.cycle_records import HeldOut, Promise
from stillhouse.retrain.gateway_admin import GatewayError
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.seams import Asked, Gated, GatewayStanding, Samples, Trained
from stillhouse.serve.calibrator import Halves, Judged, gate_from
from stillhouse.serve.gate_file import save_gate

LABELS = ("good", "bad")
TASK = ClassificationTask(kind="classification", name="mood", labels=LABELS)
GOOD = ("lovely", "bright", "kind", "crisp", "calm")
BAD = ("awful", "grim", "rude", "soggy", "loud")
DAY = 86_400.0
START = 1_000_000.0
USD = 0.01


class Killed(BaseException):
    """The process is gone."""


def truth(text: str) -> str:
    """What the teacher says: the label of the word."""
    return LABELS[any(word in text for word in BAD)]


def text_of(number: int, topic: int) -> str:
    """A short text of a topic, whose word decides."""
    word = (GOOD if number % 2 else BAD)[topic % len(GOOD)]
    return (
        f"{word} thing {number * 7919 + topic} seen at place {number * 31} by {number * 17} people"
    )


def row(number: int, at: float, topic: int = 0, **changes: Any) -> LiveRow:
    """One request of the log, answered by the student alone."""
    text = changes.pop("text", text_of(number, topic))
    values: dict[str, Any] = {
        "id": f"r{topic}-{number}",
        "at": at,
        "written_at": at + 1,
        "task": "mood",
        "tenant": "t",
        "unit": f"u{number}",
        "messages": (Message(role="user", content=text),),
        "seen": "student",
        "arm": "student",
        "student": LiveAnswer(id=f"a{number}", text="good", confidence=0.6, latency_ms=1),
        "teacher_cost_usd": USD,
    }
    return LiveRow(**{**values, **changes})


def day_of_rows(day: int, count: int = 120, **changes: Any) -> list[LiveRow]:
    """A day's requests, of that day's topic."""
    return [
        row(number, START + day * DAY + number, topic=day, **changes) for number in range(count)
    ]


class WordEmbedder:
    """A few words each a direction, most of them drawn by hash."""

    name = "words"
    dimensions = 32

    def embed(self, texts: Sequence[str]) -> Vectors:
        found = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for index, text in enumerate(texts):
            for word in text.split():
                found[index, int(unit_hash(word, 0) * self.dimensions)] += 1.0
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


class Rows:
    """A log in memory."""

    def __init__(self, rows: Sequence[LiveRow]) -> None:
        self.all = sorted(rows, key=lambda one: (one.at, one.id))

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        for one in self.all:
            if (since is None or one.at >= since) and (until is None or one.at < until):
                yield one

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        return (one.id for one in self.rows(task, since, until))

    def newest(self, task: str, count: int) -> list[LiveRow]:
        return self.all[-count:]


class FakeWorkshop:
    """`seams.Workshop` over files, without a model."""

    def __init__(self, root: Path, *, reuses: bool = False, learns: bool = True) -> None:
        self.root = root
        self.revision = "teacher-1"
        self.down = False
        self.reuses = reuses
        self.learns = learns
        self.paid: Counter[str] = Counter()  # texts that were paid, over all starts
        self.trained: list[list[str]] = []  # texts that a student learnt from
        self.starts: list[Path | None] = []
        self.calibrated: list[Samples] = []
        self.first: list[str] = []
        self.step: Callable[[], None] = lambda: None

    truth = staticmethod(truth)
    task = TASK
    teacher = "openai:fake"

    def reuses_log(self) -> bool:
        return self.reuses

    def first_revisions(self) -> Sequence[str]:
        return self.first

    def _store(self) -> dict[str, list[str]]:
        path = self.root / "paid.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _write(self, store: dict[str, list[str]]) -> None:
        temporary = self.root / "paid.tmp"
        temporary.write_text(json.dumps(store))
        os.replace(temporary, self.root / "paid.json")

    def spent_usd(self) -> float:
        return sum(USD for answer in self._store().values() if answer[2] == "paid")

    def answers(self) -> int:
        return len(self._store())

    def _answer(self, queries: Sequence[Query], limit: float | None) -> Asked:
        store = self._store()
        for query in queries:
            text = query.last_user_text
            if text in store:
                continue
            if self.down:
                raise TeacherError("openai:fake: no connection")
            if limit is not None and self.spent_usd() + USD > limit + 1e-9:
                raise BudgetError("teacher.budget_usd: would be crossed")
            self.paid[text] += 1
            store[text] = [self.truth(text), self.revision, "paid"]
            self._write(store)
            self.step()
        found = {query.id: store[query.last_user_text] for query in queries}
        revisions = Counter(answer[1] for answer in found.values())
        return Asked({name: answer[0] for name, answer in found.items()}, revisions)

    def ask(self, folder: Path, queries: Sequence[Query], limit_usd: float | None) -> Asked:
        assert len({query.last_user_text for query in queries}) == len(queries) >= 2
        return self._answer(queries, limit_usd)

    def prepare(
        self,
        folder: Path,
        queries: Sequence[Query],
        known: Mapping[str, str],
        limit_usd: float | None,
    ) -> Asked:
        if self.reuses:
            store = self._store()
            for query in queries:
                if query.id in known and query.last_user_text not in store:
                    store[query.last_user_text] = [known[query.id], self.revision, "log"]
            self._write(store)
        return self._answer(queries, limit_usd)

    def train(
        self,
        folder: Path,
        queries: Sequence[Query],
        limit_usd: float | None,
        start: Path | None,
    ) -> Trained:
        store = self._store()
        assert all(query.last_user_text in store for query in queries)
        words: dict[str, str] = {}
        if start is not None:
            words = json.loads((start / "words.json").read_text())
        self.starts.append(start)
        self.trained.append([query.last_user_text for query in queries])
        examples = []
        for query in queries:
            label = store[query.last_user_text][0]
            if self.learns:
                words[query.last_user_text.split()[0]] = label
            answer = Message(role="assistant", content=label)
            examples.append(
                Example(
                    id=query.id,
                    messages=(*query.messages, answer),
                    task="mood",
                    group=query.id,
                    teacher="openai:fake",
                    teacher_revision=self.revision,
                    label=label,
                )
            )
        write_records(folder / "dataset" / "train.jsonl", examples)
        write_json(folder / "train" / "student" / "words.json", dict(words))
        self.step()
        return Trained(folder / "train" / "student", None, len(examples), {"dataset": "d"})

    def calibrate(
        self, student: Path, run: Path, out: Path, samples: Samples, promise: Promise
    ) -> Gated:
        """As the real one, with features of a table: known words are sure, others are guessed."""
        self.calibrated.append(samples)
        words = json.loads((student / "words.json").read_text())

        def judged(one: HeldOut) -> Judged:
            word = one.query.last_user_text.split()[0]
            right = words.get(word, "good") == one.answer
            logit = (4.0 if word in words else -1.0) + unit_hash(one.query.id, 5) / 10
            return Judged(one.query.id, {"logit": logit}, right)

        split = Halves(*([judged(one) for one in part] for part in samples))
        gate = gate_from(
            split, promise.error, promise.delta, "auto", window=None, heads=split, own=True
        ).model_copy(update={"student": "fp_fake", "acceptable": 1.0, "source": "the window"})
        save_gate(out / "gate.json", gate)
        self.step()
        return Gated(gate, len(split.fits), 0, None if gate.threshold else 777)

    def predict(self, student: Path, queries: Sequence[Query]) -> list[str]:
        words = json.loads((student / "words.json").read_text())
        return [words.get(query.last_user_text.split()[0], "good") for query in queries]


class FakeGateway:
    """`seams.Gateway` that a test moves."""

    def __init__(self) -> None:
        self.offered: list[tuple[str, str]] = []
        self.now = GatewayStanding("climbing", "shadow", "no decision yet")
        self.withdrawn = 0
        self.back: list[tuple[str, str]] = []
        self.refuses: str | None = None
        self.away = False
        self.answers: str | None = "small"

    def offer(self, task: str, path: Path, name: str, reason: str) -> None:
        assert (path / "words.json").exists()
        if (task, name) not in self.offered:
            self.offered.append((task, name))

    def standing(self, task: str, name: str) -> GatewayStanding:
        if self.away:
            raise GatewayError("gateway: refuses connections")
        if (task, name) not in self.offered or self.back:
            return GatewayStanding("rolled_back", "full", "another answers")
        return self.now

    def student(self, task: str) -> str | None:
        if self.away:
            raise GatewayError("gateway: refuses connections")
        return self.answers

    def withdraw(self, task: str, reason: str) -> None:
        self.withdrawn += 1
        self.now = GatewayStanding("rolled_back", "off", reason)

    def put_back(self, task: str, path: Path, name: str, reason: str) -> str | None:
        assert (path / "words.json").exists()
        if self.refuses is None:
            self.back.append((name, reason))
        return self.refuses


class Clock:
    """Unix seconds that a test moves."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def section(**changes: Any) -> RetrainSection:
    """Small windows, loose margins."""
    values = {"min_requests": 60, "new": 30, "held_out": 30, "margin": 0.2, "max_forgetting": 0.05}
    return RetrainSection.model_validate({**values, **changes})


def loop_of(
    root: Path,
    rows: Rows,
    clock: Clock,
    workshop: FakeWorkshop | None = None,
    *,
    gateway: FakeGateway | None = None,
    first_run: Path | None = None,
    calibrator: Path | None = None,
    **changes: Any,
) -> Loop:
    """A loop below `root`."""
    folder = root / "loop" / "mood"
    folder.mkdir(parents=True, exist_ok=True)
    return Loop(
        name="mood",
        section=section(**changes),
        workshop=workshop or FakeWorkshop(folder),
        live=rows,
        registry=Registry(root / "registry", clock),
        files=TaskFolder(folder),
        progress=Silent(),
        clock=clock,
        how=Resampling(0.95, 200, 0),
        near_duplicate=1.0,
        first_run=first_run,
        gateway=gateway,
        calibrator=calibrator,
    )
