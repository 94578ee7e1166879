"""The compress stage with training at hand: an INT8 form below its gate is learned for.

The stage makes, judges and times forms; distilling a student further on the grid of INT8 is
training's skill. This puts the two together. Knows the run folder; neither measures nor trains.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from stillhouse.compress.planning import learns_grid
from stillhouse.compress.retrained import Retrain
from stillhouse.compress.stage import Tools, run_compress
from stillhouse.core.errors import UserError
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import Outcome, RunFolder

NEEDED_FOR: Final = "quantization-aware distillation"


def compress(
    recipe: Recipe,
    run: RunFolder,
    tuned: Path | None,
    signals: Path | None,
    *,
    work: Path,
    progress: Progress,
    student: Path | None = None,
    tools: Tools = Tools(),  # noqa: B008 - immutable
) -> Outcome:
    """Make, judge and time the forms of a student; learn the grid where rounding costs too much.

    Args:
        recipe: the whole recipe.
        run: the run folder, in which the stages before this one are finished.
        tuned: folder of the tuned teacher, if it was tuned.
        signals: the capture stage's folder, where `train.signals` is cache.
        work: this stage's working folder.
        progress: where to say how far it is.
        student: a student's folder; `None`: the run's own.
        tools: what writes, opens and starts students.

    Raises:
        UserError: no format could be made; says why the first could not.
        StillhouseError: a student does not answer, or training went off.
    """
    retrain: Retrain | None = None
    if learns_grid(recipe):
        retrain = partial(_retrain, recipe, run, tuned, signals, progress)
    return run_compress(recipe, run, work, progress, student=student, retrain=retrain, tools=tools)


def _retrain(  # noqa: PLR0917 - bound by `partial`
    recipe: Recipe,
    run: RunFolder,
    tuned: Path | None,
    signals: Path | None,
    progress: Progress,
    student: Path,
    work: Path,
) -> Path:
    if signals is not None and not signals.is_dir():
        raise UserError(
            "compress.quantization_aware",
            "needs what the teacher believes of the answers, and this run has not captured it yet",
            action="run the recipe first: stillhouse run RECIPE",
        )
    module = require("stillhouse.train.quantize", "train", NEEDED_FOR)
    grids = require("stillhouse.train.fake_quant", "train", NEEDED_FOR)
    folder: Path = module.distil_quantized(
        recipe,
        student,
        run.stage("dataset"),
        tuned,
        work=work,
        progress=progress,
        signals=signals,
        scheme=grids.ONNX_INT8,
    )
    return folder
