"""One window against a reference: every test, corrected together, and what they say.

Pure: no clock, no file. The caller keeps `DriftReport.persistence` between windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import JsonValue

from stillhouse.core.errors import DataError
from stillhouse.core.loop_drift import DriftSection
from stillhouse.core.multiplicity import holm
from stillhouse.monitor.drift_causes import ACTIONS, causes_of
from stillhouse.monitor.drift_records import (
    Canary,
    CauseFinding,
    DriftReport,
    Earlier,
    Embed,
    Observation,
    Persistence,
    TestResult,
)
from stillhouse.monitor.drift_streams import stream_changes
from stillhouse.monitor.drift_tests import POOLED, POOLS, Trial, Trials, pooled_trials, trials_of
from stillhouse.monitor.drift_words import marking_words


def detect(
    reference: Sequence[Observation],
    window: Sequence[Observation],
    settings: DriftSection | None = None,
    *,
    embed: Embed | None = None,
    teacher_canaries: Sequence[Canary] = (),
    student_canaries: Sequence[Canary] = (),
    persistence: Persistence | None = None,
    earlier: Earlier | None = None,
    seed: int = 0,
) -> DriftReport:
    """What changed between reference and window, with its cause.

    A test signals where Holm's p over the tests of the window is at most `alpha` and its effect
    counts; there is an alarm where a test that names a cause signalled in `needed` of its last
    `out_of` windows, this one among them. Where a test of inputs was significant by itself in each
    of the last `needed` windows, these are also tested together, and a signal there is an alarm.

    Args:
        embed: texts to unit vectors; without it, inputs are compared by length and language only.
        teacher_canaries: frozen prompts that the teacher was asked again. Empty: not asked now.
        student_canaries: likewise of the student.
        persistence: of the last report; None at the first window.
        earlier: requests of each of so many windows before this one, none of them in the
            reference. Without it, or where one of them is not there or has fewer texts than a
            test needs, windows are not tested together.
        seed: of draws and permutations.

    Raises:
        DataError: the reference is empty.
        MissingExtraError: `settings.streams` without the extra `monitor`.
    """
    settings = settings or DriftSection()
    if not reference:
        raise DataError(
            "reference", "holds no requests", action="name a run folder or an earlier window"
        )
    ordered = sorted(window, key=lambda one: (one.at, one.id))
    trials = trials_of(
        reference,
        ordered,
        settings,
        embed=embed,
        teacher_canaries=teacher_canaries,
        student_canaries=student_canaries,
        seed=seed,
    )
    persistence = persistence or Persistence()
    if ordered:
        leans = {
            one.name: one.measured.p <= settings.alpha for one in trials.trials if one.name in POOLS
        }
        persistence = persistence.leant(leans)
    names = {name for name, row in persistence.leaning.items() if row >= settings.needed}
    together: tuple[Trial, ...] = ()
    before = _before(earlier, settings) if names and ordered else None
    if before is not None and embed is not None:
        rows = [*before, *ordered]
        together = pooled_trials(names, reference, rows, settings, embed=embed, seed=seed)
    tests, persistence = _judged(trials.trials, together, settings, persistence)
    words = marking_words(
        (one.text for one in reference if one.text),
        (one.text for one in ordered if one.text),
        settings.words,
    )
    causes = causes_of(
        tests, lambda one: one.persists, trials, settings, words, persistence=persistence
    )
    suspected = tuple(
        one
        for one in causes_of(
            tests, lambda one: one.signal, trials, settings, words, persistence=persistence
        )
        if one.cause not in {cause.cause for cause in causes}
    )
    first = causes[0] if causes else None
    streams = stream_changes(reference, ordered, settings.fewest) if settings.streams else ()
    return DriftReport(
        alarm=first is not None,
        cause="none" if first is None else first.cause,
        summary=_nothing(tests, suspected) if first is None else first.summary,
        action=ACTIONS["none"] if first is None else first.action,
        evidence=_evidence(tests, words, first),
        examples=() if first is None else first.examples,
        causes=causes,
        suspected=suspected,
        tests=tuple(tests),
        streams=streams,
        problems=(*_clocks(window), *trials.problems, *_floors(trials)),
        persistence=persistence,
        since=ordered[0].at if ordered else None,
        until=ordered[-1].at if ordered else None,
        n_reference=len(reference),
        n_window=len(window),
    )


def _before(earlier: Earlier | None, settings: DriftSection) -> list[Observation] | None:
    """Requests of the windows before, if each of them can bear a part of the test: otherwise the
    window alone would be tested twice."""
    count = settings.needed - 1
    found = earlier(count) if earlier is not None and count > 0 else None
    if found is None or len(found) < count:
        return None
    if any(sum(one.text is not None for one in rows) < settings.fewest for rows in found):
        return None
    return [one for rows in found for one in rows]


def _judged(
    alone: Sequence[Trial],
    together: Sequence[Trial],
    settings: DriftSection,
    before: Persistence,
) -> tuple[list[TestResult], Persistence]:
    """Results of the window alone and of windows together, each corrected among its own."""
    trials = (*alone, *together)
    adjusted = [p for family in (alone, together) for p in holm([one.measured.p for one in family])]
    signals = {
        one.name: p <= settings.alpha and one.counts()
        for one, p in zip(trials, adjusted, strict=True)
    }
    after = before.after(signals, settings.out_of)
    results = [
        TestResult(
            name=one.name,
            family=one.family,
            measure=one.measure,
            statistic=one.measured.statistic,
            p=one.measured.p,
            p_corrected=p,
            effect=one.measured.effect,
            low=one.measured.low,
            high=one.measured.high,
            least=one.least,
            share=None if one.share is None else one.share.share,
            n_reference=one.n_reference,
            n_window=one.n_window,
            signal=signals[one.name],
            # Windows together signal only where each of them leaned that way.
            persists=after.holds(one.name, 1 if one.name.endswith(POOLED) else settings.needed),
        )
        for one, p in zip(trials, adjusted, strict=True)
    ]
    return results, after


def _nothing(tests: Sequence[TestResult], suspected: Sequence[CauseFinding]) -> str:
    if not tests:
        return "nothing could be tested"
    if suspected:
        causes = ", ".join(one.cause.replace("_", " ") for one in suspected)
        return f"suspected in this window, not yet in enough windows: {causes}"
    return f"no change in {len(tests)} tests"


def _evidence(
    tests: Sequence[TestResult], words: tuple[str, ...], first: CauseFinding | None
) -> dict[str, JsonValue]:
    if first is None:
        return {}
    found: dict[str, JsonValue] = {
        "tests": [one.name for one in tests if one.name in first.tests],
        "not_changed": [one.name for one in tests if not one.signal],
    }
    if first.cause == "input_shift":
        found["words"] = list(words)
    return found


def _clocks(window: Sequence[Observation]) -> list[str]:
    back = sum(b.at < a.at for a, b in pairwise(window))
    return [f"the clock went back {back} times within the window"] if back else []


def _floors(trials: Trials) -> list[str]:
    return [
        f"the {who}'s canaries have no noise floor: it is taken to answer alike each time"
        for who, test in (("teacher", trials.teacher), ("student", trials.student))
        if test is not None and not test.floor_known
    ]
