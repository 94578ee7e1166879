"""From the recipe to asking by batch, and from its outcome to the results of asking.

What cannot go by batch is refused here, before anything is sent. Batches that an earlier start left
running are collected even where the recipe now asks live: their answers are paid for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.core.errors import UserError
from stillhouse.core.money import batch_share
from stillhouse.core.optional import late
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.api_client import ApiCompleter
from stillhouse.teacher.ask import NO_ANSWER, AskResult
from stillhouse.teacher.batch_ask import BatchAsking, Clock
from stillhouse.teacher.batch_journal import JOURNAL, NOTHING_HELD, BatchJournal, Held
from stillhouse.teacher.batch_provider import BatchProvider
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.revisions import Revisions
from stillhouse.teacher.store import AnswerKey, AnswerStore, answer_key


@dataclass(slots=True)
class BatchResult:
    """What asking by batch brought. `held` is what batches open or lost may cost.

    `failures` are queries that no asking would help; `usd_by_key` is what was paid now for each
    that got an answer, `batched` how many of them did so in a batch.
    """

    failures: dict[AnswerKey, str] = field(default_factory=dict)
    usd_by_key: dict[AnswerKey, float] = field(default_factory=dict)
    batched: int = 0
    seconds: float = 0.0
    held: Held = NOTHING_HELD

    def to_ask(
        self, completer: Completer, queries: Sequence[Query], sampling: Sampling
    ) -> list[Query]:
        """The queries without those that failed for good."""
        if not self.failures:
            return list(queries)
        return [q for q in queries if answer_key(completer.info, q, sampling) not in self.failures]

    def added_to(
        self, result: AskResult, completer: Completer, queries: Sequence[Query], sampling: Sampling
    ) -> AskResult:
        """The result of asking `queries` live, with what the batches did for them."""
        if not self.failures and not self.usd_by_key:
            return result
        keys = {answer_key(completer.info, query, sampling): query for query in queries}
        now = [key for key in keys if key in self.usd_by_key]
        failures = tuple(
            Rejection(
                query_id=query.id,
                reason=NO_ANSWER,
                detail=self.failures[key],
                messages=query.messages,
            )
            for query in queries
            if (key := answer_key(completer.info, query, sampling)) in self.failures
        )
        failed = sum(key in self.failures for key in keys)
        return result._replace(
            failures=failures + result.failures,
            usd=result.usd + sum(self.usd_by_key[key] for key in now),
            asked=result.asked + len(now) + failed,
            reused=max(0, result.reused - len(now)),
        )


def open_provider(completer: Completer) -> BatchProvider:
    """The batches of a live client's provider.

    Raises:
        UserError: the teacher has none.
    """
    if not isinstance(completer, ApiCompleter):
        raise UserError(
            "teacher.batch",
            f"{completer.info.name} has no batches",
            action="leave teacher.batch out: the queries are then asked live",
        )
    opener: Callable[..., BatchProvider] = (
        late("stillhouse.teacher.batch_openai").OpenAIBatches
        if completer.provider == "openai"
        else late("stillhouse.teacher.batch_anthropic").AnthropicBatches
    )
    return opener(completer, completer.settings)


async def check_batches(completer: Completer) -> None:
    """Ask the teacher's server whether it has batches; for planning, before anything is sent.

    Raises:
        UserError: it has none.
        TeacherFailure: it cannot be reached, or refuses the key.
    """
    await open_provider(completer).marker()


async def ask_batches(
    completer: Completer,
    queries: Sequence[Query],
    sampling: Sampling,
    store: AnswerStore,
    folder: Path,
    *,
    section: TeacherSection,
    prices: PricesSection,
    progress: Progress,
    problem_of: Callable[[Completion], str | None] | None = None,
    clock: Clock | None = None,
) -> BatchResult:
    """Answer queries by batch into the store; without `teacher.batch`, only collect what runs.

    Args:
        completer: the teacher, as it is asked live.
        queries: all that are to be asked.
        sampling: how answers are drawn.
        store: where answers are kept.
        folder: where the journal of batches is; made when the first is sent.
        section: the recipe's teacher.
        prices: the recipe's price overrides.
        progress: where the bar and the lines go.
        problem_of: why an answer cannot be used.
        clock: for tests.

    Raises:
        BudgetError, UserError, TeacherError: see `BatchAsking.run`.
    """
    wanted = {answer_key(completer.info, q, sampling): q for q in reversed(queries)}
    missing = {
        key: query
        for key, query in reversed(wanted.items())
        if section.batch is not None and len(store.get(key)) < sampling.n
    }
    if not missing and not (folder / JOURNAL).exists():
        return BatchResult()
    started = time.perf_counter()
    with BatchJournal(folder) as journal:
        info = completer.info
        teacher = f"{info.name}@{info.revision}"
        running = journal.open_of(teacher)
        others = {b.intended.teacher for b in journal.open_of_others(teacher)}
        for other in sorted(others):
            progress.say(f"batches of {other} are still open: run with that teacher to fetch them")
        if not missing and not running:
            return BatchResult(held=journal.held)
        spent = store.paid_usd + store.unpriced_usd(prices)
        revisions = Revisions(info.name, stop=section.on_revision_change == "stop")
        for key in wanted:
            revisions.add(store.revisions_of(key))
        asking = BatchAsking(
            provider=open_provider(completer),
            teacher=teacher,
            asked_as=section,
            sampling=sampling,
            store=store,
            journal=journal,
            budget=Budget(section.budget_usd, spent, info, prices),
            revisions=revisions,
            prices=prices,
            share=batch_share(prices, info.name),
            progress=progress,
            clock=clock or Clock(),
            problem_of=problem_of,
        )
        with progress.bar("asking by batch", len(missing) or None, "queries") as ticker:
            await asking.run(missing, ticker)
        return BatchResult(
            asking.failures,
            asking.usd_by_key,
            asking.batched,
            time.perf_counter() - started,
            journal.held,
        )
