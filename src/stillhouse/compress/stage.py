"""The compress stage: bring the student into smaller forms, and gate each of them again.

Every artefact is made, answers the same samples as teacher and student did, and is scored by
evaluate's own functions; all are timed in turns with the float student, and started alone for their
memory and cold start. Leaves a folder an artefact with its card, table.json (measured), answers and
predictions, and `best`, a link to the smallest that passes. Killed at any moment, the next start
keeps the finished artefacts and answers. Where INT8 forms fall below the gate and training is at
hand, the student is distilled further and the same forms of it stand beside them. Knows the run
folder; no format and no runtime.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.compress.best import link_best
from stillhouse.compress.calibration import calibration_texts
from stillhouse.compress.card import write_card
from stillhouse.compress.exporters import EXPORTERS, Exporter, ExportRequest
from stillhouse.compress.footprint import measure_footprint, probe_spec
from stillhouse.compress.planning import section_of
from stillhouse.compress.probe import ProbeSpec
from stillhouse.compress.retrained import RETRAINED, Retrain, aware_name, below_gate
from stillhouse.compress.table import Made, Measured, build_table
from stillhouse.core.artefact import (
    Artefact,
    folder_size,
    is_artefact,
    read_artefact,
    student_sha,
)
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors, write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compress import CALIBRATED, INT8, Format
from stillhouse.core.records import Completion
from stillhouse.core.runfolder import Outcome, RunFolder
from stillhouse.evaluate.candidates import (
    Answers,
    EvaluationSet,
    answers_of,
    ask_kept,
    load_sets,
    sampling_for,
)
from stillhouse.evaluate.comparison import Comparison, compare
from stillhouse.evaluate.compressed import (
    BEST,
    PREDICTIONS,
    TABLE,
    CompressedTable,
    Footprint,
)
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.results import STUDENT
from stillhouse.evaluate.speed import Contestant, Speed, measure_speed
from stillhouse.evaluate.stage import ANSWERS, predictions_of
from stillhouse.models.artefact_student import AnyTask, open_any
from stillhouse.models.completer import Completer

CARD: Final = "README.md"
COMPARED: Final = 16  # texts by which an exporter compares what it wrote with the student


class Tools(NamedTuple):
    """What writes, opens and starts students; tests have doubles of all three."""

    exporters: Mapping[Format, Exporter] = EXPORTERS
    open_student: Callable[[Path, AnyTask, str, int, str], Completer] = open_any
    footprint: Callable[[ProbeSpec, int], Footprint] = measure_footprint


def run_compress(
    recipe: Recipe,
    run: RunFolder,
    work: Path,
    progress: Progress,
    *,
    student: Path | None = None,
    retrain: Retrain | None = None,
    tools: Tools = Tools(),  # noqa: B008 - immutable
) -> Outcome:
    """Make, judge and time the artefacts of a student.

    Args:
        recipe: the whole recipe.
        run: the run folder, in which the stages before this one are finished.
        work: this stage's working folder.
        progress: where to say how far it is.
        student: a student's folder; `None`: the run's own.
        retrain: distils a student further, for INT8 forms below the gate; `None`: they are refused.
        tools: what writes, opens and starts students.

    Raises:
        UserError: no format could be made; says why the first could not.
        StillhouseError: a student does not answer.
    """
    table = _Compressing(
        recipe, run, work, progress, student=student, retrain=retrain, tools=tools
    ).run()
    for row in table.artefacts:
        progress.say(f"      {row.sentence}")
    for name, why in table.left_out.items():
        progress.say(f"      {name} is left out: {why}")
    cards = {f"{row.folder}/{CARD}" for row in table.artefacts}
    linked = {str(p.relative_to(work)) for p in (work / BEST).glob("**/*") if p.is_file()}
    return Outcome(
        summary={"made": len(table.artefacts), "set": table.main, "n": table.n},
        measured=frozenset({TABLE, *cards, *linked}),
    )


class _Compressing:
    """One run of the stage."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        work: Path,
        progress: Progress,
        *,
        student: Path | None,
        retrain: Retrain | None,
        tools: Tools,
    ) -> None:
        self._recipe, self._run, self._work, self._progress = recipe, run, work, progress
        self._own = student is None
        self._student = run.stage("train") / "student" if student is None else student
        self._tools, self._retrain = tools, retrain
        self._section = section_of(recipe)

    def run(self) -> CompressedTable:
        recipe, work = self._recipe, self._work
        if is_artefact(self._student):
            raise UserError(
                str(self._student),
                "is an artefact already",
                action="give the float student it was made from",
            )
        sha = student_sha(self._student)
        artefacts, left_out = self._export(sha)
        judged = load_sets(recipe, self._run)
        if self._retrain is not None and not artefacts.keys().isdisjoint(INT8):
            self._learn(self._retrain, judged[0], artefacts, left_out)
        said, speeds = asyncio.run(self._work_through(judged, artefacts, left_out))
        answers = {name: self._answers(everyone) for name, everyone in said.items()}
        compared = self._compare(judged, answers)
        write_records(
            work / PREDICTIONS,
            (
                line
                for one in judged
                for line in predictions_of(recipe, one, answers[one.name], compared[one.name])
            ),
        )
        places = {STUDENT: self._student, **{name: work / name for name in artefacts}}
        prints = self._start(judged[0], places, artefacts)
        made = {
            STUDENT: Made("hf", "float32", folder_size(self._student)),
            **{n: Made(a.kind, a.precision, a.size_bytes) for n, a in artefacts.items()},
        }
        main = judged[0].name
        measured = {
            name: Measured(speeds[name], prints[name], _written(said[main][name]))
            for name in places
        }
        table = build_table(
            recipe, self._run, self._section, judged, answers, compared, made, measured, left_out
        )
        write_json(work / TABLE, table.model_dump(mode="json"))
        for row in table.artefacts:
            source = None if self._own else self._student
            write_card(
                work / row.folder,
                recipe,
                self._run,
                table=table,
                row=row,
                artefact=artefacts[row.name],
                student=source,
            )
        link_best(work, table.best)
        return table

    async def _work_through(
        self,
        judged: Sequence[EvaluationSet],
        artefacts: dict[str, Artefact],
        left_out: dict[str, str],
        *,
        timed: bool = True,
    ) -> tuple[dict[str, dict[str, list[Completion]]], dict[str, Speed]]:
        """Completions by set and model, and speeds; what cannot be opened is left out."""
        opened: dict[str, Completer] = {}
        try:
            opened[STUDENT] = self._open(self._student, self._device(None))
            for name, made in list(artefacts.items()):
                try:
                    opened[name] = self._open(self._work / name, self._device(made))
                except UserError as error:
                    left_out[name] = str(error)
                    del artefacts[name]
            if timed and not artefacts:
                raise _none_made(left_out)
            said = {str(one.name): await self._ask(one, opened) for one in judged}
            return said, await self._time(judged[0], opened) if timed else {}
        finally:
            for completer in opened.values():
                await completer.aclose()

    def _answers(self, said: Mapping[str, list[Completion]]) -> dict[str, Answers]:
        return {
            name: answers_of(self._recipe.task, [[c] for c in completions], "auto")
            for name, completions in said.items()
        }

    def _learn(
        self,
        retrain: Retrain,
        main: EvaluationSet,
        artefacts: dict[str, Artefact],
        left_out: dict[str, str],
    ) -> None:
        """Where forms lose too much, add those of a student that learned the grid."""
        plain: dict[str, Artefact] = {
            name: made for name, made in artefacts.items() if name in INT8
        }
        said, _ = asyncio.run(self._work_through([main], plain, {}, timed=False))
        answers = self._answers(said[main.name])
        below = below_gate(self._recipe, self._section, main, answers)
        if not below:
            return
        self._progress.say(
            f"      {', '.join(below)}: below the gate; the student is distilled further"
        )
        try:
            student = retrain(self._student, self._work / RETRAINED)
        except UserError as error:
            left_out.update((aware_name(name), str(error)) for name in below)
            return
        sha, texts = student_sha(student), self._texts(below)
        for name in below:
            try:
                artefacts[aware_name(name)] = self._make(name, sha, texts, learned=student)
            except UserError as error:
                left_out[aware_name(name)] = str(error)
                shutil.rmtree(self._work / f"{aware_name(name)}.partial", ignore_errors=True)

    def _export(self, sha: str) -> tuple[dict[str, Artefact], dict[str, str]]:
        """The artefacts, those that a killed try finished among them, and what cannot be made."""
        made: dict[str, Artefact] = {}
        left_out: dict[str, str] = {}
        wanted = self._section.wanted(self._recipe.student.head)
        texts = self._texts(wanted)
        with self._progress.bar("write", len(wanted), "formats") as bar:
            for name in wanted:
                try:
                    made[name] = self._make(name, sha, texts)
                except UserError as error:
                    left_out[name] = str(error)
                    shutil.rmtree(self._work / f"{name}.partial", ignore_errors=True)
                bar.advance()
        if not made:
            raise _none_made(left_out)
        return made, left_out

    def _texts(self, wanted: Sequence[Format]) -> Sequence[str]:
        return calibration_texts(
            self._recipe,
            self._run,
            self._section.calibration if CALIBRATED & set(wanted) else None,
            self._section.calibration_samples,
        )

    def _make(
        self, name: Format, sha: str, texts: Sequence[str], learned: Path | None = None
    ) -> Artefact:
        """One artefact; `learned` is the student that was distilled further, if it is of that."""
        own = name if learned is None else aware_name(name)
        folder, partial = self._work / own, self._work / f"{own}.partial"
        if is_artefact(folder):
            found = read_artefact(folder)
            if found.made_from.student == sha:
                return found
        with disk_errors(folder):
            for old in (folder, partial):
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir(parents=True)
        recipe = self._recipe
        self._tools.exporters[name](
            ExportRequest(
                student=self._student if learned is None else learned,
                folder=partial,
                task=recipe.task,
                head=recipe.student.head,
                name=recipe.student.source if self._own else self._student.name,
                texts=texts[:COMPARED],
                calibration=texts if name in CALIBRATED else (),
            )
        )
        made = read_artefact(partial)
        with disk_errors(folder):
            os.replace(partial, folder)
        return made

    def _open(self, folder: Path, device: str) -> Completer:
        recipe = self._recipe
        return self._tools.open_student(
            folder, recipe.task, recipe.student.head, recipe.evaluate.batch_size, device
        )

    async def _ask(
        self, judged: EvaluationSet, opened: Mapping[str, Completer]
    ) -> dict[str, list[Completion]]:
        """Everyone's completions; the run's own student has given them when it was evaluated."""
        return {
            name: await ask_kept(
                completer,
                judged,
                self._recipe,
                folder=self._run.stage("evaluate") / ANSWERS
                if name == STUDENT and self._own
                else self._work / ANSWERS,
                progress=self._progress,
                name=name,
            )
            for name, completer in opened.items()
        }

    def _compare(
        self,
        judged: Sequence[EvaluationSet],
        answers: Mapping[str, Mapping[str, Answers]],
    ) -> dict[str, Comparison]:
        evaluate = self._recipe.evaluate
        how = Resampling(evaluate.confidence, evaluate.resamples, self._recipe.seed)
        found: dict[str, Comparison] = {}
        with self._progress.bar("intervals", len(judged), "sets") as bar:
            for one in judged:
                found[one.name] = compare(self._recipe.task, one, answers[one.name], how)
                bar.advance()
        return found

    async def _time(self, main: EvaluationSet, opened: Mapping[str, Completer]) -> dict[str, Speed]:
        sampling = sampling_for(self._recipe)
        with self._progress.bar("speed of all, in turns", None, "queries"):
            return await measure_speed(
                {name: Contestant(completer, sampling) for name, completer in opened.items()},
                main.queries[: self._recipe.evaluate.speed_queries],
                self._section.speed_repeats,
                latency_queries=self._section.latency_queries,
            )

    def _start(
        self, main: EvaluationSet, places: Mapping[str, Path], artefacts: Mapping[str, Artefact]
    ) -> dict[str, Footprint]:
        queries = main.queries[: self._recipe.evaluate.speed_queries]
        found: dict[str, Footprint] = {}
        with self._progress.bar("starts, each alone", len(places), "students") as bar:
            for name, place in places.items():
                spec = probe_spec(self._recipe, place, self._device(artefacts.get(name)), queries)
                found[name] = self._tools.footprint(spec, self._section.cold_starts)
                bar.advance()
        return found

    def _device(self, artefact: Artefact | None) -> str:
        """Where a form runs; `None` stands for the float student."""
        follows = artefact is None or artefact.kind == "hf"
        return self._section.float_device if follows else "cpu"


def _none_made(left_out: Mapping[str, str]) -> UserError:
    name, why = next(iter(left_out.items()))
    return UserError("compress.formats", f"none can be made of this student: {why}", value=name)


def _written(completions: Sequence[Completion]) -> float:
    """Tokens of a mean answer."""
    return sum(c.completion_tokens or 0 for c in completions) / len(completions)
