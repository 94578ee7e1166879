"""Run a `Distiller` on a plain module in a process that kills itself after an optimizer step.

Usage: killed_distiller.py FOLDER OUT STEP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stillhouse import Distiller
from stillhouse.train.history import Report


def build(width: int, seed: int) -> nn.Module:
    """With dropout and a running mean: both must come back after a kill."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3)
    )


def run(folder: Path, out: Path) -> None:
    """Train, and save."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(90, 6), torch.arange(90) % 3
    distiller = Distiller(
        build(8, 1), build(32, 2), batch_size=8, micro_batch_size=4, epochs=3, patience=None,
        folder=folder,
    )  # fmt: skip
    distiller.fit((inputs[:70], labels[:70]), (inputs[70:], labels[70:]))
    distiller.save(out)


def main() -> None:
    """Die after some steps."""
    folder, out, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    say = Report.on_step_end

    def on_step_end(self: Report, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return say(self, args, state, control, **more)

    Report.on_step_end = on_step_end
    run(folder, out)


if __name__ == "__main__":
    main()
