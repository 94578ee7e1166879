"""Live outcomes as samples to calibrate by: which count, and what they may decide."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.engine import Engine
from typer.testing import CliRunner

from gateway_stores import call_of, served_of
from stillhouse.calibrating import Live, Wanted, calibrate_live, with_live
from stillhouse.cli import app
from stillhouse.core.errors import UserError
from stillhouse.serve.calibrator import Halves, Judged, fit_calibrator
from stillhouse.serve.gate_file import load_gate
from stillhouse.serve.live_labels import ENOUGH, Author, LiveLabels, Whose, live_labels, mixed
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

NAMES = Pseudonyms(b"0123456789abcdef")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    found = open_database(f"sqlite:///{tmp_path}/gateway.db")
    yield found
    found.dispose()


def put(log: TrafficLog, number: int, scores: list[float], **fields: Any) -> None:
    told = served_of(number, **{"variant": "student", "features": {"logit": 1.5}, **fields})
    assert log.offer(call_of(number, id=told.id), told)
    assert log.flush(10)
    for score in scores:
        log.outcome(Outcome(request=told.id, kind="judge", score=score, at=number + 1))


def test_what_the_student_said_and_was_judged_counts(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    put(log, 1, [0.0, 0.9], shadow_of="r0")  # the newest outcome
    put(log, 2, [0.4], unit="u7")
    put(log, 3, [])  # nobody judged it
    put(log, 4, [1.0], variant="teacher", fell_back=True)  # the features are of what nobody saw
    put(log, 5, [1.0], features={})  # before there was a gate
    put(log, 6, [1.0], task="other")
    log.close()
    found = live_labels(engine, "reviews", 0.0)
    assert found.seen == [Judged("r1", {"logit": 1.5}, True, "u1")]
    assert found.shown == [Judged("r2", {"logit": 1.5}, False, "u7")]
    assert live_labels(engine, "reviews", 2.0).seen == []
    assert live_labels(engine, "reviews", 0.0, acceptable=0.95).seen[0].acceptable is False
    assert live_labels(engine, "reviews", 0.0, {"scorer"}) == LiveLabels([], [])


OURS, OTHER = "fp_0123456789abcdef", "fp_fedcba9876543210"


def test_of_several_students_the_answers_of_one_count(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    put(log, 1, [1.0], upstream="s-1", fingerprint=OURS)
    put(log, 2, [1.0], upstream="small", fingerprint=OURS, shadow_of="r0")
    put(log, 3, [1.0], upstream="small", fingerprint=OTHER)
    put(log, 4, [1.0], upstream="served")  # by a server: its files are not known
    log.close()

    def ids(whose: Whose) -> list[str]:
        found = live_labels(engine, "reviews", 0.0, whose=whose)
        assert found.authors.total() + found.others.total() == 4
        assert found.authors.total() == len(found.seen) + len(found.shown)
        return sorted(one.id for one in (*found.seen, *found.shown))

    assert ids(Whose()) == ["r1", "r2", "r3", "r4"]
    assert ids(Whose(OURS)) == ["r1", "r2"]
    assert ids(Whose(OURS, "small")) == ["r2"]
    assert ids(Whose(None, "small")) == ["r2", "r3"]
    assert ids(Whose(None, OTHER)) == ["r3"]
    assert ids(Whose(OURS, "served")) == ["r4"]
    assert ids(Whose(OURS, "nobody")) == []
    others = live_labels(engine, "reviews", 0.0, whose=Whose(OURS)).others
    assert {str(one): count for one, count in others.items()} == {
        f"small ({OTHER})": 1,
        "served": 1,
    }


def test_answers_of_adapters_are_not_the_shared_students(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    put(log, 1, [1.0], upstream="small", fingerprint=OURS)
    for number, adapter in ((2, "a" * 12), (3, "b" * 12)):
        put(log, number, [0.0], upstream="small", fingerprint=f"{OURS}.{adapter}")
    log.close()
    found = live_labels(engine, "reviews", 0.0, whose=Whose(OURS))
    assert [one.id for one in found.shown] == ["r1"]
    assert found.others == {Author("small", f"{OURS}.adapters"): 2}


def test_a_row_of_before_the_log_had_fingerprints_is_told_by_its_answer(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    answers: list[dict[str, Any]] = [
        {"model": "student:films", "response": {"system_fingerprint": OURS}},
        {"model": "student:films", "response": {"system_fingerprint": OTHER}},
        # A server's fingerprint is of its build, whatever it says.
        {"model": "openai-compatible:films", "response": {"system_fingerprint": OURS}},
        {"model": "student:films", "response": None, "error": "status 500"},
    ]
    for number, fields in enumerate(answers):
        told = served_of(number, variant="student", features={"logit": 1.5}, upstream="small")
        assert log.offer(call_of(number, **fields), told)
        assert log.flush(10)
        log.outcome(Outcome(request=told.id, kind="judge", score=1.0, at=number + 1))
    log.close()
    found = live_labels(engine, "reviews", 0.0, whose=Whose(OURS))
    assert [one.id for one in found.shown] == ["r0"]
    assert found.others == {Author("small", OTHER): 1, Author("small"): 2}


def judged(prefix: str, count: int, **features: float) -> list[Judged]:
    return [
        Judged(f"{prefix}{n}", {"logit": float(n), **features}, n % 3 > 0) for n in range(count)
    ]


def test_answers_that_passed_a_gate_never_test() -> None:
    held_out = Halves(judged("f", 40), judged("t", 30))
    few = LiveLabels(judged("s", 20, more=1.0), judged("shown", 50))
    found = mixed(held_out, few)
    assert found.source == "held-out answers"
    assert [one.id for one in found.halves.tests] == [f"t{n}" for n in range(30)]
    assert {one.id[0] for one in found.halves.fits} == {"f", "s"}
    assert all(set(one.features) == {"logit"} for one in found.halves.fits)
    many = LiveLabels(judged("s", 2 * ENOUGH + 80), judged("g", 50))
    found = mixed(held_out, many)
    assert found.source == "live shadow answers"
    assert {one.id[0] for one in found.halves.tests} == {"s"}
    assert {one.id[0] for one in found.halves.fits} == {"f", "s", "g"}
    assert len(found.halves.tests) >= ENOUGH
    # What lacks a feature of the run's samples cannot be scored.
    rich = Halves([Judged("a", {"logit": 0.0, "familiarity": 1.0}, True)], [])
    assert mixed(rich, many).left_out == len(many.seen) + 50
    with pytest.raises(ValueError, match="no judged answers"):
        mixed(Halves([], []), LiveLabels([], []))


def test_selection_by_confidence_does_not_bend_the_fit() -> None:
    """Half of the samples passed a gate on the same feature; P(acceptable | feature) stays."""
    rng = np.random.default_rng(4)
    x = rng.normal(0, 2, 12_000)
    right = rng.random(len(x)) < 1 / (1 + np.exp(-x / 2))
    rows = [
        Judged(f"{n}", {"logit": float(v)}, bool(r))
        for n, (v, r) in enumerate(zip(x, right, strict=True))
    ]
    shown = [one for one in rows[6_000:] if one.features["logit"] > 1]
    from_all = mixed(Halves([], []), LiveLabels(rows[:6_000], shown))
    # Standard errors of the slope are near 0.02 at this number.
    from_fit = fit(from_all.halves.fits)
    assert from_fit.probability({"logit": 2.0}) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)
    assert from_fit.probability({"logit": -2.0}) == pytest.approx(1 / (1 + math.exp(1)), abs=0.03)


def fit(rows: list[Judged]) -> Any:
    return fit_calibrator([one.features for one in rows], [one.acceptable for one in rows])


def test_a_gate_is_fitted_from_the_log_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gateway.db"
    engine = open_database(url)
    log = TrafficLog(engine, NAMES, redact=None)
    rng = np.random.default_rng(1)
    now = time.time()
    outcomes = []
    for number in range(700):
        x = float(rng.normal(2, 2))
        right = float(rng.random() < 1 / (1 + math.exp(-x)))
        told = served_of(
            number,
            at=now - 100,
            variant="student",
            features={"logit": x},
            shadow_of=f"q{number}",
            unit=f"u{number}",
        )
        assert log.offer(call_of(number, id=told.id), told)
        outcomes.append(Outcome(request=told.id, kind="scorer", score=right, at=now))
    assert log.flush(30)
    for outcome in outcomes:
        log.outcome(outcome)
    log.close()
    engine.dispose()
    given = ["--log", url, "--task", "reviews", "--error", "0.2", "--out", str(tmp_path / "gate")]
    told = CliRunner().invoke(app, ["calibrate", *given])
    assert told.exit_code == 0, told.output
    assert "live labels: 700 shadow answers, 0 shown ones" in told.output
    gate = load_gate(tmp_path / "gate" / "gate.json")
    assert gate.source == "live shadow answers"
    assert gate.n >= ENOUGH
    assert gate.threshold is not None
    none = CliRunner().invoke(app, ["calibrate", *given[:3], "other", *given[4:]])
    assert isinstance(none.exception, UserError)
    assert "holds no judged answer of the student" in str(none.exception)
    absent = CliRunner().invoke(app, ["calibrate", *given, "--log-student", "absent"])
    assert isinstance(absent.exception, UserError)
    assert "of the student absent of the task reviews, in 30 days, only of others: big 700" in str(
        absent.exception
    )


def test_a_log_of_several_students_wants_one_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gateway.db"
    engine, now = open_database(url), time.time()
    log = TrafficLog(engine, NAMES, redact=None)
    for number in range(60):
        own = OURS if number < 40 else OTHER
        at = now - 100 + number / 10
        put(log, number, [float(number % 4 > 0)], at=at, upstream="small", fingerprint=own)
    log.close()
    engine.dispose()
    out = tmp_path / "gate"
    live = Live(url, "reviews", 30, ("judge",))
    with pytest.raises(UserError) as error:
        calibrate_live(Wanted(live=live, out=out))
    assert f"of several students: small ({OURS}) 40, small ({OTHER}) 20" in str(error.value)
    found = with_live(Halves([], []), live._replace(student=OTHER), None)
    assert (len(found.halves.fits), found.student) == (20, OTHER)
    assert f"40 of other students are left out: small ({OURS}) 40" in found.notes
