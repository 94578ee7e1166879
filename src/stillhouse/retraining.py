"""A cycle's workshop over the pipeline: its stages, in the cycle's folder, over one store of paid
answers that all cycles and the task's first run share.

Knows recipes, stages and students; `retrain/` decides what is asked, trained and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from stillhouse.core.answers import agreed
from stillhouse.core.jsonl import read_json, read_records, write_records
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query
from stillhouse.core.runfolder import Manifest, RunFolder
from stillhouse.core.tasks import Task
from stillhouse.evaluate.candidates import sampling_for
from stillhouse.evaluate.compressed import BEST
from stillhouse.models.completer import Completer
from stillhouse.pipeline import report_of, run_stages, stage_key
from stillhouse.recalibrating import recalibrate
from stillhouse.retrain.cycle_records import Promise
from stillhouse.retrain.registry_lineage import lineage_of
from stillhouse.retrain.seams import Asked, Gated, Samples, Trained
from stillhouse.retrain_recipe import (
    asking_recipe,
    can_start_from,
    learning_recipe,
    reuses_log,
)
from stillhouse.serve.student_folder import notes_of
from stillhouse.stages import stages_of
from stillhouse.teacher.build import teacher_info, teacher_sampling
from stillhouse.teacher.replay import STORE_FILE
from stillhouse.teacher.stage import COMPLETIONS, TIMINGS
from stillhouse.teacher.store import AnswerStore, answer_key
from stillhouse.variants import STORE, link

SHARED: Final = ("tune", "check")  # of the first run, where a cycle's would be the same
STUDENT: Final = ("train", "student")


class PipelineWorkshop:
    """One task's `retrain.seams.Workshop`.

    Args:
        recipe: the task's, its paths absolute.
        section: the task's retraining.
        root: the task's folder; the store lies there.
        first_run: the run folder of its first student, whose store is used where there is one.
        progress: bars and lines.
    """

    def __init__(
        self,
        recipe: Recipe,
        section: RetrainSection,
        root: Path,
        first_run: Path | None,
        progress: Progress,
    ) -> None:
        self._recipe = recipe
        self._section = section
        self._root = root
        self._first = first_run
        self._progress = progress

    @property
    def task(self) -> Task:
        """The recipe's task."""
        return self._recipe.task

    @property
    def teacher(self) -> str:
        """The recipe's teacher."""
        return self._recipe.teacher.model

    def reuses_log(self) -> bool:
        """See `retrain_recipe.reuses_log`."""
        return reuses_log(self._recipe)

    def first_revisions(self) -> Sequence[str]:
        """Those that answered the first run."""
        return [] if self._first is None else list(_revisions(RunFolder(self._first)))

    def spent_usd(self) -> float:
        """What all answers in the store have cost so far."""
        store = self._read_store()
        return 0.0 if store is None else store.paid_usd

    def answers(self) -> int:
        """Chats that have an answer in the store."""
        store = self._read_store()
        return 0 if store is None else len(store)

    def ask(self, folder: Path, queries: Sequence[Query], limit_usd: float | None) -> Asked:
        """Answers to these queries alone."""
        recipe = asking_recipe(self._recipe, _written(folder, queries), limit_usd)
        return self._asked(recipe, folder)

    def prepare(
        self,
        folder: Path,
        queries: Sequence[Query],
        known: Mapping[str, str],
        limit_usd: float | None,
    ) -> Asked:
        """Answers to what a student will learn from, those of the log put into the store first."""
        path = _written(folder, queries)
        if self.reuses_log():
            self._give([query for query in queries if query.id in known], known)
        return self._asked(
            learning_recipe(self._recipe, self._section, path, limit_usd, None), folder
        )

    def train(
        self,
        folder: Path,
        queries: Sequence[Query],
        limit_usd: float | None,
        start: Path | None,
    ) -> Trained:
        """The stages after `ask`, and the run's report."""
        path = _written(folder, queries)
        if start is not None and (why := can_start_from(self._recipe, start)) is not None:
            self._progress.say(f"      start: scratch, since {why}")
            start = None
        recipe = learning_recipe(self._recipe, self._section, path, limit_usd, start)
        self._share(recipe, folder)
        run_stages(recipe, folder, self._progress)
        report_of(folder)
        run = RunFolder(folder)
        best = run.stage("compress") / BEST
        return Trained(
            student=folder.joinpath(*STUDENT),
            form=best if recipe.compress is not None and best.is_dir() else None,
            examples=_count(run.manifest("dataset"), "train"),
            facts=_facts(run, start),
        )

    def predict(self, student: Path, queries: Sequence[Query]) -> list[str]:
        """A student's answers, in the order of the queries."""
        head = notes_of(student, "student").head or self._recipe.student.head
        module = require("stillhouse.models.student", "train", "asking a student")
        section = self._recipe.evaluate
        completer: Completer = module.open_student(
            student, self.task, head, section.batch_size, self._recipe.train.device
        )
        return asyncio.run(_answers(completer, queries, self._recipe, self._progress))

    def calibrate(
        self,
        student: Path,
        run: Path,
        out: Path,
        samples: Samples,
        promise: Promise,
    ) -> Gated:
        """See `recalibrating`."""
        return recalibrate(
            self._recipe,
            student,
            run,
            out=out,
            samples=samples,
            promise=promise,
            progress=self._progress,
        )

    # --- the store and the stages ----------------------------------------------------------------

    def _asked(self, recipe: Recipe, folder: Path) -> Asked:
        self._share(recipe, folder)
        run_stages(recipe, folder, self._progress, last="ask")
        run = RunFolder(folder)
        samples: dict[str, list[Completion]] = {}
        for completion in read_records(run.stage("ask") / COMPLETIONS, Completion):
            samples.setdefault(completion.query_id, []).append(completion)
        answers = {name: agreed(recipe.task, found) for name, found in samples.items()}
        return Asked(
            {name: found.text for name, found in answers.items() if found is not None},
            _revisions(run),
        )

    def _share(self, recipe: Recipe, folder: Path) -> None:
        """Have the shared store there, and the first run's stages that would be the same."""
        for needed in (folder, self._store_folder()):
            needed.mkdir(parents=True, exist_ok=True)
        link(folder / STORE, self._store_folder())
        if self._first is None:
            return
        first = RunFolder(self._first)
        names = [stage.name for stage in stages_of(recipe)]
        if not set(names) & set(SHARED):
            return
        run_stages(recipe, folder, self._progress, last="traffic")
        run = RunFolder(folder)
        for stage in stages_of(recipe):
            if stage.name not in SHARED or run.manifest(stage.name) is not None:
                continue
            if first.standing(stage_key(stage, recipe, run)).manifest is not None:
                link(folder / stage.name, first.stage(stage.name))

    def _store_folder(self) -> Path:
        """The first run's store, or one of the task's own."""
        if self._first is not None and (self._first / STORE).exists():
            return self._first / STORE
        return self._root / STORE

    def _read_store(self) -> AnswerStore | None:
        path = self._store_folder() / STORE_FILE
        return AnswerStore(path, read_only=True) if path.exists() else None

    def _give(self, queries: Sequence[Query], known: Mapping[str, str]) -> None:
        """Put the teacher's live answers into the store; they cost nothing more."""
        info = teacher_info(self._recipe.teacher)
        sampling = teacher_sampling(self._recipe, info)
        revision = next(iter(self.first_revisions()), info.revision)

        async def put() -> None:
            with AnswerStore(self._store_folder() / STORE_FILE) as store:
                store.introduce(info)
                for query in queries:
                    key = answer_key(info, query, sampling)
                    if store.count(key) == 0:
                        answer = Completion(
                            query_id=query.id,
                            text=known[query.id],
                            model=info.name,
                            revision=revision,
                            cost_usd=0.0,
                        )
                        await store.put(key, [answer], usd=0.0)

        asyncio.run(put())


