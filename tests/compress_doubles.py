"""Doubles of what writes, opens and starts compressed students, and a finished run for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from stillhouse.compress.exporters import ExportRequest
from stillhouse.compress.stage import Tools
from stillhouse.core.artefact import MadeFrom, is_artefact, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compress import Format
from stillhouse.core.records import Completion, Query
from stillhouse.core.runfolder import RunFolder, StageKey
from stillhouse.evaluate.compressed import Footprint
from stillhouse.evaluate.stage import run_evaluate
from stillhouse.models.completer import Sampling
from synthetic_run import Double, finish_evaluate, install_students, make_run, teacher_double

# Far enough apart that a busy machine does not change which is slower.
FLOAT_S: Final = 0.01
SLOW_S: Final = 0.1


class Made(NamedTuple):
    """What a double artefact is like."""

    size: int
    errors: float = 0.17
    seconds: float = 0.0
    refuses: str = ""


LIKE: Final[Mapping[Format, Made]] = {
    "onnx": Made(900),
    "onnx-int8": Made(300),
    "onnx-int8-static": Made(250, errors=0.6),
}


class Timed(Double):
    """A double that takes its time."""

    def __init__(self, name: str, errors: float, seconds: float) -> None:
        super().__init__(name, errors, 1, 11_000_000)
        self._seconds = seconds

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        await asyncio.sleep(self._seconds)
        return await super().complete(query, sampling)


class Workshop:
    """Tools of doubles, which note what was written and opened.

    `better` is the share of errors of forms whose student was distilled further; `again` is called
    before one of them is written.
    """

    def __init__(self, like: Mapping[Format, Made] = LIKE, better: float | None = None) -> None:
        self.like = like
        self.better = better
        self.again: Callable[[Format], None] = lambda _: None
        self.written: list[ExportRequest] = []
        self.opened: list[Timed] = []
        self.before: Callable[[Format], None] = lambda _: None

    @property
    def tools(self) -> Tools:
        return Tools(
            exporters={name: self._exporter(name) for name in self.like},
            open_student=self._open,
            footprint=lambda _, starts: Footprint(
                cold_start_s=0.5, cold_starts=(0.5,) * starts, peak_rss_mb=100.0
            ),
        )

    def _exporter(self, name: Format) -> Callable[[ExportRequest], None]:
        def export(request: ExportRequest) -> None:
            self.before(name)
            if "aware" in request.folder.name:
                self.again(name)
            made = self.like[name]
            if made.refuses:
                raise UserError("student", made.refuses)
            self.written.append(request)
            (request.folder / "model.bin").write_bytes(name.encode().ljust(made.size, b"."))
            write_artefact(
                request.folder,
                kind="onnx",
                precision=name.removeprefix("onnx-"),
                head=request.head,
                task=request.task,
                made_from=MadeFrom(student=student_sha(request.student), name=request.name),
                settings={"calibration": len(request.calibration)},
            )

        return export

    def _open(self, folder: Path, task: object, head: str, batch_size: int, device: str) -> Timed:
        errors, seconds = 0.17, FLOAT_S
        if is_artefact(folder):
            name = (folder / "model.bin").read_bytes().rstrip(b".").decode()
            made = next(made for one, made in self.like.items() if one == name)
            errors, seconds = made.errors, made.seconds
            if "aware" in folder.name and self.better is not None:
                errors = self.better
        self.opened.append(Timed(str(folder), errors, seconds))
        return self.opened[-1]


def evaluated(root: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose evaluate stage is finished too."""
    run = make_run(root, recipe, golden=200, held_out=40, train=60)
    install_students(monkeypatch, [])
    work = run.open_partial(StageKey("evaluate", {}, {}, {}, recipe.seed))
    outcome = run_evaluate(recipe, run, work, Silent(), teacher_double())
    finish_evaluate(recipe, run, work, outcome)
    return run
