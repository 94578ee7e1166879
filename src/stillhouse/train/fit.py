"""Run a trainer to its end, from wherever a killed run left off.

Knows trainers and checkpoints; knows no recipe and no student.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.core.errors import StillhouseError
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.checkpoints import (
    PREFIX,
    TRAINER_STATE,
    latest,
    trainer_state,
    weight_errors,
)
from stillhouse.train.history import held_out_values, should_stop
from stillhouse.train.ranks import first_says, is_main
from stillhouse.train.trainer import DistillationTrainer


class Fitted(NamedTuple):
    """How a run went. The trainer's model holds the best weights where a run is judged, else the
    last."""

    steps: int
    max_steps: int
    best_step: int
    stopped_early: bool
    log: Sequence[Mapping[str, Any]]


def fit(trainer: DistillationTrainer, best_by: str | None, patience: int | None) -> Fitted:
    """Train, resuming from the newest whole checkpoint in the trainer's folder.

    Args:
        trainer: holds model, data and arguments.
        best_by: the held-out measure the run is judged by; as in `training_arguments`.
        patience: as in `history.EarlyStop`.

    Raises:
        StillhouseError: the held-out measure was never a number: the run went off.
    """
    folder = Path(str(trainer.args.output_dir))
    with weight_errors(folder), quiet_transformers():
        checkpoint = _newest(folder)
        if checkpoint is None:
            trainer.train()
        else:
            _resume(trainer, checkpoint, best_by, patience)
    state = trainer.state
    if best_by is not None and not state.best_global_step:
        raise StillhouseError(
            f"training went off: {best_by} was never a finite number in {state.global_step:,} "
            "steps; lower train.learning_rate or train.max_grad_norm and run again"
        )
    return Fitted(
        steps=state.global_step,
        max_steps=state.max_steps,
        best_step=state.best_global_step or state.global_step,
        stopped_early=state.global_step < state.max_steps,
        log=[dict(entry) for entry in state.log_history],
    )


def _newest(folder: Path) -> Path | None:
    """The newest whole checkpoint: the first process looks, clears torn ones away and has the file
    name its best one where it lies now; the others take its word."""
    step = -1
    if is_main() and folder.exists():
        found = latest(folder)
        if found is not None:
            state = trainer_state(found)
            whole = found / TRAINER_STATE
            beside = whole.with_suffix(".partial")
            state.save_to_json(str(beside))
            os.replace(beside, whole)
            step = int(found.name.removeprefix(PREFIX))
    step = first_says(step)
    return None if step < 0 else folder / f"{PREFIX}{step}"


def _resume(
    trainer: DistillationTrainer, checkpoint: Path, best_by: str | None, patience: int | None
) -> None:
    state = trainer_state(checkpoint)
    looks = held_out_values(state.log_history, best_by) if best_by is not None else []
    if state.global_step < state.max_steps and not should_stop(looks, patience):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    if best_by is not None and not state.best_model_checkpoint:
        trainer.state = state  # it went off; `fit` says so
        return
    # Killed between the last step and what follows: only the weights are to be had back.
    trainer.state = state
    trainer.restore(checkpoint if best_by is None else Path(str(state.best_model_checkpoint)))
