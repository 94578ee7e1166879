"""`stillhouse monitor`: a loop.yaml's tasks with their log, run, canaries and channels.

Wires what `monitor` computes with to the gateway's database and to teachers and students. Knows
where things are; judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.live import LiveRows
from stillhouse.core.loop_file import LoopFile, load_loop
from stillhouse.core.loop_sections import LoopTask
from stillhouse.core.optional import require
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.records import Example, Query
from stillhouse.core.runfolder import RunFolder
from stillhouse.core.tasks import Task
from stillhouse.evaluate.results import STUDENT, TEACHER, Prediction
from stillhouse.models.embedders import Embedder, Vectors, open_embedder
from stillhouse.monitor.baselines import RunData, agree_of, parse_of
from stillhouse.monitor.canaries import Replay, chosen, read_canaries, write_canaries
from stillhouse.monitor.check import Checked, Watched, check
from stillhouse.monitor.delivery import channels
from stillhouse.monitor.drift_records import Observation
from stillhouse.monitor.pools import Setting
from stillhouse.monitor.reference import reference_of_run
from stillhouse.monitor.samples import input_text
from stillhouse.monitor.segments import Segmenter, TextClusters
from stillhouse.monitor.state import Place, task_folder
from stillhouse.monitor_canaries import CanaryAsker

NEWEST: Final = 2000  # requests that canaries are drawn from, and words weighed by, without a run
LEAST_LETTERS: Final = 20  # of a text whose language is guessed
SURE: Final = 0.8
_SQLITE: Final = "sqlite:///"


class FrozenCanaries(NamedTuple):
    """What freezing did."""

    task: str
    canaries: int
    path: str
    notes: tuple[str, ...]


class Loop(NamedTuple):
    """loop.yaml with the gateway's file that it names."""

    file: LoopFile
    gateway: Any


def open_loop(path: Path) -> Loop:
    """Read both files.

    Raises:
        RecipeError: one cannot be read.
        UserError: a task that the gateway does not have, or no such task is asked for.
    """
    file = load_loop(path)
    part = require("stillhouse.serve.gateway_file", extra="serve", needed_for="watching")
    gateway = part.load_gateway(Path(file.gateway))
    for name in file.tasks:
        if name not in gateway.tasks:
            raise UserError(
                f"tasks.{name}",
                "is no task of the gateway",
                action=f"{file.gateway} has: {', '.join(gateway.tasks)}",
            )
    return Loop(file, gateway)


@contextmanager
def open_rows(loop: Loop) -> Iterator[LiveRows]:
    """The traffic log of the gateway.

    Raises:
        UserError: the gateway keeps none, or there is no such file.
        StoreError: it cannot be reached.
    """
    tables = require("stillhouse.serve.tables", extra="serve", needed_for="the traffic log")
    live = require("stillhouse.serve.live_rows", extra="serve", needed_for="the traffic log")
    url = loop.gateway.log.url
    if url is None:
        raise UserError(
            "log.url",
            "is not set: the gateway keeps no log that could be watched",
            action=f"set it in {loop.file.gateway}",
        )
    engine = tables.open_database(_seen_from(url, Path(loop.file.gateway).parent))
    try:
        rows: LiveRows = live.StoredRows(engine)
        yield rows
    finally:
        engine.dispose()


def _seen_from(url: str, folder: Path) -> str:
    """A SQLite file that is there: as cron sees it, else from the gateway's folder. One that is
    not would be made, and an empty log be watched."""
    if not url.startswith(_SQLITE):
        return url
    path = Path(url.removeprefix(_SQLITE).partition("?")[0])
    for place in (path, folder / path):
        if place.is_file():
            return f"{_SQLITE}{place.absolute()}"
    raise UserError(
        "log.url",
        "names no database that is there",
        value=str(path),
        action="start the gateway first, or write the path in full",
    )


