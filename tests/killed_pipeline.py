"""Run the pipeline in a process that kills itself: inside a stage, or when all but its manifest is
written.

Usage: killed_pipeline.py RECIPE RUN_DIR STAGE[:ANSWERS]
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from stillhouse import pipeline, stage_calls, stages
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import Outcome
from stillhouse.teacher.store import AnswerStore


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(stage: str, answers: int) -> None:
    """Die in `stage`: after so many answers, else when its work is done and not yet finished."""
    if answers:
        put, count = AnswerStore.put, 0

        async def counted(self: AnswerStore, *arguments: object) -> None:
            nonlocal count
            await put(self, *arguments)  # type: ignore[arg-type]
            count += 1
            if count == answers:
                die()

        AnswerStore.put = counted  # type: ignore[assignment,method-assign]
        return

    def killed(run: stages.Stage) -> stages.Stage:
        def work(context: stage_calls.Context) -> Outcome:
            run.run(context)
            die()
            raise AssertionError("still alive")

        return replace(run, run=work)

    stages.STAGES = tuple(  # type: ignore[misc]
        killed(one) if one.name == stage else one for one in stages.STAGES
    )


if __name__ == "__main__":
    name, _, number = sys.argv[3].partition(":")
    arm(name, int(number or 0))
    pipeline.run_stages(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), Silent())
