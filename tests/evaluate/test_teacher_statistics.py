"""Planted teachers with known accuracy and correlation: are they found as they were planted?"""

from __future__ import annotations

import asyncio
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from stillhouse.core.records import Message, Query
from stillhouse.core.statistics import Interval
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.evaluate.candidates import Answers, answers_of
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.summary import points
from stillhouse.evaluate.teacher_statistics import (
    agreement,
    brier_scores,
    cohen_kappa,
    complementarity,
    differences,
    quality,
    scores_of,
)
from stillhouse.models.completer import Sampling
from stillhouse.models.fake import FakeCompleter

LABELS = ("a", "b", "c")
TASK = ClassificationTask(kind="classification", labels=LABELS)
HOW = Resampling(0.95, 200, 0)


class Planted:
    """Teachers that err together on hard queries: P(right) is `easy` or `hard` by the query.

    Accuracy is (1 - share) * easy + share * hard; given the query they err independently, so that
    P(both right) = (1 - share) * easy_i * easy_j + share * hard_i * hard_j.
    """

    share = 0.25

    def __init__(self, rates: dict[str, tuple[float, float]], n: int, seed: int) -> None:
        self.rates = rates
        rng = np.random.default_rng(seed)
        self.truth = [LABELS[i] for i in rng.integers(0, 3, n)]
        hard = rng.random(n) < self.share
        self.said: dict[str, list[str]] = {}
        for name, (easy, low) in rates.items():
            right = rng.random(n) < np.where(hard, low, easy)
            wrong = [
                LABELS[(LABELS.index(t) + 1 + s) % 3]
                for t, s in zip(self.truth, rng.integers(0, 2, n), strict=True)
            ]
            self.said[name] = [
                t if r else w for t, r, w in zip(self.truth, right, wrong, strict=True)
            ]

    def accuracy(self, name: str) -> float:
        easy, hard = self.rates[name]
        return (1 - self.share) * easy + self.share * hard

    def oracle(self) -> float:
        wrong = [math.prod(1 - rate[kind] for rate in self.rates.values()) for kind in (0, 1)]
        return 1 - ((1 - self.share) * wrong[0] + self.share * wrong[1])

    def answers(self) -> dict[str, Answers]:
        return {name: Answers(tuple(texts), None) for name, texts in self.said.items()}

    def scores(self) -> dict[str, list[float]]:
        return {n: scores_of(TASK, a, self.truth) for n, a in self.answers().items()}


RATES = {"strong": (0.98, 0.5), "other": (0.95, 0.55), "weak": (0.8, 0.2)}


def test_doubles_asked_through_the_seam_score_as_planted() -> None:
    """The same figures whether texts are given or asked of the package's own doubles."""
    planted = Planted(RATES, 60, seed=5)
    some = [
        Query(id=str(i), messages=(Message(role="user", content=f"query {i}"),)) for i in range(60)
    ]
    for name, texts in planted.said.items():
        teacher = FakeCompleter(name, answer=lambda query, sample, t=texts: t[int(query.id)])  # type: ignore[misc]

        async def every(one: FakeCompleter = teacher) -> list[object]:
            return [await one.complete(query, Sampling()) for query in some]

        said = answers_of(TASK, asyncio.run(every()), "auto")  # type: ignore[arg-type]
        assert scores_of(TASK, said, planted.truth) == planted.scores()[name]


def test_intervals_hold_the_planted_values_in_95_of_100_samples() -> None:
    """Coverage over 200 samples of 200: at least 95% - 3 standard errors = 90.4%.

    The oracle, and each pair's difference, too.
    """
    runs, hits = 200, {"score": 0, "oracle": 0, "difference": 0}
    names = list(RATES)
    for seed in range(runs):
        planted = Planted(RATES, 200, seed)
        scores, answers = planted.scores(), planted.answers()
        found = quality(TASK, answers["strong"], planted.truth, HOW._replace(resamples=1))
        hits["score"] += found.score.low <= planted.accuracy("strong") <= found.score.high
        together = complementarity(TASK, names, answers, scores, HOW)
        hits["oracle"] += together.oracle.low <= planted.oracle() <= together.oracle.high
        pair = next(d for d in differences(scores, HOW) if {d.a, d.b} == {"strong", "weak"})
        true = planted.accuracy(pair.a) - planted.accuracy(pair.b)
        hits["difference"] += pair.difference.low <= true <= pair.difference.high
    least = 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    assert {name: count / runs >= least for name, count in hits.items()} == dict.fromkeys(
        hits, True
    )


