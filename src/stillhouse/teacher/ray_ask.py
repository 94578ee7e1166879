"""Ask a local teacher on a Ray cluster: the same answers, the same store, many machines.

The driver alone writes the store. It sends the chats that lack answers as a Ray Dataset through a
pool of actors, each with its own copy of the teacher, and keeps each batch the moment it comes
back; Ray runs again what was lost with an actor or a node, and what then comes twice is kept once.
Knows queries, store and cluster; what runs in the actors is `ray_worker`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import (
    StillhouseError,
    TeacherError,
    UnanswerableQueryError,
    UserError,
)
from stillhouse.core.optional import require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.teacher import ray_worker
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.futility import Futility
from stillhouse.teacher.keys import AnswerKey, answer_keys
from stillhouse.teacher.ray_cluster import FIELD, RayCluster, last_line
from stillhouse.teacher.ray_worker import Attempts, Labeller, Opening
from stillhouse.teacher.store import AnswerStore

SAY_AFTER_S: Final = 60.0
QUEUED: Final = 2  # tasks of an actor: the one it runs, and the next
Batch = Mapping[str, Any]


class RayTeacher:
    """A teacher that answers on a cluster. Close it when done.

    Opening connects, looks at every node, and opens the teacher once to know its revision.

    Args:
        section: the recipe's teacher, with `ray`.
        tuned: folder of the tuned teacher, which then answers under the original's name.
        progress: where waiting is said.

    Raises:
        UserError: the cluster cannot be reached, or a node lacks the weights or cannot open them.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, section: TeacherSection, tuned: Path | None, progress: Progress) -> None:
        assert section.ray is not None
        self._opening = opening_of(section, tuned)
        self._cluster = RayCluster(section.ray)
        try:
            self._look_at_nodes()
            self._info = self._describe(progress)
        except BaseException:
            self._cluster.close()
            raise

    @property
    def info(self) -> ModelInfo:
        """What the cluster's teacher is."""
        return self._info

    async def aclose(self) -> None:
        """Leave the cluster: the actors end."""
        self._cluster.close()

    async def ask(
        self,
        queries: Sequence[Query],
        sampling: Sampling,
        store: AnswerStore,
        *,
        progress: Progress,
        title: str,
        problem_of: Callable[[Completion], str | None] | None = None,
    ) -> AskResult:
        """Answer every query `sampling.n` times, as `ask.ask` does in this process.

        Killed at any moment, what came back is in the store; the next call asks the rest.

        Raises:
            UserError: none of the first answers can be used, a node turns out to hold other
                weights, or the store is frozen and lacks answers.
            TeacherError: the teacher fails query after query, or the cluster gives up.
            RunFolderError: the store cannot be written.
        """
        started = time.perf_counter()
        keys = answer_keys(self._info, queries, sampling)
        distinct = dict.fromkeys(keys)
        missing: dict[AnswerKey, Query] = {}
        for key, query in zip(keys, queries, strict=True):
            if key not in missing and store.count(key) < sampling.n:
                missing[key] = query
        reasons: dict[AnswerKey, str] = {}
        if missing and store.frozen is None:
            futility = Futility(
                self._info, problem_of, reused=len(distinct) - len(missing), say=progress.say
            )
            stop: StillhouseError | None = futility.of_stored(store, distinct)
            if stop is not None:
                raise stop
            store.introduce(self._info)
            rows = list(missing.items())
            with progress.bar(title, len(rows), "queries") as ticker:
                async with aclosing(self._batches(rows, sampling, store)) as batches:
                    async for batch in batches:
                        stop = await _keep(
                            batch,
                            rows=rows,
                            samples=sampling.n,
                            store=store,
                            reasons=reasons,
                            futility=futility,
                        )
                        if stop is not None:
                            raise stop
                        ticker.advance(len(batch["row"]))
        result = await ask(
            _Unanswered(self._info, reasons), queries, sampling, store, concurrency=1
        )
        return result._replace(
            asked=len(missing),
            reused=len(queries) - len(missing),
            seconds=time.perf_counter() - started,
        )

    def _look_at_nodes(self) -> None:
        problems = self._cluster.on_each_node(ray_worker.look, self._opening)
        bad = {node: problem for node, problem in problems.items() if problem}
        if bad:
            node, problem = next(iter(bad.items()))
            raise UserError(
                f"teacher.model {self._opening.name}",
                f"{problem} on {len(bad)} of {len(problems)} nodes, first {node}",
                action=ray_worker.SAME_PATH,
            )

    def _describe(self, progress: Progress) -> ModelInfo:
        ray = self._cluster.ray
        task = ray.remote(**self._cluster.resources, max_retries=0, max_calls=1)(
            ray_worker.describe
        )
        answer = task.remote(self._opening)
        if not ray.wait([answer], timeout=SAY_AFTER_S)[0]:
            progress.say("waiting for the cluster to open the teacher: nodes may be busy")
        try:
            described: ray_worker.Described = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise UserError(
                f"teacher.model {self._opening.name}",
                f"cannot be opened on the cluster: {last_line(error)}",
            ) from error
        if described.info is None:
            raise UserError("teacher.model", described.problem)
        return described.info

    async def _batches(
        self, rows: Sequence[tuple[AnswerKey, Query]], sampling: Sampling, store: AnswerStore
    ) -> AsyncGenerator[Batch, None]:
        """What the cluster gives, batch by batch, in no order.

        Raises:
            TeacherError: it gave up.
        """
        ray = self._cluster.ray
        dataset = self._dataset(rows, sampling, store)
        source = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
        try:
            async with aclosing(_from_thread(iter(source))) as batches:
                async for batch in batches:
                    yield batch
        except ray.exceptions.RayTaskError:
            raise  # a bug, with the traceback of the node
        except ray.exceptions.RayError as error:
            raise TeacherError(
                f"the Ray cluster gave up: {last_line(error)}; every answer so far is kept: run "
                "the same command again once it is mended"
            ) from error

    def _dataset(
        self, rows: Sequence[tuple[AnswerKey, Query]], sampling: Sampling, store: AnswerStore
    ) -> Any:
        """The chats, a block a task, through the actors."""
        ray, section = self._cluster.ray, self._cluster.section
        arrow = require("pyarrow", "ray", FIELD)
        blocks = []
        for first in range(0, len(rows), section.batch_size):
            part = rows[first : first + section.batch_size]
            columns = {
                "row": list(range(first, first + len(part))),
                "query": [query.to_json() for _, query in part],
                "have": [store.count(key) for key, _ in part],
            }
            blocks.append(ray.put(arrow.table(columns)))
        dataset = ray.data.from_arrow_refs(blocks)
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        actors = min(section.actors, len(blocks))
        attempts = self._cluster.beside_the_driver(Attempts)
        return dataset.map_batches(
            Labeller,
            fn_constructor_args=(attempts, self._opening, sampling, self._info.revision),
            batch_size=section.batch_size,
            batch_format="numpy",
            # One is enough to go on with: a cluster that lost a node may have room for no more.
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=actors,
                initial_size=actors,
                max_tasks_in_flight_per_actor=QUEUED,
            ),
            **self._cluster.resources,
        )


