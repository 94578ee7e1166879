"""Tune in a process that kills itself.

Usage: killed_tuning.py RECIPE RUN_DIR WHERE:N, where WHERE is `step` (the N-th optimizer step of
this process), `look` (just after the N-th look is on disk), `told` (the N-th trial is trained and
not yet told), or `judged` (at the N-th student opened for the held-out sets).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse import tuning
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.train import search_study
from stillhouse.train.history import Report


def at(number: int) -> Callable[[], None]:
    """Dies at the N-th call."""
    left = number

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def arm(where: str, number: int) -> None:
    """Have the process die there."""
    die = at(number)
    trial: Any = search_study.Trial
    if where == "step":
        step = Report.on_step_end

        def on_step_end(self: Report, *arguments: Any, **named: Any) -> Any:
            die()
            return step(self, *arguments, **named)

        Report.on_step_end = on_step_end  # type: ignore[method-assign]
    elif where == "look":
        look = trial.look

        def looked(self: Any, number: int, value: float) -> bool:
            stop: bool = look(self, number, value)
            die()
            return stop

        trial.look = looked
    elif where == "told":
        complete = trial.complete

        def told(self: Any, *arguments: Any) -> None:
            die()
            complete(self, *arguments)

        trial.complete = told
    else:
        opened = tuning._open

        def opening(*arguments: Any) -> Any:
            die()
            return opened(*arguments)

        tuning._open = opening


if __name__ == "__main__":
    place, _, count = sys.argv[3].partition(":")
    arm(place, int(count))
    tuning.tune_recipe(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), Silent())