def test_a_clear_difference_is_significant_and_equals_are_not() -> None:
    found = {(d.a, d.b): d for d in differences(Planted(RATES, 600, seed=1).scores(), HOW)}
    assert found["strong", "weak"].significant
    assert found["strong", "weak"].difference.low > 0.05
    assert not found["strong", "other"].significant
    assert found["strong", "weak"].method == "mcnemar"


def test_agreement_is_plain_counting() -> None:
    planted = Planted(RATES, 150, seed=2)
    planted.said["weak"][:10] = ["?"] * 10
    answers, scores = planted.answers(), planted.scores()
    found = agreement(TASK, answers, scores)
    for i, j in product(range(3), repeat=2):
        a, b = (planted.said[found.names[k]] for k in (i, j))
        same = sum(x == y and x in LABELS for x, y in zip(a, b, strict=True)) / 150
        assert found.agreement[i][j] == pytest.approx(1.0 if i == j else same)
        wrong = sum(t not in (x, y) for x, y, t in zip(a, b, planted.truth, strict=True))
        assert found.both_wrong is not None
        assert found.both_wrong[i][j] == pytest.approx(wrong / 150)
        assert found.kappa is not None
        both = [(x, y) for x, y in zip(a, b, strict=True) if x in LABELS and y in LABELS]
        expected = cohen_kappa_score([x for x, _ in both], [y for _, y in both], labels=LABELS)
        assert found.kappa[i][j] == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=30))
