"""The gate: verdicts, reasons, and what too few samples may not do."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.evaluate.gate import decide
from stillhouse.evaluate.metrics import Resampling

HOW = Resampling(0.95, 300, 0)


def test_an_equal_student_passes_and_a_clearly_worse_one_fails() -> None:
    teacher = [1.0] * 400 + [0.0] * 100
    assert decide(teacher, teacher, 0.05, "truth", HOW).verdict == "pass"
    worse = [0.0] * 50 + teacher[50:]
    verdict = decide(worse, teacher, 0.05, "truth", HOW)
    assert verdict.verdict == "fail"
    assert verdict.difference.estimate == pytest.approx(-0.1)
    assert verdict.difference.low < -0.1 < verdict.difference.high
    assert "-10.0 points" in verdict.reasons[0]
    assert "not above the margin of -5" in verdict.reasons[0]


def test_pass_means_that_the_lower_bound_lies_inside_the_margin() -> None:
    rng = np.random.default_rng(0)
    for n in (50, 200, 800):
        teacher = (rng.random(n) < 0.8).astype(float)
        student = np.where(rng.random(n) < 0.9, teacher, 1 - teacher)
        verdict = decide(student.tolist(), teacher.tolist(), 0.05, "truth", HOW)
        assert (verdict.verdict == "pass") == (verdict.difference.low > -0.05)


def test_a_promising_student_is_told_to_bring_more_samples() -> None:
    teacher = [1.0] * 40
    student = [0.0] + [1.0] * 39
    verdict = decide(student, teacher, 0.05, "truth", HOW)
    assert verdict.verdict == "fail"
    assert any("more samples" in reason for reason in verdict.reasons)


def test_against_the_teachers_own_answers_it_says_so() -> None:
    verdict = decide([1.0] * 200, [1.0] * 200, 0.05, "teacher", HOW)
    assert verdict.verdict == "pass"
    assert verdict.reference == "teacher"
    assert any("the teacher's own answers" in reason for reason in verdict.reasons)


def test_a_bootstrap_bound_on_few_samples_never_passes() -> None:
    few = [0.51] * 20
    verdict = decide(few, few, 0.05, "truth", HOW)
    assert verdict.verdict == "fail"
    assert any("too few" in reason for reason in verdict.reasons)
    assert decide([0.51] * 60, [0.51] * 60, 0.05, "truth", HOW).verdict == "pass"
    grouped = HOW._replace(groups=[i // 100 for i in range(1000)])
    verdict = decide([1.0] * 1000, [1.0] * 1000, 0.05, "truth", grouped)
    assert verdict.verdict == "fail"
    assert any("groups" in reason for reason in verdict.reasons)


def test_empty_input_raises() -> None:
    with pytest.raises(ValueError):
        decide([], [], 0.05, "truth", HOW)


def test_one_near_duplicate_pair_does_not_turn_fail_into_pass() -> None:
    """40 samples that all agree prove 6 points, not 5, whether 40 groups or 39."""
    same = [1.0] * 40
    assert decide(same, same, 0.05, "truth", HOW).verdict == "fail"
    grouped = HOW._replace(groups=[0, *range(39)])
    verdict = decide(same, same, 0.05, "truth", grouped)
    assert verdict.verdict == "fail"
    assert verdict.difference.low < -0.05
    enough = HOW._replace(groups=[0, *range(99)])
    assert decide([1.0] * 100, [1.0] * 100, 0.05, "truth", enough).verdict == "pass"


def test_equal_graded_scores_are_no_certainty() -> None:
    verdict = decide([0.51] * 40, [0.51] * 40, 0.05, "truth", HOW)
    assert verdict.verdict == "fail"
    assert verdict.difference.low == pytest.approx(-(1.645**2) / (40 + 1.645**2), abs=1e-4)
