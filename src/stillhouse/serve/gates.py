"""The gate of a gateway.yaml: per task a calibrator's file, a bare threshold, or nothing.

Features come from the answer's log-probabilities, from how near the request is to the training
texts, and from several answers that agree or not. What a calibrator misses is not guessed: the
student is not sure then. Knows files and features; no server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.models.confidence import agreement
from stillhouse.serve.answer_text import said
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gate_file import NEVER, GateFile, load_gate
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.in_memory import ThresholdGate
from stillhouse.serve.seams import Gate, GatePlan, Verdict
from stillhouse.serve.student_requests import query_of

FEWEST: Final = 2
MOST_ALTERNATIVES: Final = 20  # that OpenAI's API gives


class TaskGate:
    """One task's file, with what lies beside it.

    Args:
        threshold: of gateway.yaml, in place of the file's.

    Raises:
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path, threshold: float | None = None) -> None:
        self.file: GateFile = load_gate(path)
        self._threshold = threshold
        self._novelty: Any = None
        if self.file.novelty is not None:
            # Brings scikit-learn, which a gateway without it need not wait for.
            module = require("stillhouse.models.novelty", "serve", "novelty")
            self._novelty = module.load_novelty(path.parent / self.file.novelty.file)

    def plan(self) -> GatePlan:
        """See `Gate`."""
        file, alternatives = self.file, FEWEST
        if isinstance(file.task, ClassificationTask):
            alternatives = len(file.task.labels)
        consistency = file.consistency
        return GatePlan(
            alternatives=max(FEWEST, alternatives),
            window=None if file.window is None else file.window.tokens,
            samples=0 if consistency is None else consistency.samples,
            sampling_temperature=0 if consistency is None else consistency.sampling_temperature,
            calibrated=True,
        )

    def about(self, body: Mapping[str, Any]) -> dict[str, float]:
        """Features of a request; takes about a millisecond."""
        if self._novelty is None or self.file.task is None:
            return {}
        try:
            query = query_of(body.get("messages"), self.file.task)
        except ApiError:  # not of the task's form: as new as a text can be, so left without
            return {}
        near = self._novelty.familiarity([self.file.task.input_text(query)])
        return {"familiarity": near[0]}

    def agreement(self, texts: Sequence[str]) -> Mapping[str, float]:
        """The share of the other answers that say what the first one says."""
        if len(texts) < 2:
            return {}
        return agreement([said(self.file.task, text) for text in texts])

    def confident(self, features: Mapping[str, float], *, whole: bool) -> Verdict:
        """See `Gate`."""
        try:
            probability, accept = self.file.confident(features, whole=whole)
        except ValueError:
            return Verdict(0.0, False)
        if self._threshold is not None:
            accept = probability >= self._threshold
        return Verdict(probability, accept)


class ClosedGate:
    """Of a student that no gate is fitted to, where its task wants one: no answer is shown.

    It is asked nevertheless, so that the log holds what a gate can be fitted to. Of a stream the
    first token will do.
    """

    def __init__(self, task: Task | None) -> None:
        classes = len(task.labels) if isinstance(task, ClassificationTask) else FEWEST
        self._plan = GatePlan(alternatives=max(FEWEST, classes), window=1, calibrated=True)

    def plan(self, task: str) -> GatePlan | None:
        """See `Gate`."""
        return self._plan

    async def about(self, task: str, body: Mapping[str, Any]) -> Mapping[str, float]:
        """See `Gate`: none."""
        return {}

    def agreement(self, task: str, texts: Sequence[str]) -> Mapping[str, float]:
        """See `Gate`: none."""
        return {}

    def confident(self, task: str, features: Mapping[str, float], *, whole: bool = True) -> Verdict:
        """See `Gate`: nothing is known of how sure the student is."""
        return Verdict(None, False)


class CalibratedGate:
    """Tasks with a calibrator; the others have a bare threshold or none."""

    def __init__(self, tasks: Mapping[str, TaskGate], others: ThresholdGate) -> None:
        self._tasks, self._others = tasks, others

    def plan(self, task: str) -> GatePlan | None:
        """See `Gate`."""
        own = self._tasks.get(task)
        return self._others.plan(task) if own is None else own.plan()

    async def about(self, task: str, body: Mapping[str, Any]) -> Mapping[str, float]:
        """See `Gate`."""
        own = self._tasks.get(task)
        if own is None or own.file.novelty is None:
            return {}
        return await asyncio.to_thread(own.about, body)

    def agreement(self, task: str, texts: Sequence[str]) -> Mapping[str, float]:
        """See `Gate`."""
        own = self._tasks.get(task)
        return {} if own is None else own.agreement(texts)

    def confident(self, task: str, features: Mapping[str, float], *, whole: bool = True) -> Verdict:
        """See `Gate`."""
        own = self._tasks.get(task)
        if own is None:
            return self._others.confident(task, features, whole=whole)
        return own.confident(features, whole=whole)


def gate_of(file: GatewayFile) -> Gate | None:
    """The gate that a file asks for; `None`: every student's answer is shown.

    Raises:
        UserError: a calibrator's file cannot be used.
    """
    sections = {name: task.fallback for name, task in file.tasks.items()}
    calibrated = {
        name: TaskGate(one.calibrator, one.threshold)
        for name, one in sections.items()
        if one.calibrator is not None
    }
    bare = {
        name: one.threshold
        for name, one in sections.items()
        if one.calibrator is None and one.threshold is not None
    }
    others = ThresholdGate(bare, {name: one.window_tokens for name, one in sections.items()})
    if calibrated:
        return CalibratedGate(calibrated, others)
    return others if bare else None


def threshold_of(task: TaskSection) -> float | None:
    """What the state of a task's experiment says of its threshold.

    Raises:
        UserError: the calibrator's file cannot be used.
    """
    fallback = task.fallback
    if fallback.calibrator is None or fallback.threshold is not None:
        return fallback.threshold
    found = load_gate(fallback.calibrator).threshold
    return NEVER if found is None else found


def check_student(name: str, task: TaskSection, fingerprint: str | None) -> None:
    """Refuse a calibrator that was fitted for another student than is served.

    Raises:
        UserError: it was.
    """
    if task.fallback.calibrator is None or fingerprint is None:
        return
    fitted = load_gate(task.fallback.calibrator).student
    if fitted is not None and fitted != fingerprint:
        raise UserError(
            f"tasks.{name}.fallback.calibrator",
            f"was fitted for the student {fitted}; the one that is served is {fingerprint}",
            action="run: stillhouse calibrate RUN --student ITS_FOLDER",
        )
