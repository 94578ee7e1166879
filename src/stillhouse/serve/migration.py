"""What an admin does to an experiment by hand: approve, retry, roll back, kill, revive. Pure.

What is rolled back by hand is held there, whatever the evidence says: until `approve`, which
advances it by hand, or `retry`, which lets the policy begin again. A new student that is rolled
back is gone, and the running one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.candidates import about, stepped, withdrawn
from stillhouse.serve.gateway_sections import StageSection
from stillhouse.serve.records import Action, Decision, ExperimentState
from stillhouse.serve.stages import at_stage, share_at

# The word in the path, and the word in the audit log.
ACTIONS: Final[dict[str, Action]] = {
    "approve": "approve",
    "retry": "retry",
    "rollback": "roll_back",
    "kill": "kill",
    "revive": "revive",
}


def first_state(
    task: str, plan: Sequence[StageSection], at: float, *, student: bool, threshold: float | None
) -> ExperimentState:
    """A task's state before any decision: the plan's first stage, or off without a student."""
    if not student:
        return ExperimentState(task=task, since=at)
    return ExperimentState(
        task=task, kind=plan[0].kind, share=share_at(plan[0]), since=at, threshold=threshold
    )


def changed(
    state: ExperimentState, plan: Sequence[StageSection], action: str, reason: str, at: float
) -> tuple[ExperimentState, Decision]:
    """The next state, and its line for the audit log.

    Raises:
        ApiError: 409: the action does not fit the state.
    """
    if action == "rollback" and state.candidate is not None:
        return withdrawn(state, "roll_back", reason, at)
    stage = state.stage
    new: dict[str, object] = {"version": state.version + 1}
    if action == "approve":
        if state.killed or stage + 1 >= len(plan):
            raise ApiError(409, "There is nothing to approve.", code="conflict")
        stage += 1
        new = stepped(state, plan, stage, at) | {"attempt": 1}
    elif action == "retry":
        if not state.held:
            raise ApiError(409, "It is not held.", code="conflict")
        new = at_stage(state, plan, stage, at) | {"attempt": 1}
    elif action == "rollback":
        stage = 0
        new = at_stage(state, plan, stage, at) | {"held": True}
    elif (action == "kill") == state.killed:
        raise ApiError(409, f"It is {'' if state.killed else 'not '}killed.", code="conflict")
    else:
        new |= {"killed": action == "kill"}
    decision = Decision(
        at=at,
        task=state.task,
        action=ACTIONS[action],
        from_stage=state.stage,
        to_stage=stage,
        reason=reason or "by hand",
        by="admin",
        student=about(state),
    )
    return state.model_copy(update=new), decision


def with_student(
    state: ExperimentState, plan: Sequence[StageSection], student: str, at: float
) -> tuple[ExperimentState, Decision]:
    """The state with gateway.yaml's student: one that is not the one it was about begins at the
    first stage, for what is known is of the other. Beside a candidate it is the running one."""
    if state.candidate is not None:
        before, found = with_student(state.candidate.before, plan, student, at)
        before = before.model_copy(update={"version": state.candidate.before.version})
        candidate = state.candidate.model_copy(update={"before": before})
        new = state.model_copy(update={"version": state.version + 1, "candidate": candidate})
        return new, found.model_copy(update={"from_stage": state.stage, "to_stage": state.stage})
    update: dict[str, object] = {"version": state.version + 1, "student": student}
    another = state.student is not None and state.student != student
    if another and state.kind != "off":
        update |= at_stage(state, plan, 0, at) | {"attempt": 1}
    new = state.model_copy(update=update)
    decision = Decision(
        at=at,
        task=state.task,
        action="hold",
        from_stage=state.stage,
        to_stage=new.stage,
        reason="another student: it begins again" if another else "the student is known",
        numbers={"student": student, "before": state.student},
        by="gateway.yaml",
    )
    return new, decision
