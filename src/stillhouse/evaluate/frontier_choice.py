"""Which student to take: the cheapest whose lower bound passes the gate, and how sure that is.

Of several students tried on one set of samples, one may pass by luck. So each is also held to a
bound at a confidence corrected for their number (Bonferroni: 1 - alpha / K), by which the chance
that any inferior one passes is at most alpha. Knows results; trains, times and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.core.statistics import Interval
from stillhouse.evaluate import summary
from stillhouse.evaluate.studies import SizedStudent


def corrected(confidence: float, students: int) -> float:
    """The confidence of each of so many bounds, for all of them to hold at `confidence`."""
    return 1 - (1 - confidence) / students


def cheapest_first(student: SizedStudent) -> tuple[float, int]:
    """Orders students by USD a query, then by parameters; unknown cost last."""
    cost = student.usd_per_1k
    return (float("inf") if cost is None else cost, student.parameters or 0)


def efficient(students: Sequence[SizedStudent]) -> list[SizedStudent]:
    """The same students, each told whether another is both cheaper and at least as good."""
    return [
        one.model_copy(
            update={
                "efficient": not any(
                    cheapest_first(other) < cheapest_first(one)
                    and other.score.estimate >= one.score.estimate
                    for other in students
                )
            }
        )
        for one in students
    ]


def choose(students: Sequence[SizedStudent]) -> SizedStudent | None:
    """The cheapest that passes its gate; `None` where none does."""
    passing = [one for one in students if one.verdict == "pass"]
    return min(passing, key=cheapest_first, default=None)


def verdict_of(
    students: Sequence[SizedStudent],
    chosen: SizedStudent | None,
    teacher: Interval,
    confidence: float,
    margin: float,
) -> tuple[str, ...]:
    """The choice in sentences, the most important first."""
    count, points = len(students), f"{100 * margin:g}"
    if chosen is None:
        nearest = max(students, key=lambda one: one.difference.low)
        if nearest.difference.low > -margin:
            return (
                f"take none of them: {nearest.name} is within {points} points of the teacher "
                f"({100 * teacher.estimate:.1f}%), but {_unfit(nearest)}",
            )
        lines = [
            f"take none of them: no student's lower bound is within {points} points of the teacher "
            f"({100 * teacher.estimate:.1f}%)",
            f"the nearest is {nearest.name}, {summary.points(nearest.difference)} against it",
        ]
        if nearest.difference.estimate > -margin:
            lines.append(
                "its estimate is within the margin: more samples to judge on may settle it"
            )
        else:
            lines.append(
                "its estimate lies outside the margin too: a larger student, more answers "
                "(stillhouse curve says how many) or other settings (stillhouse tune) are next"
            )
        return tuple(lines)
    lines = [
        f"take {chosen.name}: {summary.share(chosen.score)} against the teacher's "
        f"{summary.share(teacher)}"
        + (f", {summary.times(chosen.speedup)} as fast" if chosen.speedup else "")
        + (f", at {summary.usd(chosen.usd_per_1k)} per 1,000 queries" if chosen.usd_per_1k else ""),
        f"it is the cheapest of {count} whose lower bound ({100 * chosen.difference.low:+.1f} "
        f"points) is within {points} points of the teacher",
    ]
    if count > 1:
        level = f"{100 * corrected(confidence, count):.3g}%"
        lines.append(
            f"of {count} students one may pass by luck: at {level}, which makes up for that, its "
            f"bound is {100 * chosen.corrected_low:+.1f} points and "
            + (
                "passes too"
                if chosen.passes_corrected
                else "does not pass, so prove it on further samples or on a share of the live "
                "traffic before it answers all"
            )
        )
    if chosen.trainings:
        first = chosen.trainings[0]
        lines.append(
            f"that is the mean of {len(chosen.trainings)} trainings, which differ by "
            f"{100 * (chosen.deviation or 0):.1f} points (standard deviation); the student to take "
            f"is the first of them, fixed beforehand: {summary.share(first.score)}, and it passes "
            "by itself too"
        )
    better = [
        one
        for one in students
        if one.name != chosen.name and one.score.estimate > chosen.score.estimate
    ]
    if better:
        best = max(better, key=lambda one: one.score.estimate)
        lines.append(
            f"{best.name} scores {summary.share(best.score)}"
            + (
                ""
                if best.usd_per_1k is None or not chosen.usd_per_1k
                else f" at {summary.times(best.usd_per_1k / chosen.usd_per_1k)} the cost"
            )
        )
    if chosen.break_even_queries is not None:
        lines.append(
            f"answers and training are paid back after {chosen.break_even_queries:,} queries"
        )
    return tuple(lines)


def _unfit(student: SizedStudent) -> str:
    """Why a student whose bound is within the margin does not pass all the same."""
    if student.trainings and student.trainings[0].verdict == "fail":
        first = student.trainings[0]
        return (
            f"only in the mean of its {len(student.trainings)} trainings: the first of them, the "
            f"one to take, scores {summary.share(first.score)} and does not pass by itself"
        )
    if student.folder != student.name:
        return "as a compressed form it is refused by its own gate: its table.json says why"
    return "it was judged on too few samples for such a bound to be relied on"
