"""The policy: what numbers and time lead to, and with which chances of error."""

from __future__ import annotations

from typing import Any

import pytest
from rollout_world import FEEDBACK, SCORER, file_of, state_of

from stillhouse.core.tasks import ClassificationTask
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.evidence import StageEvidence
from stillhouse.serve.guardrails import Reading
from stillhouse.serve.migration import changed
from stillhouse.serve.numbers import StageNumbers, in_words
from stillhouse.serve.policy import (
    JudgeTrust,
    carried_out,
    decide,
    preference_margin,
    rules_of,
    why_it_holds,
)

FILE = file_of()
PLAN = FILE.tasks["reviews"].experiment
SLOW = Reading(name="latency_ratio", limit=2, student=900, teacher=100, n=80, tripped=True)


def numbers(**fields: Any) -> StageNumbers:
    state = state_of(FILE)
    empty = StageEvidence(rules_of(FILE.tasks["reviews"], state), state).numbers()
    return empty.model_copy(
        update={"requests": 1000, "values": 900, "student": 0.9, "teacher": 0.91} | fields
    )


def test_it_advances_where_it_is_shown_to_be_good_enough_and_not_before() -> None:
    state = state_of(FILE)
    assert decide(state, PLAN, numbers(), 9e9) is None
    found = decide(state, PLAN, numbers(better=True, p_better=0.01), 9e9)
    assert found is not None
    assert (found.action, found.to_stage) == ("advance", 1)
    assert "student 90.0%, teacher 91.0%" in found.reason
    new, decision = carried_out(state, PLAN, found, numbers(better=True), 77.0)
    assert (new.stage, new.kind, new.share, new.since) == (1, "canary", 0.05, 77.0)
    assert (new.version, new.counts_from) == (1, 1)
    assert decision.numbers["better"] is True
    assert decision.numbers["margin"] == 0.05
    assert (decision.by, decision.from_stage, decision.to_stage) == ("policy", 0, 1)


@pytest.mark.parametrize("fields", [{"requests": 99}, {"better": False}])
def test_it_holds_before_its_time(fields: Any) -> None:
    assert decide(state_of(FILE), PLAN, numbers(**({"better": True} | fields)), 9e9) is None


def test_it_waits_for_its_hours() -> None:
    stages = [{"kind": "shadow", "min_requests": 0, "min_hours": 2}, {"kind": "full"}]
    plan = file_of(stages=stages).tasks["reviews"].experiment
    state = state_of(FILE)
    assert decide(state, plan, numbers(better=True), 7199.0) is None
    assert decide(state, plan, numbers(better=True), 7200.0) is not None
    assert "of 2 hours" in why_it_holds(state, plan, numbers(better=True), 7199.0)


@pytest.mark.parametrize("what", [{"worse": True}, {"guardrails": (SLOW,)}])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_it_rolls_back_at_once_and_is_then_held(what: Any, stage: int) -> None:
    state = state_of(FILE, stage, version=7)
    found = decide(state, PLAN, numbers(requests=3, better=True, **what), 1.0)
    assert found is not None
    assert (found.action, found.to_stage) == ("roll_back", 0)
    new, _ = carried_out(state, PLAN, found, numbers(), 5.0)
    assert (new.stage, new.kind, new.held, new.attempt) == (0, "shadow", True, 1)
    assert decide(new, PLAN, numbers(better=True), 9e9) is None
    assert decide(new, PLAN, numbers(worse=True), 9e9) is None
    assert "held" in why_it_holds(new, PLAN, numbers(), 9.0)


def test_a_plan_that_begins_with_the_student_is_rolled_back_by_killing_it() -> None:
    plan = file_of(stages=[{"kind": "full"}]).tasks["reviews"].experiment
    state = state_of(file_of(stages=[{"kind": "full"}]))
    found = decide(state, plan, numbers(worse=True), 1.0)
    assert found is not None
    new, _ = carried_out(state, plan, found, numbers(), 5.0)
    assert new.killed


def test_attempts_share_alpha() -> None:
    file = file_of(evidence={**SCORER, "attempts": 3})
    plan, state = file.tasks["reviews"].experiment, state_of(file)
    assert rules_of(file.tasks["reviews"], state).alpha == pytest.approx(plan.alpha / 3)
    for attempt in (1, 2, 3):
        assert (state.attempt, state.held) == (attempt, False)
        found = decide(state, plan, numbers(worse=True), 1.0)
        assert found is not None
        state, _ = carried_out(state, plan, found, numbers(), 5.0)
    assert state.held


def test_it_waits_for_approval_where_it_is_asked_to() -> None:
    plan = file_of(approval=True).tasks["reviews"].experiment
    state = state_of(FILE)
    found = decide(state, plan, numbers(better=True), 9e9)
    assert found is not None
    assert found.action == "wait"
    waits, decision = carried_out(state, plan, found, numbers(), 5.0)
    assert (waits.waiting, waits.stage, waits.counts_from) == (True, 0, 0)
    assert (decision.from_stage, decision.to_stage) == (0, 1)
    assert decide(waits, plan, numbers(better=True), 9e9) is None
    assert decide(waits, plan, numbers(worse=True), 9e9) is not None
    approved, _ = changed(waits, plan.stages, "approve", "", 6.0)
    assert (approved.stage, approved.waiting, approved.counts_from) == (1, False, 2)


