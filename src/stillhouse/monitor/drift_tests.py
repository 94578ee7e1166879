"""The tests of one window against a reference, before they are corrected together.

Knows observations and numbers; what a test says about the cause is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

import numpy as np

from stillhouse.core.loop_drift import DriftSection
from stillhouse.models.embedders import Vectors
from stillhouse.monitor.drift_canaries import CanaryTest, canary_test
from stillhouse.monitor.drift_columns import categories, ks, psi
from stillhouse.monitor.drift_domain import Domain, domain
from stillhouse.monitor.drift_kernel import Floats, Measured, mmd
from stillhouse.monitor.drift_pairs import compared, strata_of
from stillhouse.monitor.drift_records import Canary, Embed, Family, Observation

T = TypeVar("T")
TEACHER_CANARIES: Final = "canaries:teacher"
STUDENT_CANARIES: Final = "canaries:student"
AGREEMENT: Final = "pairs:agreement"
DIVERGENCE: Final = "pairs:divergence"
MMD: Final = "inputs:mmd"
CLASSIFIER: Final = "inputs:classifier"
POOLS: Final = (MMD, CLASSIFIER)
POOLED: Final = ":pooled"  # behind the name of a test of the last windows together


class Share(NamedTuple):
    """A second measure of a test's effect: the share of requests of another kind."""

    share: float
    least: float


class Trial(NamedTuple):
    """One test that was made."""

    name: str
    family: Family
    measure: str
    measured: Measured
    least: float
    n_reference: int
    n_window: int
    share: Share | None = None

    def counts(self) -> bool:
        """Whether its effect is large enough for an alarm, by either measure."""
        by_share = self.share is not None and self.share.share >= self.share.least
        return by_share or self.measured.effect >= self.least


class Inputs(NamedTuple):
    """How typical of the window each text row is; higher is more."""

    rows: tuple[Observation, ...]
    scores: Floats  # [n]


class Trials(NamedTuple):
    """All tests of a window, what its examples come from, and what could not be tested."""

    trials: tuple[Trial, ...]
    inputs: Inputs | None
    teacher: CanaryTest | None
    student: CanaryTest | None
    fallen: tuple[Observation, ...]  # window pairs on known inputs, least agreement first
    problems: tuple[str, ...]


def trials_of(
    reference: Sequence[Observation],
    window: Sequence[Observation],
    settings: DriftSection,
    *,
    embed: Embed | None,
    teacher_canaries: Sequence[Canary],
    student_canaries: Sequence[Canary],
    seed: int,
) -> Trials:
    """Make every test that there are enough rows for."""
    rng = np.random.default_rng(seed)
    found: list[Trial] = []
    problems: list[str] = []
    place = _Domain(reference, window, settings, embed, rng)
    if len(window) < settings.fewest:
        problems.append(
            f"the window has {len(window)} requests of the {settings.fewest} that a test needs"
        )
    elif place.problem:
        problems.append(place.problem)
    found += place.trials
    found += _columns(reference, window, settings, rng)
    pairs = _pairs(reference, window, settings, place, rng)
    found += pairs.trials
    teacher = canary_test(teacher_canaries, seed) if teacher_canaries else None
    student = canary_test(student_canaries, seed) if student_canaries else None
    if teacher is not None:
        found.append(_canaries("teacher", teacher, len(teacher_canaries), settings))
    if student is not None:
        found.append(_canaries("student", student, len(student_canaries), settings))
    return Trials(tuple(found), place.inputs, teacher, student, pairs.fallen, tuple(problems))


def pooled_trials(
    names: Collection[str],
    reference: Sequence[Observation],
    rows: Sequence[Observation],
    settings: DriftSection,
    *,
    embed: Embed,
    seed: int,
) -> tuple[Trial, ...]:
    """The tests of inputs named, once more, of several windows together.

    Args:
        rows: of all these windows.
    """
    place = _Domain(reference, rows, settings, embed, np.random.default_rng([seed, len(rows)]))
    return tuple(one._replace(name=one.name + POOLED) for one in place.trials if one.name in names)


class _Domain:
    """Inputs compared by their embeddings; and a score of how new an input is."""

    def __init__(
        self,
        reference: Sequence[Observation],
        window: Sequence[Observation],
        settings: DriftSection,
        embed: Embed | None,
        rng: np.random.Generator,
    ) -> None:
        self.trials: list[Trial] = []
        self.inputs: Inputs | None = None
        self.problem = ""
        self._domain: Domain | None = None
        self._vectors: dict[str, Vectors] = {}
        if embed is None:
            return
        before = _drawn([one for one in reference if one.text is not None], settings.most, rng)
        now = _drawn([one for one in window if one.text is not None], settings.most, rng)
        if min(len(before), len(now)) < settings.fewest:
            self.problem = (
                f"{len(before)} texts of the reference and {len(now)} of the window were kept, of "
                f"{settings.fewest} that a test of inputs needs"
            )
            return
        vectors = embed([one.text or "" for one in (*before, *now)])
        x, y = vectors[: len(before)], vectors[len(before) :]
        sizes = len(before), len(now)
        distance = mmd(x, y, permutations=settings.permutations, rng=rng)
        self._domain = domain(x, y, permutations=settings.permutations, rng=rng)
        least = settings.least
        words = "distance of mean inputs, in standard deviations"
        self.trials = [
            Trial(MMD, "input", words, distance, least.mmd, *sizes),
            Trial(
                CLASSIFIER,
                "input",
                "area under the ROC of window against reference",
                self._domain.measured,
                least.auc,
                *sizes,
                Share(self._domain.share, least.share),
            ),
        ]
        self.inputs = Inputs(tuple(now), self._domain.window_scores)
        scores = (*self._domain.reference_scores, *self._domain.window_scores)
        self._known = dict(zip((id(o) for o in (*before, *now)), map(float, scores), strict=True))
        self._embed = embed

    def scores(self, rows: Sequence[Observation]) -> Floats | None:
        """How new each row's input is, [n]; `None` where inputs are not compared."""
        if self._domain is None:
            return None
        found = np.array([self._known.get(id(one), np.nan) for one in rows])
        missing = np.flatnonzero(np.isnan(found))
        if len(missing):
            vectors = self._embed([rows[n].text or "" for n in map(int, missing)])
            found[missing] = self._domain.scores(vectors)
        return found


