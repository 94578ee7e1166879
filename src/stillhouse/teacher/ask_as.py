"""Asking as a teacher's section of the recipe says: the one place that maps its keys to `ask`'s.

Knows the section; neither stages nor which budget is whose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.ask import AskResult, ask
from stillhouse.teacher.build import queries_in_flight
from stillhouse.teacher.store import AnswerStore


async def ask_as(
    section: TeacherSection,
    completer: Completer,
    queries: Sequence[Query],
    sampling: Sampling,
    store: AnswerStore,
    *,
    budget_usd: float | None,
    prices: PricesSection,
    progress: Progress,
    title: str,
    problem_of: Callable[[Completion], str | None] | None = None,
) -> AskResult:
    """As `ask`, with concurrency, limits of time and what a new revision means from `section`.

    The budget is the caller's to give: what batches hold is taken off it.
    """
    return await ask(
        completer,
        queries,
        sampling,
        store,
        concurrency=queries_in_flight(section, completer.info),
        budget_usd=budget_usd,
        prices=prices,
        progress=progress,
        title=title,
        problem_of=problem_of,
        deadline_s=section.deadline_s,
        outage_s=section.outage_s,
        stop_on_revision_change=section.on_revision_change == "stop",
    )
