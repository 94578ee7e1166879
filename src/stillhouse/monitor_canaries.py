"""Canaries are asked: the teacher through a store of paid answers, the student where it is served.

Each replay has a store of its own, so that a killed one pays for nothing twice and the next one
asks anew. Knows teachers, students and stores; what an answer means is `monitor`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import BudgetError, StillhouseError, UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.evaluate.candidates import sampling_for
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Completer
from stillhouse.monitor.canaries import Frozen, Replay, compared
from stillhouse.serve.gateway_sections import AnyUpstreamSection, StudentSection
from stillhouse.serve.student_folder import notes_of
from stillhouse.teacher.ask import ask
from stillhouse.teacher.build import LOCAL_WINDOW, open_teacher, queries_in_flight, teacher_sampling
from stillhouse.teacher.keys import answer_keys
from stillhouse.teacher.store import AnswerStore

STORES: Final = "canaries"
OUTAGE_S: Final = 60.0
BATCH: Final = 32
CONCURRENT: Final = 16


class Said(NamedTuple):
    """Answers by query. `problem`: (cause, what happened), where some are missing."""

    texts: Mapping[str, str]
    usd: float = 0.0
    problem: tuple[str, str] | None = None
    model: str = ""
    revision: str = ""


class CanaryAsker:
    """Who is asked, and where paid answers are kept.

    Args:
        folder: the task's.
        student: the gateway's upstream; `None`: there is no student.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        *,
        budget_usd: float,
        student: AnyUpstreamSection | None,
    ) -> None:
        if recipe.teacher.members:
            raise UserError(
                "teacher.members",
                "is an ensemble, and canaries ask one teacher",
                action="set monitor.canaries: null",
            )
        self._recipe, self._folder, self._budget = recipe, folder, budget_usd
        self._student = student

    def teacher(self, queries: Sequence[Query], store: str) -> Said:
        """The teacher's answers; those that there are where it fails midway.

        Args:
            store: name of the file that keeps them.
        """
        place = self._folder / STORES / f"{store}.jsonl"
        try:
            return asyncio.run(self._ask_teacher(queries, place))
        except StillhouseError as error:
            return Said({}, problem=("teacher_unreachable", str(error)))

    async def _ask_teacher(self, queries: Sequence[Query], place: Path) -> Said:
        section = self._recipe.teacher
        completer = open_teacher(section, self._recipe.prices)
        sampling = replace(teacher_sampling(self._recipe, completer.info), n=1)
        problem: tuple[str, str] | None = None
        try:
            with AnswerStore(place) as store:
                before = store.paid_usd
                try:
                    await ask(
                        completer,
                        queries,
                        sampling,
                        store,
                        concurrency=queries_in_flight(section, completer.info),
                        budget_usd=self._budget,
                        prices=self._recipe.prices,
                        deadline_s=section.deadline_s or OUTAGE_S,
                        outage_s=min(section.outage_s, OUTAGE_S),
                    )
                except BudgetError as error:
                    problem = ("canaries_budget", str(error))
                texts: dict[str, str] = {}
                revision = ""
                keys = answer_keys(completer.info, queries, sampling)
                for key, query in zip(keys, queries, strict=True):
                    found = store.get(key)
                    if found:
                        texts[query.id], revision = found[0].text, found[0].revision
                usd = store.paid_usd - before
        finally:
            await completer.aclose()
        if problem is None and len(texts) < len(queries):
            missing = f"{len(queries) - len(texts)} of {len(queries)} canaries had no answer"
            problem = ("teacher_unreachable", missing)
        return Said(texts, usd, problem, completer.info.name, revision)

    def student(self, queries: Sequence[Query]) -> Said:
        """The student's answers."""
        if self._student is None:
            return Said({})
        try:
            return asyncio.run(self._ask_student(self._student, queries))
        except StillhouseError as error:
            return Said({}, problem=("student_unopened", str(error)))

    async def _ask_student(self, section: AnyUpstreamSection, queries: Sequence[Query]) -> Said:
        completer = self._open(section)
        sampling = sampling_for(self._recipe)
        slots = asyncio.Semaphore(LOCAL_WINDOW * BATCH if completer.info.local else CONCURRENT)

        async def one(query: Query) -> Sequence[Completion]:
            async with slots:
                return await completer.complete(query, sampling)

        try:
            answers = await asyncio.gather(*(one(q) for q in queries), return_exceptions=True)
        finally:
            await completer.aclose()
        texts: dict[str, str] = {}
        failed: list[str] = []
        for query, found in zip(queries, answers, strict=True):
            if isinstance(found, StillhouseError):
                failed.append(str(found))
            elif isinstance(found, BaseException):
                raise found
            else:
                texts[query.id] = found[0].text
        problem = None
        if failed:
            many = f"{len(failed)} of {len(queries)} canaries had no answer: {failed[0]}"
            problem = ("student_unopened", many)
        return Said(texts, 0.0, problem, completer.info.name, completer.info.revision)

    def _open(self, section: AnyUpstreamSection) -> Completer:
        recipe = self._recipe
        if isinstance(section, StudentSection):
            head = section.head or notes_of(section.path, "upstreams").head or recipe.student.head
            return open_any(section.path, recipe.task, head, BATCH, section.device)
        served = TeacherSection(
            model=f"openai-compatible:{section.model}",
            base_url=section.base_url,
            api_key_env=section.api_key_env,
            max_tokens=recipe.teacher.max_tokens,
            retries=1,
        )
        return open_teacher(served, recipe.prices)

    def replay(self, frozen: Sequence[Frozen], number: int, *, student: bool) -> Replay:
        """Ask the canaries again.

        Args:
            number: of the replay.
            student: the student too.
        """
        queries = [one.query() for one in frozen]
        said = self.teacher(queries, f"replay-{number:05d}")
        problems = [said.problem] if said.problem is not None else []
        if not said.texts and said.problem is not None:
            return Replay((), (), said.usd, tuple(problems))
        task = self._recipe.task
        own = Said({})
        if student and any(one.student is not None for one in frozen):
            own = self.student(queries)
            problems += [own.problem] if own.problem is not None else []
        self._forget_stores(number)
        return Replay(
            compared(task, frozen, said.texts),
            compared(task, frozen, own.texts, student=True),
            said.usd,
            tuple(problems),
        )

    def _forget_stores(self, number: int) -> None:
        """The answers of earlier replays, which nobody reads any more."""
        for path in (self._folder / STORES).glob("replay-*.jsonl"):
            if path.name < f"replay-{number:05d}.jsonl":
                path.unlink(missing_ok=True)

    def forget_freezing(self) -> None:
        """The stores of a freezing that is done: a new one asks anew."""
        for path in (self._folder / STORES).glob("freeze-*.jsonl"):
            path.unlink(missing_ok=True)

    def freeze(
        self, queries: Sequence[Query], now: float, *, student: bool
    ) -> tuple[list[Frozen], list[str]]:
        """Ask for the first time: the teacher twice, so that its noise is known.

        Raises:
            StillhouseError: the teacher gives no answer.
        """
        first = self.teacher(queries, "freeze-first")
        if not first.texts:
            _, told = first.problem or ("", "the teacher gave no answer")
            raise StillhouseError(f"canaries: {told}")
        again = self.teacher(queries, "freeze-second")
        own = [self.student(queries) if student else Said({}) for _ in range(2)]
        notes = [said.problem[1] for said in (first, again, *own[:1]) if said.problem is not None]
        frozen = [
            Frozen(
                id=query.id,
                messages=query.messages,
                at=now,
                teacher=first.texts[query.id],
                teacher_again=again.texts.get(query.id),
                teacher_model=first.model,
                teacher_revision=first.revision,
                student=own[0].texts.get(query.id),
                student_again=own[1].texts.get(query.id),
                student_name=own[0].model or None,
            )
            for query in queries
            if query.id in first.texts
        ]
        return frozen, notes