async def _answers(
    completer: Completer, queries: Sequence[Query], recipe: Recipe, progress: Progress
) -> list[str]:
    sampling = sampling_for(recipe)
    try:
        with progress.bar("asking a student", len(queries), "queries") as bar:

            async def one(query: Query) -> str:
                found = (await completer.complete(query, sampling))[0]
                bar.advance()
                return found.text

            return list(await asyncio.gather(*(one(query) for query in queries)))
    finally:
        await completer.aclose()


def _written(folder: Path, queries: Sequence[Query]) -> Path:
    """The queries beside a run's folder, as its traffic."""
    path = folder.with_name(f"{folder.name}.jsonl")
    write_records(path, queries)
    return path.resolve()


def _revisions(run: RunFolder) -> dict[str, int]:
    path = run.stage("ask") / TIMINGS
    found = read_json(path).get("revisions") if path.exists() else None
    if not isinstance(found, dict):
        return {}
    return {str(name): int(str(count)) for name, count in found.items()}


def _count(manifest: Manifest | None, name: str) -> int:
    value = None if manifest is None else manifest.summary.get(name)
    return value if isinstance(value, int) else 0


def _facts(run: RunFolder, start: Path | None) -> dict[str, JsonValue]:
    """What made a student, for the registry."""
    return {**lineage_of(run.root).lineage, "from": None if start is None else start.name}
