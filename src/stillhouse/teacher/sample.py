"""A sample of the traffic, asked through the run's own store: what it costs, takes and holds.

Its answers are kept where the run looks for them, so none is paid for twice. Its own cost is said
first and must fit the budget. Knows queries and completers; extrapolates nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query, message_key
from stillhouse.core.split import unit_hash
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.batch_journal import Held
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.rate_limits import RateLimits, rate_limits
from stillhouse.teacher.store import AnswerStore, answer_key

# A local teacher is timed piece by piece: one figure would have no interval.
PIECES: Final = 8


class Answered(NamedTuple):
    """One query with its answers, and what one request for it took (`None`: not measured)."""

    query: Query
    completions: tuple[Completion, ...]
    requests: int

    @property
    def latency_s(self) -> float | None:
        """How long the query kept a worker busy."""
        found = [c.latency_ms for c in self.completions if c.latency_ms is not None]
        return self.requests * sum(found) / len(found) / 1000.0 if found else None


class Timed(NamedTuple):
    """A piece of work of a local teacher: bytes of its prompts, and seconds."""

    size: int
    seconds: float


class Sample(NamedTuple):
    """What is known of the teacher's answers. `usd` was paid now, `worst_usd` was said first."""

    answered: tuple[Answered, ...]
    drawn: bool
    asked: int = 0
    failures: int = 0
    usd: float = 0.0
    worst_usd: float = 0.0
    pieces: tuple[Timed, ...] = ()
    limits: RateLimits = RateLimits()


def size_of(query: Query) -> int:
    """Bytes of a query's messages, at least 1: what its tokens are in proportion to."""
    return max(1, sum(len(message.content.encode("utf-8")) for message in query.messages))


def distinct_chats(queries: Sequence[Query]) -> list[Query]:
    """The first query of each chat: what is asked."""
    first: dict[str, Query] = {}
    for query in queries:
        first.setdefault(message_key(query.messages), query)
    return list(first.values())


def draw(queries: Sequence[Query], count: int, seed: int) -> list[Query]:
    """`count` queries by the hash of seed and id: a larger sample holds the smaller one."""
    order = sorted(queries, key=lambda query: (unit_hash(query.id, seed), query.id))
    return order[:count]


def stored(
    queries: Sequence[Query], info: ModelInfo, sampling: Sampling, store: AnswerStore, requests: int
) -> tuple[Answered, ...]:
    """The queries all of whose answers are in the store."""
    found = []
    for query in queries:
        completions = store.get(answer_key(info, query, sampling))
        if len(completions) >= sampling.n:
            found.append(Answered(query, completions[: sampling.n], requests))
    return tuple(found)


async def ask_sample(  # noqa: PLR0917 - what asking needs
    recipe: Recipe,
    completer: Completer,
    sampling: Sampling,
    store: AnswerStore,
    chosen: Sequence[Query],
    held: Held,
    progress: Progress,
) -> Sample:
    """Ask the chosen queries, those in the store excepted.

    Raises:
        UserError: it can cost more than what is left of teacher.budget_usd, or batches of this
            teacher are in flight: what is in them would be paid for twice.
        StillhouseError: as `ask`.
    """
    info, section = completer.info, recipe.teacher
    held.refuse_in_flight([info.name])
    new = [q for q in chosen if len(store.get(answer_key(info, q, sampling))) < sampling.n]
    worst = _worst_usd(recipe, info, sampling, store, held.usd, new)
    if info.local:
        progress.say(f"sample: asking {len(new)} queries of {info.name}, on this machine")
    else:
        progress.say(f"sample: asking {len(new)} queries of {info.name}, at most ${worst:.4f}")
    parts = _pieces(new) if info.local else [new]
    pieces: list[Timed] = []
    usd, failures = 0.0, 0
    for part in parts:
        if not part:
            continue
        started = time.perf_counter()
        asked = await ask_as(
            section,
            completer,
            part,
            sampling,
            store,
            budget_usd=held.budget_left(section.budget_usd),
            prices=recipe.prices,
            progress=progress,
            title="sampling the teacher",
        )
        pieces.append(Timed(sum(map(size_of, part)), time.perf_counter() - started))
        usd += asked.usd
        failures += len(asked.failures)
    once = int(getattr(completer, "samples_per_request", sampling.n))
    requests = 1 if info.local else -(-sampling.n // max(1, once))
    return Sample(
        answered=stored(chosen, info, sampling, store, requests),
        drawn=True,
        asked=len(new),
        failures=failures,
        usd=usd,
        worst_usd=worst,
        pieces=tuple(pieces) if info.local else (),
        limits=rate_limits(getattr(completer, "headers", {})),
    )


def _pieces(queries: Sequence[Query]) -> list[list[Query]]:
    """Pieces of like make-up; the first is small, for the model warms up on it."""
    if len(queries) < 2 * PIECES:
        return [[query] for query in queries] if len(queries) < PIECES else _dealt(queries, PIECES)
    warm = max(1, len(queries) // (4 * PIECES))
    return [list(queries[:warm]), *_dealt(queries[warm:], PIECES)]


def _dealt(queries: Sequence[Query], hands: int) -> list[list[Query]]:
    return [list(queries[start::hands]) for start in range(hands)]


def _worst_usd(  # noqa: PLR0917 - what a sum needs
    recipe: Recipe,
    info: ModelInfo,
    sampling: Sampling,
    store: AnswerStore,
    held_usd: float,
    new: Sequence[Query],
) -> float:
    """The most that the sample can cost.

    Raises:
        UserError: it does not fit the budget; says how many would.
    """
    limit = recipe.teacher.budget_usd
    if info.local:
        return 0.0
    spent = store.paid_usd + store.unpriced_usd(recipe.prices) + held_usd
    budget = Budget(limit, spent, info, recipe.prices)
    worst, fits = 0.0, 0
    for query in new:
        worst += budget.worst_usd(query, sampling, requests=sampling.n)
        fits += limit is None or spent + worst <= limit
    if fits < len(new):
        action = f"give --sample {fits} or raise" if fits >= 2 else "raise"
        raise UserError(
            "--sample",
            f"{len(new)} new queries can cost up to ${worst:.4f}, and ${spent:.4f} of "
            f"teacher.budget_usd ${limit or 0:.4f} is spent",
            action=f"{action} teacher.budget_usd",
        )
    return worst
