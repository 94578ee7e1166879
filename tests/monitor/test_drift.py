"""Drift of one window: tests against naive references, error rates, causes, and bad input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from stillhouse.core.errors import DataError
from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.loop_drift import DriftSection, LeastEffects
from stillhouse.core.records import Message
from stillhouse.models.embedders import Vectors
from stillhouse.monitor.drift import detect
from stillhouse.monitor.drift_canaries import canary_test
from stillhouse.monitor.drift_columns import categories, ks, psi
from stillhouse.monitor.drift_domain import domain, share_of
from stillhouse.monitor.drift_kernel import kernel_matrix, mmd, permutation_p
from stillhouse.monitor.drift_pairs import compared, strata_of
from stillhouse.monitor.drift_records import Canary, DriftReport, Observation, Persistence
from stillhouse.monitor.drift_words import marking_words
from stillhouse.monitor.observe import observe

FAST = DriftSection(permutations=199, streams=False)
WORDS = ["film", "plot", "actor", "scene", "script", "camera", "story", "hero"]
OTHERS = ["match", "goal", "team", "league"]


def unit(rows: np.ndarray) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embed(texts: Sequence[str]) -> Vectors:
    """Counts of known words, and a little of the rest."""
    names = WORDS + OTHERS
    rows = np.zeros((len(texts), len(names) + 1))
    for number, text in enumerate(texts):
        rows[number, -1] = 0.1
        for word in text.split():
            rows[number, names.index(word)] += 1
    return unit(rows)


def world(n: int, seed: int, *, foreign: float = 0.0, agreement: float = 0.9) -> list[Observation]:
    """Requests of four words; a share is of another topic."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(n):
        names = OTHERS if rng.random() < foreign else WORDS
        text = " ".join(rng.choice(names, 4))
        found.append(
            Observation(
                id=f"{seed}-{number}",
                at=float(number),
                text=text,
                length=int(3 + rng.poisson(4)),
                confidence=float(rng.beta(8, 2)),
                student_answer=str(rng.choice(["fresh", "rotten"])),
                agreement=float(rng.random() < agreement),
            )
        )
    return found


def canaries(changed: int, n: int = 100) -> list[Canary]:
    return [
        Canary(
            id=f"c{k}",
            prompt=f"prompt {k}",
            frozen="fresh",
            now="rotten" if k < changed else "fresh",
            likeness=float(k >= changed),
            floor=1.0,
        )
        for k in range(n)
    ]


def twice(window: list[Observation], **given: object) -> DriftReport:
    """Two windows alike, so that what is there persists."""
    reference = world(400, 1)
    first = detect(reference, window, FAST, embed=embed, **given)  # type: ignore[arg-type]
    return detect(
        reference,
        window,
        FAST,
        embed=embed,
        persistence=first.persistence,
        **given,  # type: ignore[arg-type]
    )