def opening_of(section: TeacherSection, tuned: Path | None) -> Opening:
    """How nodes open the teacher: a path of this machine is made absolute, for all of them."""
    model, path = section.model, None
    if tuned is not None:
        path = tuned.absolute()
    elif section.kind in ("hf", "gguf"):
        here = Path(section.name).expanduser()
        looks_so = section.name.startswith((".", "/", "~")) or here.suffix == ".gguf"
        if section.kind == "gguf" or looks_so or here.exists():
            path = here.absolute()
            model = f"{section.kind}:{path}"
    opened = section.model_copy(update={"model": model, "ray": None, "tune": None})
    return Opening(
        section=opened.model_dump_json(),
        name=section.model,
        tuned=None if tuned is None else str(path),
        path=None if path is None else str(path),
    )


class _Unanswered:
    """The teacher once the cluster is done: all it gave is in the store, and no more comes."""

    def __init__(self, info: ModelInfo, reasons: Mapping[AnswerKey, str]) -> None:
        self.info = info
        self._reasons = reasons

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        raise UnanswerableQueryError(f"query {query.id}: the cluster is done")

    def recorded(self, key: AnswerKey) -> Sequence[Completion]:
        return ()

    def why_none(self, key: AnswerKey) -> str:
        return self._reasons[key]

    async def aclose(self) -> None:
        pass


async def _keep(
    batch: Batch,
    *,
    rows: Sequence[tuple[AnswerKey, Query]],
    samples: int,
    store: AnswerStore,
    reasons: dict[AnswerKey, str],
    futility: Futility,
) -> StillhouseError | None:
    """Make a batch durable, with one fsync; gives the error to stop by, if any."""
    puts = []
    stop: StillhouseError | None = None
    columns = (batch[name] for name in ("row", "kind", "answers", "detail"))
    for row, kind, answers, detail in zip(*columns, strict=True):
        key, _ = rows[int(row)]
        if kind == ray_worker.ANSWERED:
            if store.count(key) >= samples:
                continue  # computed again after its node was lost
            completions = [Completion.model_validate_json(line) for line in answers.split("\n")]
            puts.append(store.put(key, completions, 0.0, 0.0))
            futility.answered()
            stop = stop or futility.of_answers(completions)
        elif kind == ray_worker.UNUSABLE_NODE:
            stop = stop or UserError("teacher", str(detail))
        else:
            reasons[key] = str(detail)
            own = kind == ray_worker.QUERY_FAILED
            error = UnanswerableQueryError(detail) if own else TeacherError(detail)
            stop = stop or futility.of_failure(error, len(reasons))
    await asyncio.gather(*puts)
    return stop


async def _from_thread(items: Iterator[Batch]) -> AsyncGenerator[Batch, None]:
    """The items of a blocking iterator, taken in a thread: an interrupt is not held up by it."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Batch | BaseException | None] = asyncio.Queue()
    room, stopped = threading.Semaphore(1), threading.Event()

    def tell(item: Batch | BaseException | None) -> None:
        if not stopped.is_set():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    def take() -> None:
        try:
            for item in items:
                tell(item)
                room.acquire()
                if stopped.is_set():
                    return
            tell(None)
        except BaseException as error:
            tell(error)

    threading.Thread(target=take, name="ray-batches", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            room.release()
    finally:
        stopped.set()
        room.release()