def _columns(
    reference: Sequence[Observation],
    window: Sequence[Observation],
    settings: DriftSection,
    rng: np.random.Generator,
) -> list[Trial]:
    found: list[Trial] = []
    least = settings.least
    kinds: tuple[tuple[str, Family, Callable[[Observation], float | None]], ...] = (
        ("length", "input", lambda one: one.length),
        ("confidence", "context", lambda one: one.confidence),
        ("latency", "context", lambda one: one.latency_ms),
    )
    for name, family, value in kinds:
        x, y = _numbers(reference, value), _numbers(window, value)
        if min(len(x), len(y)) < settings.fewest:
            continue
        if name != "latency":
            measured = psi(x, y, permutations=settings.permutations, rng=rng)
            words = "population stability index"
            found.append(Trial(f"{name}:psi", family, words, measured, least.psi, len(x), len(y)))
        measured = ks(x, y, rng=rng)
        words = "greatest gap of the distribution functions"
        found.append(Trial(f"{name}:ks", family, words, measured, least.ks, len(x), len(y)))
    of: tuple[tuple[str, Family, Callable[[Observation], str | None]], ...] = (
        ("language", "input", lambda one: one.language),
        ("answers", "answers", lambda one: one.student_answer),
    )
    for name, family, category in of:
        a, b = _there(reference, category), _there(window, category)
        if min(len(a), len(b)) < settings.fewest:
            continue
        shares = categories(a, b, permutations=settings.permutations, rng=rng)
        if shares is not None:
            words = "share of requests with another one"
            found.append(
                Trial(f"{name}:shares", family, words, shares, least.share, len(a), len(b))
            )
    return found


class _Pairs(NamedTuple):
    trials: list[Trial]
    fallen: tuple[Observation, ...]


def _pairs(
    reference: Sequence[Observation],
    window: Sequence[Observation],
    settings: DriftSection,
    place: _Domain,
    rng: np.random.Generator,
) -> _Pairs:
    trials: list[Trial] = []
    fallen: list[Observation] = []
    kinds: tuple[tuple[str, str, Callable[[Observation], float | None], float, float], ...] = (
        (
            AGREEMENT,
            "fall of the agreement on inputs like the reference's",
            lambda one: one.agreement,
            settings.least.agreement,
            1.0,
        ),
        (
            DIVERGENCE,
            "rise of the divergence on inputs like the reference's, nats",
            lambda one: one.divergence,
            settings.least.divergence,
            -1.0,
        ),
    )
    for name, words, value, least, sign in kinds:
        before = [one for one in reference if value(one) is not None]
        now = [one for one in window if value(one) is not None]
        if min(len(before), len(now)) < settings.fewest:
            continue
        x, y = sign * _numbers(before, value), sign * _numbers(now, value)
        scores = place.scores(before), place.scores(now)
        if scores[0] is None or scores[1] is None:
            first, second = np.zeros(len(x), dtype=np.intp), np.zeros(len(y), dtype=np.intp)
            is_open = np.array([True])
        else:
            strata = strata_of(scores[0], scores[1])
            first, second, is_open = strata.of(scores[0]), strata.of(scores[1]), strata.open
        result = compared(
            x,
            y,
            first,
            second,
            is_open,
            fewest=settings.fewest,
            permutations=settings.permutations,
            rng=rng,
        )
        if result.measured is None:
            continue
        trials.append(
            Trial(
                name, "student", words, result.measured, least, result.n_reference, result.n_window
            )
        )
        if name == AGREEMENT:
            kept = [one for one, keep in zip(now, result.kept, strict=True) if keep]
            fallen = sorted(kept, key=lambda one: (one.agreement or 0.0, one.id))
            fallen = [one for one in fallen if (one.agreement or 0.0) < 1.0]
    return _Pairs(trials, tuple(fallen))


def _canaries(
    family: Literal["teacher", "student"], result: CanaryTest, n: int, settings: DriftSection
) -> Trial:
    name = TEACHER_CANARIES if family == "teacher" else STUDENT_CANARIES
    words = "fall of the likeness to frozen answers, beyond noise"
    return Trial(name, family, words, result.measured, settings.least.canaries, n, n)


def _numbers(rows: Iterable[Observation], of: Callable[[Observation], float | None]) -> Floats:
    return np.array([float(v) for one in rows if (v := of(one)) is not None], dtype=np.float64)


def _there(rows: Iterable[Observation], of: Callable[[Observation], T | None]) -> list[T]:
    return [v for one in rows if (v := of(one)) is not None]


def _drawn(
    rows: Sequence[Observation], most: int, rng: np.random.Generator
) -> Sequence[Observation]:
    if len(rows) <= most:
        return rows
    return [rows[n] for n in np.sort(rng.choice(len(rows), most, replace=False))]