def check_tasks(path: Path, only: Sequence[str] = (), now: float | None = None) -> list[Checked]:
    """Check the tasks of a loop.yaml, one after another.

    Args:
        only: these tasks; none: all.

    Raises:
        UserError: a file, a variable or a task is wrong.
        StillhouseError: the log or a folder cannot be used.
    """
    loop = open_loop(path)
    for name in only:
        if name not in loop.file.tasks:
            known = ", ".join(loop.file.tasks)
            raise UserError("--task", "is not in the file", value=name, action=f"it has: {known}")
    with open_rows(loop) as rows:
        watched = [watch(loop, name, rows) for name in only or loop.file.tasks]
        return [check(one, time.time() if now is None else now) for one in watched]


def watch(loop: Loop, name: str, rows: LiveRows) -> Watched:
    """One task, ready to be checked.

    Raises:
        UserError: its recipe, run, segments or channels cannot be used.
    """
    section = loop.file.tasks[name]
    recipe = load_recipe(Path(section.recipe))
    examples, predictions = _held_out(section)
    texts = [recipe.task.varying_text(example.to_query()) for example in examples]
    embedder = _Embedder(section, recipe.task, texts, rows, name)
    language = _language(section)
    segmenter = Segmenter(
        section.monitor.segments.by,
        language,
        _clusters(section, texts, embedder),
    )
    folder = task_folder(Path(loop.file.folder), name)
    run = _run_data(section, recipe.task, (examples, predictions), segmenter, language)
    return Watched(
        setting=Setting(name, recipe.task, section.monitor, segmenter),
        rows=rows,
        place=Place(folder, name),
        run=run,
        embed=embedder,
        language=language,
        channels=channels(section.monitor.alerts),
        replay=_replay(loop, name, recipe, folder),
        held_out=frozenset(one.id for one in examples) if section.run is not None else None,
    )


def freeze_canaries(path: Path, name: str, *, again: bool) -> FrozenCanaries:
    """Choose canaries, have them answered, and keep them.

    Args:
        again: replace those that there are.

    Raises:
        UserError: there are canaries already, or nothing to choose from.
        StillhouseError: the teacher gives no answer.
    """
    loop = open_loop(path)
    if name not in loop.file.tasks:
        known = ", ".join(loop.file.tasks)
        raise UserError("TASK", "is not in the file", value=name, action=f"it has: {known}")
    section = loop.file.tasks[name]
    settings = section.monitor.canaries
    if settings is None:
        raise UserError(f"tasks.{name}.monitor.canaries", "is null", action="leave it out")
    recipe = load_recipe(Path(section.recipe))
    folder = task_folder(Path(loop.file.folder), name)
    place = Place(folder, name)
    with place.locked():
        held = read_canaries(folder)
        if held and not again:
            raise UserError(
                str(folder / "canaries.jsonl"),
                f"holds {len(held)} canaries",
                action="replace them with --again: what they would show of the past is lost",
            )
        with open_rows(loop) as rows:
            queries, sources = _prompts(section, recipe, rows, name)
        picked = chosen(queries, settings.count, recipe.seed)
        if not picked:
            raise UserError(
                f"tasks.{name}", "has no requests to choose from", action="name its run, or wait"
            )
        asker = _asker(loop, name, recipe, folder)
        frozen, notes = asker.freeze(picked, time.time(), student=settings.student)
        frozen = [
            one.model_copy(update={"request": one.id, "request_at": sources[one.id]})
            if one.id in sources
            else one
            for one in frozen
        ]
        write_canaries(folder, frozen)
        asker.forget_freezing()
    return FrozenCanaries(name, len(frozen), str(folder / "canaries.jsonl"), tuple(notes))


def _prompts(
    section: LoopTask, recipe: Recipe, rows: LiveRows, name: str
) -> tuple[list[Query], dict[str, float]]:
    """The run's held-out requests, else the newest logged ones; and when the latter came."""
    examples, _ = _held_out(section)
    if examples:
        return [example.to_query() for example in examples], {}
    live = [row for row in rows.newest(name, NEWEST) if input_text(recipe.task, row)]
    queries = [Query(id=row.id, messages=row.messages, task=name) for row in live]
    return queries, {row.id: row.at for row in live}