def test_mmd_is_the_double_sum_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = unit(rng.normal(size=(9, 5))), unit(rng.normal(0.4, size=(7, 5)))
    kernel = kernel_matrix(np.concatenate([x, y])).astype(float)
    n, m = len(x), len(y)
    xx = sum(kernel[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel[n + i, n + j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(kernel[i, n + j] for i in range(n) for j in range(m)) / (n * m)
    found = mmd(x, y, permutations=199, rng=rng)
    assert found.statistic == pytest.approx(xx + yy - 2 * xy, abs=1e-6)


def test_permutation_p_counts_itself() -> None:
    assert permutation_p(1.0, np.array([0.0, 1.0, 2.0])) == 3 / 4
    assert permutation_p(3.0, np.zeros(99)) == 1 / 100


@pytest.mark.parametrize("test", ["mmd", "domain"])
def test_p_values_of_equal_inputs_hold_their_level(test: str) -> None:
    """P(p <= a) <= a for a permutation test; of 120 draws at a = 0.1, at most the 99.9% quantile
    of Binomial(120, 0.1) may be significant."""
    hits = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x, y = unit(rng.normal(size=(40, 6))), unit(rng.normal(size=(30, 6)))
        if test == "mmd":
            p = mmd(x, y, permutations=99, rng=rng).p
        else:
            p = domain(x, y, permutations=99, rng=rng).measured.p
        hits += p <= 0.1
    assert hits <= stats.binom.ppf(0.999, 120, 0.1)


def test_domain_scores_rank_the_foreign_rows_first() -> None:
    x = embed([one.text or "" for one in world(200, 1)])
    window = world(200, 2, foreign=0.3)
    y = embed([one.text or "" for one in window])
    found = domain(x, y, permutations=99, rng=np.random.default_rng(0))
    assert found.measured.p == 1 / 100
    assert found.measured.low <= found.measured.effect <= found.measured.high
    assert found.measured.effect == pytest.approx(0.5 + 0.3 / 2, abs=0.06)
    foreign = np.array([(one.text or "").split()[0] in OTHERS for one in window])
    assert found.window_scores[foreign].mean() > found.window_scores[~foreign].max() * 0.5
    assert np.argmax(found.window_scores) in np.flatnonzero(foreign)


def test_the_share_of_another_kind_is_a_one_sided_gap_of_scores() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=90).round(1), rng.normal(0.4, size=50).round(1)
    wanted = max((x <= v).mean() - (y <= v).mean() for v in np.concatenate([x, y]))
    chance = np.sqrt(np.pi / 8 * (1 / 90 + 1 / 50))
    assert share_of(x, y) == pytest.approx(wanted - chance)
    drawn = [rng.normal(size=(2, 200)) for _ in range(400)]
    gaps = [stats.ks_2samp(*two, alternative="greater").statistic for two in drawn]
    # Its mean without drift, within three standard errors and the 1/N by which it is below.
    assert np.mean(gaps) == pytest.approx(np.sqrt(np.pi / 8 / 100), abs=0.005 + 0.005)
    assert share_of(x, x) == 0.0
    assert share_of(np.zeros(30), np.zeros(20)) == 0.0
    assert share_of(np.full(30, 1.0), np.full(20, 1.0 + 1e-13)) == 0.0  # rounding
    many = share_of(np.zeros(40_000), np.repeat([0.0, 1.0], [8_000, 2_000]))
    assert many == pytest.approx(0.2, abs=0.01)


def test_a_tight_new_kind_counts_by_its_share_where_the_area_is_small() -> None:
    x = embed([one.text or "" for one in world(400, 1)])
    y = embed([one.text or "" for one in world(250, 2, foreign=0.2)])
    assert 0.1 < domain(x, y, permutations=99, rng=np.random.default_rng(0)).share < 0.2
    least = {"mmd": 9.0, "auc": 0.9, "share": 0.1}
    settings = FAST.model_copy(update={"least": LeastEffects.model_validate(least)})
    counted = detect(world(400, 1), world(250, 2, foreign=0.2), settings, embed=embed)
    by = {one.name: one for one in counted.tests}
    assert by["inputs:classifier"].signal
    assert by["inputs:classifier"].effect < 0.9
    least["share"] = 0.9
    settings = FAST.model_copy(update={"least": LeastEffects.model_validate(least)})
    uncounted = detect(world(400, 1), world(250, 2, foreign=0.2), settings, embed=embed)
    assert not any(one.signal for one in uncounted.tests)


def test_columns_of_one_value_and_of_shifted_ones() -> None:
    rng = np.random.default_rng(0)
    same = np.ones(80)
    assert psi(same, same, permutations=99, rng=rng).p == 1.0
    assert ks(same, same, rng=rng).effect == 0.0
    a, b = rng.normal(size=300), rng.normal(1.0, size=300)
    assert psi(a, b, permutations=99, rng=rng).p == 1 / 100
    gap = max(abs((a <= v).mean() - (b <= v).mean()) for v in np.concatenate([a, b]))
    assert ks(a, b, rng=rng).statistic == pytest.approx(gap)
    shares = categories(["x"] * 90 + ["y"] * 10, ["x"] * 50 + ["y"] * 50, permutations=99, rng=rng)
    assert shares is not None
    assert shares.effect == pytest.approx(0.4)
    assert categories([str(n) for n in range(90)], ["z"] * 9, permutations=99, rng=rng) is None


def test_agreement_is_compared_within_strata() -> None:
    """The mix moves to inputs that always were hard; within each stratum nothing changed."""
    rng = np.random.default_rng(0)
    x_strata = (rng.random(600) < 0.2).astype(np.intp)
    y_strata = (rng.random(600) < 0.6).astype(np.intp)
    rate = np.array([0.95, 0.55])
    x = (rng.random(600) < rate[x_strata]).astype(float)
    y = (rng.random(600) < rate[y_strata]).astype(float)
    given = {"fewest": 20, "permutations": 199, "rng": rng}
    is_open = np.array([True, True])
    assert x.mean() - y.mean() > 0.1
    found = compared(x, y, x_strata, y_strata, is_open, **given).measured  # type: ignore[arg-type]
    assert found is not None
    assert found.p > 0.05
    assert found.low <= 0 <= found.high
    worse = (rng.random(600) < rate[y_strata] - 0.2).astype(float)
    fallen = compared(x, worse, x_strata, y_strata, is_open, **given)  # type: ignore[arg-type]
    assert fallen.measured is not None
    assert fallen.measured.p == 1 / 200
    assert fallen.measured.effect == pytest.approx(0.2, abs=0.08)


def test_strata_of_new_inputs_are_closed() -> None:
    reference = np.zeros(500) + np.linspace(0, 0.5, 500)
    window = np.concatenate([np.linspace(0, 0.5, 400), np.full(100, 0.9)])
    strata = strata_of(reference, window)
    assert not strata.open[strata.of(np.array([0.9]))[0]]
    assert strata.open[strata.of(np.array([0.25]))[0]]


def test_canaries_beyond_their_noise_floor() -> None:
    assert canary_test(canaries(0)).measured.p == 1.0
    found = canary_test(canaries(12))
    assert found.measured.effect == pytest.approx(0.12)
    assert found.measured.p == pytest.approx(0.5**12)
    assert len(found.changed) == 12
    noisy = [
        Canary(id=f"c{k}", frozen="a", now="b", likeness=0.0, floor=0.0 if k < 12 else 1.0)
        if k < 12
        else Canary(id=f"c{k}", frozen="a", now="a", likeness=1.0, floor=1.0)
        for k in range(100)
    ]
    assert canary_test(noisy).measured.effect == 0.0  # as unlike as two answers of one model


def test_windows_without_drift_give_no_alarm() -> None:
    persistence = Persistence()
    alarms = 0
    for seed in range(8):
        report = detect(
            world(300, 1), world(150, 50 + seed), FAST, embed=embed, persistence=persistence
        )
        persistence = report.persistence
        alarms += report.alarm
    assert alarms == 0


def test_a_foreign_topic_is_an_input_shift_with_its_words_and_rows() -> None:
    report = twice(world(250, 2, foreign=0.25))
    assert (report.alarm, report.cause) == (True, "input_shift")
    assert {"match", "goal", "team", "league"} <= set(report.evidence["words"])  # type: ignore[arg-type]
    assert all(one.text.split()[0] in OTHERS for one in report.examples)
    assert "stillhouse retrain" in report.action
    assert len(report.examples) == FAST.examples


def test_one_window_alone_is_suspected_only() -> None:
    report = detect(world(400, 1), world(250, 2, foreign=0.3), FAST, embed=embed)
    assert not report.alarm
    assert [one.cause for one in report.suspected] == ["input_shift"]
    assert "not yet" in report.summary


def watched(
    windows: Sequence[list[Observation]], settings: DriftSection = FAST, *, together: bool = True
) -> list[DriftReport]:
    """Reports of windows one after another, with what came before each."""
    found: list[DriftReport] = []
    for number, window in enumerate(windows):

        def earlier(count: int, end: int = number) -> Sequence[list[Observation]]:
            return windows[:end][-count:]

        found.append(
            detect(
                world(400, 1),
                window,
                settings,
                embed=embed,
                persistence=found[-1].persistence if found else None,
                earlier=earlier if together else None,
            )
        )
    return found


# Weak enough that the two windows alone do not both signal.
WEAK = [world(120, 54, foreign=0.07), world(120, 55, foreign=0.07)]
ANY = FAST.model_copy(update={"least": LeastEffects(mmd=0.0, auc=0.5)})


def test_two_windows_that_lean_alike_are_tested_together() -> None:
    alone = watched(WEAK, ANY, together=False)
    assert not any(one.alarm for one in alone)
    assert alone[1].persistence.leaning["inputs:classifier"] == 2
    first, second = watched(WEAK, ANY)
    assert not first.alarm
    assert not any(one.name.endswith(":pooled") for one in first.tests)
    assert second.cause == "input_shift"
    pooled = {one.name: one for one in second.tests if one.name.endswith(":pooled")}
    assert pooled["inputs:classifier:pooled"].n_window == 240
    assert pooled["inputs:classifier:pooled"].persists
    assert set(second.causes[0].tests) <= set(pooled)


def test_one_strong_window_does_not_make_a_quiet_one_alarm() -> None:
    """Together they differ from the reference, but the second by itself does not."""
    quiet = world(250, 3)
    first, second = watched([world(250, 2, foreign=0.5), quiet])
    assert [one.cause for one in first.suspected] == ["input_shift"]
    assert not second.alarm
    assert not any(one.name.endswith(":pooled") for one in second.tests)
    assert second.persistence.leaning == {}
    rows = [*world(250, 2, foreign=0.5), *quiet]
    together = detect(world(400, 1), rows, FAST, embed=embed)
    assert any(one.signal for one in together.tests)  # what pooling alone would have made of it


@pytest.mark.parametrize(
    "before",
    [None, [], [[]], [WEAK[0][:30]], [[o.model_copy(update={"text": None}) for o in WEAK[0]]]],
)
def test_a_window_is_not_tested_again_alone_where_those_before_it_are_not_there(
    before: list[list[Observation]] | None,
) -> None:
    strong = world(120, 56, foreign=0.4)
    leaning = Persistence(leaning={"inputs:mmd": 5, "inputs:classifier": 5})
    report = detect(
        world(400, 1),
        strong,
        ANY,
        embed=embed,
        persistence=leaning,
        earlier=lambda _: before,
    )
    assert report.persistence.leaning == {"inputs:mmd": 6, "inputs:classifier": 6}
    assert not report.alarm
    assert [one.cause for one in report.suspected] == ["input_shift"]
    assert not any(one.name.endswith(":pooled") for one in report.tests)


def test_canaries_between_two_windows_break_no_row_of_them() -> None:
    first = detect(world(400, 1), WEAK[0], FAST, embed=embed)
    between = detect(
        world(400, 1),
        [],
        FAST,
        embed=embed,
        teacher_canaries=canaries(0),
        persistence=first.persistence,
    )
    assert between.persistence.leaning == first.persistence.leaning


@pytest.mark.full
def test_windows_together_hold_their_level() -> None:
    """Without drift a window leans with p <= alpha in each of two tests; two in a row, and then
    both together: at most 2 alpha^2 were the windows independent. Of 60 windows at alpha = 0.05 at
    most the 99.9% quantile of Binomial(60, 0.05) may alarm, which holds however they depend."""
    alarms = 0
    least = LeastEffects(mmd=0.0, auc=0.5, psi=9.0, ks=1.0, share=1.0, agreement=1.0)
    settings = FAST.model_copy(update={"least": least})
    for seed in range(20):
        reports = watched([world(60, 100 + 3 * seed + k) for k in range(3)], settings)
        alarms += sum(one.alarm for one in reports)
    assert alarms <= stats.binom.ppf(0.999, 60, 0.05)


def test_changed_answers_of_the_teacher_are_its_drift() -> None:
    report = twice(
        world(250, 2, agreement=0.75),
        teacher_canaries=canaries(15),
        student_canaries=canaries(0),
    )
    assert report.cause == "teacher_drift"
    assert [one.cause for one in report.causes] == ["teacher_drift"]
    assert report.examples[0].before == "fresh"
    assert report.examples[0].now == "rotten"


def test_the_teachers_canaries_explain_agreement_in_windows_without_canaries() -> None:
    reference = world(400, 1)
    persistence: Persistence | None = None
    causes = []
    for number in range(4):
        asked = number % 2 == 0
        report = detect(
            reference,
            world(250, 2 + number, agreement=0.7),
            FAST,
            embed=embed,
            teacher_canaries=canaries(15) if asked else (),
            student_canaries=canaries(0) if asked else (),
            persistence=persistence,
        )
        persistence = report.persistence
        causes.append(report.cause)
    assert causes == ["none", "teacher_drift", "teacher_drift", "teacher_drift"]


def test_agreement_that_falls_while_the_students_canaries_hold_is_the_teachers() -> None:
    report = twice(world(250, 2, agreement=0.7), student_canaries=canaries(0))
    assert report.cause == "teacher_drift"


def test_less_agreement_on_known_inputs_is_the_students() -> None:
    report = twice(world(250, 2, agreement=0.7), teacher_canaries=canaries(0))
    assert report.cause == "student_decay"
    assert "roll" in report.action
    assert all(one.score == 1.0 for one in report.examples)


def test_both_shift_and_decay_are_named() -> None:
    report = twice(
        world(300, 2, foreign=0.25), teacher_canaries=canaries(0), student_canaries=canaries(20)
    )
    assert {one.cause for one in report.causes} == {"input_shift", "student_decay"}


def test_windows_that_cannot_be_tested_are_problems_not_alarms() -> None:
    few = detect(world(300, 1), world(10, 2), FAST, embed=embed)
    assert not few.alarm
    assert any("10 requests" in one for one in few.problems)
    empty = detect(world(300, 1), [], FAST, embed=embed)
    assert (empty.tests, empty.since) == ((), None)
    textless = [one.model_copy(update={"text": None}) for one in world(200, 2)]
    assert any(
        "texts" in one for one in detect(world(300, 1), textless, FAST, embed=embed).problems
    )
    with pytest.raises(DataError, match="reference"):
        detect([], world(100, 2), FAST)


def test_a_clock_that_goes_back_is_told_and_rows_are_put_in_order() -> None:
    window = world(100, 2)
    window[40] = window[40].model_copy(update={"at": 2.5})
    report = detect(world(300, 1), window, FAST, embed=embed)
    assert report.problems == ("the clock went back 1 times within the window",)
    assert (report.since, report.until) == (0.0, 99.0)


def test_streams_say_where_a_change_began() -> None:
    settings = DriftSection(permutations=199)
    window = [
        one.model_copy(update={"confidence": 0.3 if n >= 100 else one.confidence})
        for n, one in enumerate(world(250, 2))
    ]
    found = detect(world(400, 1), window, settings, embed=embed).streams
    at = {one.detector: one.at for one in found if one.stream == "confidence"}
    assert set(at) == {"adwin", "page_hinkley"}
    assert all(100 <= where < 150 for where in at.values())


def test_marking_words_have_a_naive_counterpart() -> None:
    before = ["film plot"] * 50 + ["film actor"] * 50
    now = ["film plot"] * 50 + ["film goal"] * 50
    assert marking_words(before, now, 5) == ("goal",)
    assert marking_words(before, before, 5) == ()
    assert marking_words([], [], 5) == ()


def test_rows_become_observations_and_fallbacks_no_agreement() -> None:
    said = LiveAnswer(id="s", text="Fresh", confidence=0.7, latency_ms=3)
    teacher = LiveAnswer(id="t", text="rotten", latency_ms=9)
    row = LiveRow(
        id="r",
        at=5,
        task="reviews",
        tenant="shop",
        unit="u",
        messages=(Message(role="user", content="a fine film"),),
        seen="teacher",
        arm="teacher_only",
        teacher=teacher,
        student=said,
    )
    fallen = row.model_copy(update={"fell_back": True})
    first, second = observe([row, fallen], parse=str.lower, language=lambda text: "en")
    assert (first.text, first.length, first.language) == ("a fine film", 3, "en")
    assert (first.student_answer, first.teacher_answer, first.agreement) == ("fresh", "rotten", 0.0)
    assert (first.confidence, first.latency_ms) == (0.7, 3)
    assert second.agreement is None
