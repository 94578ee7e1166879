"""Learning curves, read from the trainer's own log, and the rule that stops a run early.

The log is part of every checkpoint, so curves and the rule survive a kill without a file of their
own. Knows the log's rows; knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stillhouse.core.jsonl import void, write_atomic
from stillhouse.core.progress import Ticker
from stillhouse.train.balanced import log_of
from stillhouse.train.trainer import AGREEMENT, CROSS_ENTROPY, DIVERGENCE, metric

Log = Sequence[Mapping[str, Any]]


class CurveRow(NamedTuple):
    """One step of a learning curve; `None` where nothing was measured there.

    `loss` is the mean training loss since the row before; the held-out ones are means over the
    held-out set (nats, nats, share). `terms`, where a student is trained on several, holds each
    one's own mean `loss` since the row before, unweighted, and its `weight` and `gradient_norm`
    (of the weighted loss) at the step.
    """

    step: int
    epoch: float
    loss: float | None
    held_out_divergence: float | None
    held_out_cross_entropy: float | None
    held_out_agreement: float | None
    terms: Mapping[str, Mapping[str, float | None]] | None = None


def curve(log: Log) -> list[CurveRow]:
    """The learning curve of a run: a row for each step that was logged or looked at."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in log:
        if "loss" in entry or metric(entry, DIVERGENCE) is not None:
            steps.setdefault(int(entry["step"]), {}).update(entry)
    return [
        CurveRow(
            step=step,
            epoch=float(entry["epoch"]),
            loss=_finite(entry.get("loss")),
            held_out_divergence=_finite(metric(entry, DIVERGENCE)),
            held_out_cross_entropy=_finite(metric(entry, CROSS_ENTROPY)),
            held_out_agreement=_finite(metric(entry, AGREEMENT)),
            terms=_terms(entry),
        )
        for step, entry in sorted(steps.items())
    ]


def _finite(value: float | None) -> float | None:
    """JSON has no word for what a run that went off measures."""
    return None if value is None or not math.isfinite(value) else float(value)


def _terms(entry: Mapping[str, Any]) -> Mapping[str, Mapping[str, float | None]] | None:
    found = log_of(entry)
    if found is None:
        return None
    return {name: {k: _finite(v) for k, v in row.items()} for name, row in found.items()}


def write_rows(path: Path, rows: Sequence[CurveRow]) -> None:
    """Write a learning curve as a JSON list, a row a line."""
    plain = ({k: v for k, v in row._asdict().items() if k != "terms" or v} for row in rows)
    lines = ",\n ".join(json.dumps(row, allow_nan=False) for row in plain)
    write_atomic(path, lambda handle: void(handle.write(f"[{lines}]\n")))


def should_stop(values: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` values are all no lower than the lowest before them."""
    if patience is None or len(values) <= patience:
        return False
    finite = [value if math.isfinite(value) else math.inf for value in values]
    return min(finite[-patience:]) >= min(finite[:-patience])


def held_out_values(log: Log, name: str) -> list[float]:
    """One held-out measure, look by look."""
    return [value for entry in log if (value := metric(entry, name)) is not None]


class EarlyStop(TrainerCallback):
    """Ends a run after `patience` looks without a lower value of the measure it is judged by."""

    def __init__(self, name: str, patience: int | None) -> None:
        self._name, self._patience = name, patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Judge by all looks so far, those before a resume among them."""
        if should_stop(held_out_values(state.log_history, self._name), self._patience):
            control.should_training_stop = True
        return control


class Report(TrainerCallback):
    """Moves a progress bar, and has the last steps of a run logged too."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count what a resumed run has done before."""
        if state.global_step:
            self._ticker.advance(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """One optimizer step."""
        self._ticker.advance()
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """The newest figures beside the bar."""
        logs = logs or {}
        divergence = metric(logs, DIVERGENCE)
        if divergence is not None:
            agreement = metric(logs, AGREEMENT) or 0.0
            self._ticker.note(f"held-out {divergence:.3f} nats, agrees {agreement:.1%}")
        elif "loss" in logs:
            self._ticker.note(f"loss {logs['loss']:.3f}")