@settings(max_examples=60)
def test_kappa_is_its_definition(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    both = [(x, y) for x, y in pairs if x >= 0 and y >= 0]
    found = cohen_kappa(a, b, 3)
    if not both:
        assert found is None
        return
    n = len(both)
    observed = sum(x == y for x, y in both) / n
    chance = (
        sum(sum(x == c for x, _ in both) * sum(y == c for _, y in both) for c in range(3)) / n**2
    )
    if chance == 1:
        assert found is None
    else:
        assert found == pytest.approx((observed - chance) / (1 - chance))


def test_the_oracle_is_at_least_one_right() -> None:
    planted = Planted(RATES, 120, seed=3)
    names, answers, scores = list(RATES), planted.answers(), planted.scores()
    found = complementarity(TASK, names, answers, scores, HOW)
    columns = list(zip(*(planted.said[name] for name in names), strict=True))
    right = [any(x == t for x in row) for row, t in zip(columns, planted.truth, strict=True)]
    assert found.oracle.estimate == pytest.approx(sum(right) / 120)
    assert found.best == max(names, key=lambda name: sum(scores[name]))
    assert found.gain.estimate == pytest.approx((sum(right) - sum(scores[found.best])) / 120)
    alike = [len(set(row)) == 1 for row in columns]
    assert found.all_agree is not None
    assert found.all_agree.estimate == pytest.approx(sum(alike) / 120)
    assert found.score_where_all_agree is not None
    there = [r for r, same in zip(right, alike, strict=True) if same]
    assert found.score_where_all_agree.estimate == pytest.approx(sum(there) / len(there))


def test_points_have_no_negative_zero() -> None:
    assert points(Interval(estimate=-0.0001, low=-0.06, high=0.0, n=9)) == (
        "+0.0 points [-6.0, +0.0]"
    )
    assert points(Interval(estimate=-0.0, low=-0.06, high=0.0001, n=9)) == (
        "+0.0 points [-6.0, +0.0]"
    )


def test_equal_teachers_add_nothing_to_each_other() -> None:
    planted = Planted(RATES, 80, seed=4)
    twice = {"x": planted.said["weak"], "y": planted.said["weak"]}
    answers = {name: Answers(tuple(texts), None) for name, texts in twice.items()}
    scores = {name: scores_of(TASK, a, planted.truth) for name, a in answers.items()}
    found = complementarity(TASK, ["x", "y"], answers, scores, HOW)
    assert found.gain.estimate == 0
    assert found.gain.low == 0 < found.gain.high
    assert found.all_agree is not None
    assert found.all_agree.estimate == 1
    pair = differences(scores, HOW)[0]
    assert (pair.p_value, pair.significant) == (1.0, False)


def test_brier_and_calibration_see_what_accuracy_does_not() -> None:
    """Two teachers with equal answers; one says how sure it may be, the other is always certain."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    sure = np.where(rng.random(400) < 0.7, truth, (truth + 1) % 3)
    honest = np.full((400, 3), 0.15)
    honest[np.arange(400), sure] = 0.7
    certain = np.eye(3)[sure]
    references = [LABELS[i] for i in truth]
    texts = tuple(LABELS[i] for i in sure)
    one = quality(TASK, Answers(texts, honest), references, HOW)
    two = quality(TASK, Answers(texts, certain), references, HOW)
    assert one.score == two.score
    assert one.brier is not None
    assert two.brier is not None
    assert one.calibration_error is not None
    assert two.calibration_error is not None
    assert one.calibration_error.estimate < 0.05
    assert two.calibration_error.estimate > 0.2
    # Expected 0.465 and 0.6.
    assert one.brier.estimate < two.brier.estimate - 0.1
    naive = [
        sum((p - (c == t)) ** 2 for c, p in enumerate(row))
        for row, t in zip(honest.tolist(), truth.tolist(), strict=True)
    ]
    assert brier_scores(honest, truth) == pytest.approx(naive)


def test_beliefs_known_of_some_queries_are_judged_on_those() -> None:
    p = np.array([[0.8, 0.1, 0.1], [math.nan] * 3, [0.1, 0.8, 0.1]])
    found = quality(TASK, Answers(("a", "", "zzz"), p), ["a", "a", "b"], HOW)
    assert found.brier is not None
    assert found.brier.n == 2
    assert found.unreadable == 1, "no answer at all is counted apart"
    nothing = quality(TASK, Answers(("a",), np.full((1, 3), math.nan)), ["a"], HOW)
    assert nothing.brier is None


def test_groups_widen_what_they_should() -> None:
    planted = Planted(RATES, 40, seed=6)
    scores = {name: np.repeat(s, 5).tolist() for name, s in planted.scores().items()}
    groups = tuple(np.repeat(np.arange(40), 5).tolist())
    alone = differences(scores, HOW)[1]
    held = differences(scores, HOW._replace(groups=groups))[1]
    assert held.method == "sign_flip"
    assert held.p_value > alone.p_value
    assert held.difference.high - held.difference.low > alone.difference.high - alone.difference.low


def test_extraction_and_generation_have_their_own_scores() -> None:
    extract = ExtractionTask(
        kind="extraction",
        json_schema={"type": "object", "properties": {"x": {"type": "string"}}},
    )
    said = {
        "one": Answers(('{"x": "1"}', '{"x": "2"}'), None),
        "two": Answers(('{"x": "1"}', "no"), None),
    }
    scores = {name: scores_of(extract, a, ['{"x": "1"}', '{"x": "2"}']) for name, a in said.items()}
    assert scores == {"one": [1.0, 1.0], "two": [1.0, 0.0]}
    assert agreement(extract, said, scores).agreement[0][1] == 0.5
    assert agreement(extract, said, scores).kappa is None
    write = GenerationTask(kind="generation")
    texts = {"one": Answers(("a long film",), None), "two": Answers(("a film",), None)}
    marks = {name: scores_of(write, a, ["a film"]) for name, a in texts.items()}
    found = complementarity(write, list(texts), texts, marks, HOW)
    assert found.all_agree is None
    assert found.oracle.estimate == 1.0
    assert agreement(write, texts, marks).agreement[0][1] == pytest.approx(0.8)
