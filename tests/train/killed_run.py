"""Run a stage in a process that kills itself: at an optimizer step, or inside a checkpoint.

Usage: killed_run.py STAGE RECIPE.json INPUT_DIR WORK_DIR step:N | checkpoint:N
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.train import trainer as trainer_module
from stillhouse.train.history import Report
from stillhouse.train.stage import run_train
from stillhouse.train.tune_teacher import run_tune


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(where: str, number: int) -> None:
    if where == "step":

        def on_step_end(self: Report, args: Any, state: Any, control: Any, **_: Any) -> Any:
            if state.global_step == number:
                _die()
            return control

        Report.on_step_end = on_step_end
        return
    saved = 0
    save_random = trainer_module.save_random

    def torn(folder: Path, rank: int) -> None:
        nonlocal saved
        saved += 1
        save_random(folder, rank)
        if saved == number:  # weights, optimizer and generators are written, the state is not
            _die()

    trainer_module.save_random = torn


def main() -> None:
    """Never returns where the run is long enough."""
    stage, recipe_path, inputs, work, death = sys.argv[1:]
    where, _, number = death.partition(":")
    _arm(where, int(number))
    recipe = Recipe.model_validate_json(Path(recipe_path).read_text())
    Path(work).mkdir(parents=True, exist_ok=True)
    if stage == "tune":
        run_tune(recipe, Path(inputs), Path(work), Silent())
    else:
        run_train(recipe, Path(inputs), None, Path(work), Silent())


if __name__ == "__main__":
    main()
