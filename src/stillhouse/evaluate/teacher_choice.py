"""Which teacher to take: the cheapest that is not significantly worse than the best, with reasons.

An ensemble costs the sum of its members, so it is taken only where its gain over each cheaper
teacher is significant. Knows results; computes no statistic.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from stillhouse.core.statistics import Interval
from stillhouse.evaluate.summary import points, share, usd
from stillhouse.evaluate.teachers import By, Difference, Recommendation, TeacherResult

JUDGED_BY: Final[Mapping[str, str]] = {
    "teacher": "its answers to the labelled sample",
    "tfidf": "what a linear student learns from its answers (TF-IDF probe)",
    "recipe": "what the recipe's student learns from its answers (probe)",
}


def judged_by(teachers: Mapping[str, TeacherResult], telling: Collection[str]) -> By:
    """The measure nearest to what is wanted, a good student, that says something.

    A probe counts only where it is `telling`: where some probe student learnt more than to say the
    most frequent label. A teacher of whose answers no student could be made is then no choice.
    """
    kinds: tuple[By, By] = ("recipe", "tfidf")
    for by in kinds:
        if by in telling and any(by in result.probes for result in teachers.values()):
            return by
    return "teacher"


def eligible(teachers: Mapping[str, TeacherResult], by: By) -> list[str]:
    """The teachers that have the measure which decides, in order."""
    return [name for name, t in teachers.items() if by == "teacher" or by in t.probes]


def score_by(result: TeacherResult, by: By) -> Interval:
    """The score that decides."""
    return result.score if by == "teacher" else result.probes[by].score


def recommend(
    teachers: Mapping[str, TeacherResult],
    differences: Sequence[Difference],
    sections: Mapping[str, Mapping[str, JsonValue]],
    *,
    by: By,
    margin: float,
    own: Sequence[Difference] = (),
) -> Recommendation:
    """Choose a teacher.

    Where probe students decide and cannot tell some teachers apart, the teachers' own answers do:
    a cheaper one whose answers are significantly worse is passed over.

    Args:
        teachers: in the order of the recipe.
        differences: all pairs of them, of the measure that decides.
        own: all pairs by their own answers, where probes decide.
        sections: the recipe's teacher section for each.
        by: the measure that decides.
        margin: absolute; a choice is firm where it is surely not worse than the best by as much.

    Raises:
        ValueError: no teachers.
    """
    names = eligible(teachers, by)
    if not names:
        raise ValueError("no teacher to choose from")
    scores = {name: score_by(teachers[name], by) for name in names}

    def price(name: str) -> tuple[bool, float]:
        cost = teachers[name].speed.usd_per_1k
        return (cost is None, math.inf if cost is None else cost)

    best = min(names, key=lambda name: (-scores[name].estimate, price(name)))
    against = {name: _between(differences, name, best) for name in names if name != best}
    level = [n for n in names if n == best or not against[n][1].significant]
    kept = level if by == "teacher" else _by_own_answers(teachers, own, level)
    chosen = min(kept, key=lambda name: (price(name), -scores[name].estimate))
    reasons = [f"judged by {JUDGED_BY[by]}: {chosen} scores {share(scores[chosen])}"]
    firm = True
    if chosen == best:
        reasons.append(_why_best(best, names, kept, teachers))
    else:
        apart, pair = against[chosen]
        reasons.append(
            f"{best} scores highest, {share(scores[best])}, but {chosen} is not significantly "
            f"worse: {points(apart)}, p = {pair.p_holm:.3g} after Holm over "
            f"{len(differences)} pairs"
        )
        reasons.append(
            f"{chosen} costs {usd(teachers[chosen].speed.usd_per_1k)} per 1,000 answers, {best} "
            f"{usd(teachers[best].speed.usd_per_1k)}"
        )
        firm = apart.low > -margin
        if not firm:
            reasons.append(
                f"this sample cannot rule out that {chosen} is {-100 * apart.low:.1f} points worse "
                f"than {best}, beyond the margin of {100 * margin:g}: more labelled queries would "
                "make it firm"
            )
    passed = [name for name in level if name not in kept]
    if passed:
        reasons.append(
            f"the students of {', '.join(passed)} cannot be told apart from the best, but their "
            f"own answers are significantly worse than others': "
            + ", ".join(f"{name} {share(teachers[name].score)}" for name in passed)
        )
    reasons.extend(_ensembles(teachers, scores, differences, chosen))
    out = [name for name in teachers if name not in names]
    if out:
        reasons.append(
            f"no student could be made of the answers of {', '.join(out)}: see the notes"
        )
    unknown = [name for name in level if teachers[name].speed.usd_per_1k is None]
    if unknown:
        reasons.append(
            f"what {', '.join(unknown)} costs is not known and counts as most: give prices.models"
        )
    return Recommendation(
        teacher=chosen,
        by=by,
        best=best,
        not_worse=tuple(level),
        firm=firm,
        reasons=tuple(reasons),
        section=dict(sections[chosen]),
    )


def _by_own_answers(
    teachers: Mapping[str, TeacherResult], own: Sequence[Difference], level: Sequence[str]
) -> list[str]:
    """Those of `level` whose own answers are not significantly worse than the best of theirs."""
    top = max(level, key=lambda name: teachers[name].score.estimate)
    return [name for name in level if name == top or not _between(own, name, top)[1].significant]


def _why_best(
    best: str, names: Sequence[str], level: Sequence[str], teachers: Mapping[str, TeacherResult]
) -> str:
    cost = usd(teachers[best].speed.usd_per_1k)
    if len(names) == 1:
        return f"{best} is the only teacher that could be compared"
    if len(level) == 1:
        return f"no other teacher is as good; it costs {cost} per 1,000 answers"
    others = ", ".join(name for name in level if name != best)
    return (
        f"{best} scores highest and is cheapest, at {cost} per 1,000 answers, of those that cannot "
        f"be told apart from it ({others})"
    )


def _ensembles(
    teachers: Mapping[str, TeacherResult],
    scores: Mapping[str, Interval],
    differences: Sequence[Difference],
    chosen: str,
) -> list[str]:
    """What each ensemble gains over its best member, and whether that is more than chance."""
    lines: list[str] = []
    for name, result in teachers.items():
        if name not in scores:
            continue
        members = [member for member in result.members if member in scores]
        if not members:
            continue
        best = max(members, key=lambda member: scores[member].estimate)
        apart, pair = _between(differences, name, best)
        verdict = "significant" if pair.significant else "not significant"
        if pair.significant and apart.estimate < 0:
            verdict = "significantly worse"
        lines.append(
            f"ensemble {name} against its best member {best}: {points(apart)}, "
            f"p = {pair.p_holm:.3g} after Holm: {verdict}"
            + (
                ""
                if name == chosen or not pair.significant or apart.estimate < 0
                else "; a cheaper teacher is as good as it"
            )
        )
    return lines


def _between(differences: Sequence[Difference], a: str, b: str) -> tuple[Interval, Difference]:
    """a minus b, and the pair it comes from."""
    for pair in differences:
        if (pair.a, pair.b) == (a, b):
            return pair.difference, pair
        if (pair.a, pair.b) == (b, a):
            d = pair.difference
            return Interval(estimate=-d.estimate, low=-d.high, high=-d.low, n=d.n), pair
    raise ValueError(f"{a} and {b} were not compared")