def test_what_an_admin_rolls_back_stays_until_somebody_says_otherwise() -> None:
    state, _ = changed(state_of(FILE, 2), PLAN.stages, "rollback", "", 6.0)
    assert (state.stage, state.held) == (0, True)
    assert decide(state, PLAN, numbers(better=True), 9e9) is None
    again, decision = changed(state, PLAN.stages, "retry", "", 7.0)
    assert (again.held, again.since, again.attempt, decision.action) == (False, 7.0, 1, "retry")
    assert decide(again, PLAN, numbers(better=True), 9e9) is not None
    with pytest.raises(ApiError):
        changed(again, PLAN.stages, "retry", "", 7.0)


@pytest.mark.parametrize("fields", [{"killed": True}, {"kind": "off"}])
def test_where_the_teacher_answers_all_nothing_is_decided(fields: Any) -> None:
    state = state_of(FILE).model_copy(update=fields)
    assert decide(state, PLAN, numbers(better=True, worse=True), 9e9) is None
    assert "the teacher answers all" in why_it_holds(state, PLAN, numbers(), 1.0)


def test_without_evidence_guardrails_act_alone() -> None:
    plan = file_of(evidence=None).tasks["reviews"].experiment
    state = state_of(FILE, 1)
    assert decide(state, plan, numbers(better=True), 9e9) is None
    assert decide(state, plan, numbers(guardrails=(SLOW,)), 9e9) is not None
    assert rules_of(file_of(evidence=None).tasks["reviews"], state).design is None


def test_feedback_leaves_the_shadow_stage_on_guardrails_alone() -> None:
    file = file_of(evidence=FEEDBACK)
    task = file.tasks["reviews"]
    assert [rules_of(task, state_of(file, stage)).design for stage in range(4)] == [
        None,
        "arms",
        "arms",
        "arms",
    ]
    found = decide(state_of(file), task.experiment, numbers(design=None), 9e9)
    assert found is not None
    assert "within the guardrails" in found.reason


def test_the_last_stage_only_looks_back() -> None:
    state = state_of(FILE, 3)
    assert decide(state, PLAN, numbers(better=True), 9e9) is None
    assert rules_of(FILE.tasks["reviews"], state).renews
    assert not rules_of(FILE.tasks["reviews"], state_of(FILE, 2)).renews


def test_the_arms_are_as_many_as_the_stage_assigns() -> None:
    file = file_of(evidence=FEEDBACK)
    ratios = [
        rules_of(file.tasks["reviews"], state_of(file, stage)).teachers_per_student
        for stage in range(4)
    ]
    assert ratios == pytest.approx([1.0, 0.951 / 0.049, 0.755 / 0.245, 0.02 / 0.98], rel=1e-9)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_judge_is_asked_for_what_its_gold_set_says_it_can_see(kind: str) -> None:
    """Of the true preferences at the margin exactly, a judge that sees a part of each sees so much
    less of the difference: its slack is then 0 too."""
    plan = file_of(margin=0.1, margin_kind=kind).tasks["reviews"].experiment
    loss = 0.1 if kind == "absolute" else 0.1 / 1.9
    student, teacher = (1 - loss) / 2, (1 + loss) / 2
    if kind == "relative":
        assert student == pytest.approx(0.9 * teacher)
    net = 0.6
    seen = net * (student - teacher)
    margin = preference_margin(plan, JudgeTrust(net, tested=True))
    assert margin.slack((1 + seen) / 2, (1 - seen) / 2) == pytest.approx(0, abs=1e-12)


def test_a_tested_judge_leaves_a_part_of_alpha_to_its_gold_set() -> None:
    judge = {"source": "judge", "task": SCORER["task"], "judge": {"upstream": "big"}}
    task = file_of(evidence=judge).tasks["reviews"]
    assert isinstance(task.experiment.evidence.task, ClassificationTask)  # type: ignore[union-attr]
    tested = rules_of(task, state_of(FILE), JudgeTrust(0.7, tested=True))
    assert tested.alpha == pytest.approx(0.04)
    assert rules_of(task, state_of(FILE), JudgeTrust(1.0, tested=False)).alpha == 0.05


def test_words() -> None:
    assert "no scores of both yet, 4 units wait" in in_words(numbers(values=0, open_units=4))
    assert "1,200 more requests" in in_words(numbers(needed="better", needed_requests=1234))
    assert "worse than allowed by" in in_words(numbers(needed="worse", needed_requests=10))
    assert "close to the margin" in in_words(numbers(needed_requests=None))
    assert "at most 2 times" in in_words(numbers(guardrails=(SLOW,)))
    assert "could not tell" in in_words(numbers(full=True))
