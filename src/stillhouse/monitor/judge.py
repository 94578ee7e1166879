"""One window judged: its figures, its segments, and what was found in them.

Where a window has too few samples for a figure, it is pooled with those before it, back to a limit,
of the same student. What is tested is of the `random` population: pairs whose units were drawn by
hash. Knows rows and references; no file, no clock, no drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from stillhouse.monitor.bounds import Tested, corrected
from stillhouse.monitor.data_checks import of_window, problem
from stillhouse.monitor.figures import (
    agreement_figures,
    calibration_figures,
    health_figures,
    share_figure,
)
from stillhouse.monitor.pools import RANDOM, Kept, Pool, Pools, Setting, items_of, keep
from stillhouse.monitor.records import Figure, Population, SegmentFigures, WindowReport
from stillhouse.monitor.reference import Reference
from stillhouse.monitor.samples import main_student
from stillhouse.monitor.segments import largest
from stillhouse.monitor.verdicts import (
    Level,
    accuracy_tested,
    agreement_tested,
    confidence_tested,
)
from stillhouse.monitor.windows import Window

POPULATIONS: Final[tuple[Population, ...]] = ("teacher_only", "shadow", "fallback")


class Verdict(NamedTuple):
    """A report, whose findings hold examples for alerts, and what later windows pool."""

    report: WindowReport
    kept: Kept


class _Part(NamedTuple):
    figures: list[Figure]
    tested: list[Tested | None]
    notes: list[str]


def judge(
    setting: Setting,
    window: Window,
    number: int,
    earlier: Sequence[Kept],
    *,
    reference: Reference | None,
    now: float,
) -> Verdict:
    """Judge one window.

    Args:
        earlier: windows before it that may be pooled with it, oldest first.
        reference: `None`: there is none yet, so that nothing is compared with it.
    """
    own = keep(setting, window.rows)
    _, students = main_student(window.rows)
    same = [one for one in (*earlier, own) if one.student == own.student]
    pools = Pools(same, setting.section.window.least)
    random = pools.pairs(RANDOM)
    fidelity = _fidelity(setting, pools, random, reference)
    outcomes = _outcomes(setting, pools, reference)
    segments, segment_tests = _segments(setting, window, pools, reference)
    tested = [*fidelity.tested, *outcomes.tested, *segment_tests]
    findings = corrected([one for one in tested if one is not None], setting.section.bounds.alpha)
    findings += of_window(window.rows, window.empties, own.samples)
    if students and not random.pairs and pools.windows > setting.section.window.lookback:
        text = f"{pools.windows} windows without a request that student and teacher both answered"
        findings.append(problem("no_pairs", text))
    notes = [*fidelity.notes, *outcomes.notes]
    if len(students) > 1:
        others = ", ".join(f"{name} {count:,}" for name, count in sorted(students.items()))
        notes.append(f"several students ({others} requests): the figures are of {own.student}")
    if window.kept < 1:
        notes.append(f"figures are of {100 * window.kept:.3g}% of the users, drawn by hash")
    answers = [a for row in window.rows for a in (row.teacher, row.student) if a is not None]
    report = WindowReport(
        task=setting.name,
        number=number,
        since=window.since,
        until=window.until,
        judged_at=now,
        requests=window.requests,
        units=len({row.unit for row in window.rows}),
        pairs=len(own.samples.pairs),
        outcomes=len(own.samples.student) + len(own.samples.teacher),
        student=own.student,
        students=students,
        cost_usd=sum(answer.cost_usd for answer in answers) / window.kept,
        teacher_cost_usd=sum(row.teacher_cost_usd for row in window.rows) / window.kept,
        figures=(*fidelity.figures, *outcomes.figures, *health_figures(window.rows)),
        segments=tuple(segments),
        findings=tuple(findings),
        notes=tuple(notes),
    )
    return Verdict(report, own)


def _fidelity(setting: Setting, pools: Pools, random: Pool, reference: Reference | None) -> _Part:
    bounds, texts = setting.section.bounds, setting.task.kind != "classification"
    figures = agreement_figures(random.pairs, "random", windows=random.windows, texts=texts)
    for population in POPULATIONS:
        found = pools.pairs((population,))
        if found.pairs:
            figures += agreement_figures(
                found.pairs, population, windows=found.windows, texts=texts
            )
    figures += calibration_figures(random.pairs, "random", random.windows)
    if len(random.pairs) < setting.section.window.least:
        text = f"{len(random.pairs)} random pairs in {random.windows} windows: agreement is not "
        return _Part(figures, [], [f"{text}judged" if random.pairs else "no random pairs"])
    level = Level(
        None if reference is None else reference.agreement,
        bounds.agreement_drop,
        bounds.agreement_least,
    )
    what = "agreement of student and teacher"
    tested = [
        agreement_tested(setting.task, what, "fidelity:agreement", random.pairs, level),
        confidence_tested(
            setting.task,
            "answers that the teacher gave too",
            "calibration:teacher",
            random.pairs,
            bounds.overconfidence,
        ),
    ]
    return _Part(figures, tested, [])


def _outcomes(setting: Setting, pools: Pools, reference: Reference | None) -> _Part:
    bounds = setting.section.bounds
    student, teacher = pools.judged("student"), pools.judged("teacher")
    figures: list[Figure] = []
    for name, pool in (("accuracy", student), ("teacher_accuracy", teacher)):
        if pool.judged:
            scores, units = [j.score for j in pool.judged], [j.unit for j in pool.judged]
            figures.append(share_figure(name, "judged", scores, units, windows=pool.windows))
    figures += calibration_figures(student.judged, "judged", student.windows)
    if len(student.judged) < setting.section.window.least:
        few = f"{len(student.judged)} judged answers in {student.windows} windows: accuracy is not "
        return _Part(figures, [], [f"{few}judged"] if student.judged else [])
    level = Level(
        None if reference is None else reference.accuracy,
        bounds.accuracy_drop,
        bounds.accuracy_least,
    )
    tested = [
        accuracy_tested(setting.task, student.judged, level),
        confidence_tested(
            setting.task,
            "answers that somebody judged",
            "calibration:outcomes",
            student.judged,
            bounds.overconfidence,
        ),
    ]
    return _Part(figures, tested, [])


def _segments(
    setting: Setting, window: Window, pools: Pools, reference: Reference | None
) -> tuple[list[SegmentFigures], list[Tested | None]]:
    section = setting.section.segments
    if not section.by or not window.rows:
        return [], []
    keys = setting.segmenter.of(items_of(setting, window.rows))
    counts = Counter(key for one in keys for key in one)
    pairs = pools.by_segment(section.least)
    found: list[SegmentFigures] = []
    tested: list[Tested | None] = []
    for key in largest(counts, section.most):
        kind, _, name = key.partition(":")
        members, windows = pairs.get(key, Pool([], 1))
        scores, units = [p.agreement for p in members], [p.unit for p in members]
        figures: tuple[Figure, ...] = ()
        if members:
            figures = (share_figure("agreement", "random", scores, units, windows=windows),)
        few = len(members) < section.least
        before = None if reference is None else reference.segments.get(key)
        if not few and before is not None:
            what, name_of = f"agreement in {kind} {name}", f"fidelity:agreement in {key}"
            level = Level(before, setting.section.bounds.agreement_drop)
            tested.append(agreement_tested(setting.task, what, name_of, members, level))
        found.append(
            SegmentFigures(
                by=kind,
                name=name,
                requests=counts[key],
                figures=figures,
                note=f"{len(members)} pairs: too few to be judged" if few else "",
            )
        )
    return found, tested
