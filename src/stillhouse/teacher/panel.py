"""Ask several teachers and ensembles the same queries; each distinct teacher is opened once.

One that fails is set aside with its reason, and the others are asked all the same. Knows sections,
the store and completers; does not know what an answer is worth.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from stillhouse.core.errors import BudgetError, RunFolderError, StillhouseError, TeacherError
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compare import OWN, CompareSection
from stillhouse.core.recipe_ensemble import ENSEMBLE, Combine, combine_for
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.core.records import Query
from stillhouse.models.completer import Completer, ModelInfo, Sampling
from stillhouse.teacher.answers import problem_of
from stillhouse.teacher.ask import AskResult
from stillhouse.teacher.ask_as import ask_as
from stillhouse.teacher.batch_journal import FOLDER, held_by_batches
from stillhouse.teacher.build import open_teacher, teacher_sampling
from stillhouse.teacher.ensemble import Ensemble, Member, combine_results
from stillhouse.teacher.store import AnswerStore

T = TypeVar("T")
Timer = Callable[[Completer, Sampling], Awaitable[T]]


class Candidate(NamedTuple):
    """A teacher or an ensemble that takes part. `how` is `None` for a single teacher.

    `members` are (name, section); a single teacher has itself alone.
    """

    name: str
    model: str
    members: tuple[tuple[str, TeacherSection], ...]
    weights: tuple[float, ...]
    how: Combine | None


class Answered(NamedTuple, Generic[T]):
    """What one candidate said to each set, and how long a local teacher took (else `None`)."""

    candidate: Candidate
    info: ModelInfo
    results: list[AskResult]
    timing: T | None
    members: tuple[Answered[T], ...] = ()


class Panel(NamedTuple, Generic[T]):
    """Who answered, and why the others did not; both by name."""

    answered: dict[str, Answered[T]]
    failed: dict[str, str]


def candidates_of(recipe: Recipe, compare: CompareSection) -> list[Candidate]:
    """The recipe's own teacher, then the compared teachers, then the ensembles."""
    own, kind = recipe.teacher, recipe.task.kind
    everyone = {OWN: own, **compare.teachers}
    found: list[Candidate] = []
    for name, section in everyone.items():
        if section.members:
            members = tuple(
                (f"{name}.{number}", member)
                for number, member in enumerate(section.member_sections)
            )
            how: Combine | None = combine_for(kind, section.combine)
            found.append(Candidate(name, section.title(kind), members, section.weights, how))
        else:
            found.append(Candidate(name, section.model, ((name, section),), (1.0,), None))
    for name, ensemble in compare.ensembles.items():
        how = combine_for(kind, ensemble.combine)
        title = f"{ENSEMBLE} of {', '.join(ensemble.of)} ({how})"
        members = tuple((one, everyone[one]) for one in ensemble.of)
        found.append(Candidate(name, title, members, ensemble.shares, how))
    return found


async def check_openable(recipe: Recipe, candidates: Sequence[Candidate]) -> None:
    """Open and close every teacher behind an API, before any is paid.

    Raises:
        UserError: a key or URL is missing or cannot be used.
    """
    for section in dict.fromkeys(s for one in candidates for _, s in one.members):
        if not section.local:
            await open_teacher(section, recipe.prices).aclose()


def budget_left(
    recipe: Recipe, compare: CompareSection, candidates: Sequence[Candidate], store: Path
) -> float | None:
    """The comparison's budget without what batches hold of it; `store` is the store's folder.

    Raises:
        UserError: a teacher that is compared has batches in flight.
    """
    held = held_by_batches(store / FOLDER)
    held.refuse_in_flight([section.model for one in candidates for _, section in one.members])
    return held.budget_left(compare.budget_usd or recipe.teacher.budget_usd)


class Asking(NamedTuple, Generic[T]):
    """How a panel is asked.

    `tuned` is the recipe's own teacher, where it was tuned; `sets` are queries by title;
    `budget_usd` limits what all answers in the store may have cost; `timer` times an opened local
    teacher.
    """

    recipe: Recipe
    tuned: Path | None
    store: AnswerStore
    sets: Mapping[str, Sequence[Query]]
    progress: Progress
    budget_usd: float | None
    timer: Timer[T]


async def ask_panel(to: Asking[T], candidates: Sequence[Candidate]) -> Panel[T]:
    """Ask all candidates all sets; what one shares with another is asked once.

    Raises:
        BudgetError, RunFolderError: no teacher could go on.
        StillhouseError: the first candidate's, where none could be asked.
    """
    asked: dict[TeacherSection, Answered[T] | StillhouseError] = {}
    panel: Panel[T] = Panel({}, {})
    first: StillhouseError | None = None
    for candidate in candidates:
        try:
            panel.answered[candidate.name] = await _candidate(to, candidate, asked)
        except (BudgetError, RunFolderError):
            raise
        except StillhouseError as error:
            first = first or error
            panel.failed[candidate.name] = str(error)
            to.progress.say(f"{candidate.name} is left out: {error}")
    if not panel.answered:
        assert first is not None, "there is at least one candidate"
        raise first
    return panel


async def _candidate(
    to: Asking[T],
    candidate: Candidate,
    asked: dict[TeacherSection, Answered[T] | StillhouseError],
) -> Answered[T]:
    found: list[Answered[T]] = []
    for name, section in candidate.members:
        if section not in asked:
            alone = Candidate(name, section.model, ((name, section),), (1.0,), None)
            try:
                asked[section] = await _ask_one(to, alone)
            except (BudgetError, RunFolderError):
                raise
            except StillhouseError as error:
                asked[section] = error
        known = asked[section]
        if isinstance(known, StillhouseError):
            if candidate.how is None:
                raise known
            raise TeacherError(f"its member {name} could not be asked ({known})")
        found.append(known)
    if candidate.how is None:
        return found[0]
    members = zip(candidate.members, candidate.weights, found, strict=True)
    ensemble = Ensemble(
        f"{ENSEMBLE}:{candidate.name}",
        to.recipe.task,
        candidate.how,
        tuple(Member(section, weight, one.info) for (_, section), weight, one in members),
    )
    results = [
        combine_results(ensemble, [one.results[number] for one in found], queries)
        for number, queries in enumerate(to.sets.values())
    ]
    return Answered(candidate, ensemble.info, results, None, tuple(found))


async def _ask_one(to: Asking[T], candidate: Candidate) -> Answered[T]:
    recipe, section = to.recipe, candidate.members[0][1]
    own = to.tuned if section is recipe.teacher else None
    completer = open_teacher(section, recipe.prices, own)
    async with aclosing(completer):
        sampling = teacher_sampling(recipe.model_copy(update={"teacher": section}), completer.info)
        results: list[AskResult] = []
        for title, queries in to.sets.items():
            result = await ask_as(
                section,
                completer,
                queries,
                sampling,
                to.store,
                budget_usd=to.budget_usd,
                prices=recipe.prices,
                progress=to.progress,
                title=f"{candidate.name}: {title}",
                problem_of=None if results else partial(problem_of, recipe.task),
            )
            if queries and not result.completions_by_query:
                raise TeacherError(f"no query got an answer: {result.failures[0].detail}")
            results.append(result)
        timing = await to.timer(completer, sampling) if completer.info.local else None
        return Answered(candidate, completer.info, results, timing)