def _asker(loop: Loop, name: str, recipe: Recipe, folder: Path) -> CanaryAsker:
    settings = loop.file.tasks[name].monitor.canaries
    assert settings is not None
    upstream = loop.gateway.tasks[name].student
    return CanaryAsker(
        recipe,
        folder,
        budget_usd=settings.budget_usd,
        student=None if upstream is None else loop.gateway.upstreams[upstream],
    )


def _replay(loop: Loop, name: str, recipe: Recipe, folder: Path) -> Callable[[int], Replay] | None:
    settings = loop.file.tasks[name].monitor.canaries
    if settings is None or not read_canaries(folder):
        return None

    def replay(number: int) -> Replay:
        asker = _asker(loop, name, recipe, folder)
        return asker.replay(read_canaries(folder), number, student=settings.student)

    return replay


# --- the run ------------------------------------------------------------------------------------


def _held_out(section: LoopTask) -> tuple[list[Example], list[Prediction]]:
    if section.run is None:
        return [], []
    run = RunFolder(Path(section.run))
    held, said = (
        run.stage("dataset") / "held_out.jsonl",
        run.stage("evaluate") / "predictions.jsonl",
    )
    if not held.exists() or not said.exists():
        missing = held if not held.exists() else said
        raise DataError(
            str(missing),
            "there is no such file in the run that loop.yaml names",
            action="name a finished run, or leave run out: the first windows are the reference",
        )
    return list(read_records(held, Example)), list(read_records(said, Prediction))


def _run_data(
    section: LoopTask,
    task: Task,
    held_out: tuple[Sequence[Example], Sequence[Prediction]],
    segmenter: Segmenter,
    language: Callable[[str], str | None] | None,
) -> RunData | None:
    examples, predictions = held_out
    groups = {example.id: example.group for example in examples}
    least = section.monitor.segments.least
    reference = reference_of_run(task, predictions, groups, segmenter, least)
    if reference is None:
        return None
    parse, agree = parse_of(task), agree_of(task)
    found = []
    for one in predictions:
        student, teacher = one.answers.get(STUDENT), one.answers.get(TEACHER)
        if one.set != "held_out" or student is None or teacher is None:
            continue
        found.append(
            Observation(
                id=one.id,
                at=0.0,
                text=one.text,
                length=len(one.text.split()),
                language=None if language is None else language(one.text),
                student_answer=None if parse is None else parse(student),
                teacher_answer=None if parse is None else parse(teacher),
                agreement=agree(student, teacher),
            )
        )
    return RunData(reference, tuple(found))


# --- texts --------------------------------------------------------------------------------------


class _Embedder:
    """Opened at the first text: a check with nothing to judge waits for no model."""

    def __init__(
        self, section: LoopTask, task: Task, texts: Sequence[str], rows: LiveRows, name: str
    ) -> None:
        drift = section.monitor.drift
        self._name = "hashing" if drift is None else drift.embedder
        self._task, self._texts, self._rows, self._task_name = task, texts, rows, name
        self._inner: Embedder | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        if self._inner is None:
            corpus = list(self._texts) or [
                input_text(self._task, row) for row in self._rows.newest(self._task_name, NEWEST)
            ]
            self._inner = open_embedder(self._name, corpus)
        return self._inner.embed(texts)


def _clusters(section: LoopTask, texts: Sequence[str], embedder: _Embedder) -> TextClusters | None:
    segments = section.monitor.segments
    if "cluster" not in segments.by:
        return None
    if not texts:
        raise UserError(
            "monitor.segments.by",
            "names cluster, and the task names no run whose texts could be grouped",
            action="set run: in loop.yaml, or take cluster out",
        )
    return TextClusters(texts, embedder, segments.clusters)


def _language(section: LoopTask) -> Callable[[str], str | None] | None:
    """A guess of a text's language, where segments are by it, or drift can have it."""
    monitor = section.monitor
    wanted = "language" in monitor.segments.by
    if not wanted and (monitor.drift is None or find_spec("py3langid") is None):
        return None
    module = require("py3langid.langid", "language", "monitor.segments.by: language")
    identifier: Any = module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)

    def guess(text: str) -> str | None:
        if sum(character.isalpha() for character in text) < LEAST_LETTERS:
            return None
        language, probability = identifier.classify(text)
        return str(language) if probability >= SURE else None

    return guess
