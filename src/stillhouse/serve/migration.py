"""What an admin does to an experiment by hand: approve, roll back, kill, revive. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_sections import StageSection
from stillhouse.serve.records import Action, Decision, ExperimentState

# The word in the path, and the word in the audit log.
ACTIONS: Final[dict[str, Action]] = {
    "approve": "approve",
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
        task=task, kind=plan[0].kind, share=_share(plan[0]), since=at, threshold=threshold
    )


def changed(
    state: ExperimentState, plan: Sequence[StageSection], action: str, reason: str, at: float
) -> tuple[ExperimentState, Decision]:
    """The next state, and its line for the audit log.

    Raises:
        ApiError: 409: the action does not fit the state.
    """
    stage = state.stage
    new = {"version": state.version + 1}
    if action == "approve":
        if state.killed or stage + 1 >= len(plan):
            raise ApiError(409, "There is nothing to approve.", code="conflict")
        stage += 1
    elif action == "rollback":
        stage = 0
    elif (action == "kill") == state.killed:
        raise ApiError(409, f"It is {'' if state.killed else 'not '}killed.", code="conflict")
    if action in ("approve", "rollback"):
        at_stage = plan[stage]
        new |= {"stage": stage, "waiting": False, "since": at}  # type: ignore[dict-item]
        new |= {"kind": at_stage.kind, "share": _share(at_stage)}  # type: ignore[dict-item]
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
    )
    return state.model_copy(update=new), decision


def _share(stage: StageSection) -> float:
    return 1.0 if stage.kind == "full" else stage.share
