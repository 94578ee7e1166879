"""A new student beside the running one: what an offer, a step, its end and a swap make of a state.

While a candidate climbs, stage, share, threshold and evidence of the state are the candidate's, and
the running student's own state waits in `Candidate.before`. Pure: no folder is looked at here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import JsonValue

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_sections import StageSection
from stillhouse.serve.records import (
    Action,
    Candidate,
    Decision,
    ExperimentState,
    StageKind,
    StudentFolder,
)
from stillhouse.serve.stages import at_stage

Plan = Sequence[StageSection]


class Changed(NamedTuple):
    """A new state, and its line for the audit log."""

    state: ExperimentState
    decision: Decision


def running_share(state: ExperimentState) -> float:
    """Of the traffic that the running student has while another climbs: what it had before."""
    before = state if state.candidate is None else state.candidate.before
    return {"off": 0.0, "shadow": 0.0, "canary": before.share, "full": 1.0}[before.kind]


def without_candidate(state: ExperimentState) -> ExperimentState:
    """The state as a gateway goes by it that has not opened the candidate: as before the offer.

    Its version is an old one, so that nothing it does is evidence of the candidate.
    """
    if state.candidate is None:
        return state
    return state.candidate.before.model_copy(update={"killed": state.killed})


def first_climb(plan: Plan) -> int:
    """The stage that a candidate begins at: the first that is not off.

    Raises:
        ApiError: 409: the plan has nothing between off and its end.
    """
    for number, stage in enumerate(plan):
        if stage.kind != "off":
            if is_last(plan, number):
                break
            return number
    raise ApiError(
        409, "The plan has no stage before full that a new student could climb.", code="conflict"
    )


def is_last(plan: Plan, stage: int) -> bool:
    """Whether a candidate that comes to a stage is the student from then on."""
    kind: StageKind = plan[stage].kind
    return kind == "full" or stage + 1 >= len(plan)


def offered(
    state: ExperimentState, plan: Plan, folder: StudentFolder, reason: str, at: float
) -> Changed:
    """A candidate begins.

    Raises:
        ApiError: 409: it does not fit the state.
    """
    if state.killed:
        raise ApiError(409, "The task is killed: revive it first.", code="conflict")
    if state.candidate is not None:
        name = state.candidate.folder.name
        raise ApiError(409, f"{name} climbs already: withdraw it first.", code="conflict")
    if state.serving is not None and state.serving.name == folder.name:
        raise ApiError(409, f"{folder.name} is the student already.", code="conflict")
    stage = first_climb(plan)
    new = state.model_copy(
        update=at_stage(state, plan, stage, at)
        | {
            "attempt": 1,
            "candidate": Candidate(folder=folder, since=at, before=state),
            "threshold": folder.threshold,
            "student": folder.identity,
        }
    )
    return Changed(new, _decision(state, new, _Step("offer", reason, at), _paths(new)))


def stepped(state: ExperimentState, plan: Plan, stage: int, at: float) -> dict[str, object]:
    """What changes of a state that comes to a stage; a candidate at its last is the student."""
    update = at_stage(state, plan, stage, at)
    if state.candidate is not None and is_last(plan, stage):
        update |= {"candidate": None, "serving": state.candidate.folder, "attempt": 1}
    return update


def withdrawn(
    state: ExperimentState,
    action: Action,
    reason: str,
    at: float,
    *,
    by: str = "admin",
    numbers: Mapping[str, JsonValue] | None = None,
) -> Changed:
    """The candidate is gone, and the running student stands where it stood; its evidence begins
    anew, for what was seen meanwhile was not about it.

    Raises:
        ApiError: 409: there is none.
    """
    if state.candidate is None:
        raise ApiError(409, "No new student climbs.", code="conflict")
    new = state.candidate.before.model_copy(
        update={
            "version": state.version + 1,
            "counts_from": state.version + 1,
            "since": at,
            "killed": state.killed,
        }
    )
    return Changed(new, _decision(state, new, _Step(action, reason, at, by), numbers or {}))


def reloaded(
    state: ExperimentState, plan: Plan, folder: StudentFolder, reason: str, at: float
) -> Changed:
    """The running student in a newer version; stage and share stay, whoever climbs goes on.

    Below the last stage its evidence begins anew. At the last one it goes on: all that is tested
    there is "worse than allowed", which holds of students that change as well.

    Raises:
        ApiError: 409: the candidate has that name.
    """
    update: dict[str, object] = {"serving": folder, "threshold": folder.threshold}
    update["student"] = folder.identity
    version = {"version": state.version + 1}
    climbing = state.candidate
    if climbing is not None:
        if climbing.folder.name == folder.name:
            raise ApiError(409, f"{folder.name} is the candidate's name.", code="conflict")
        before = climbing.before.model_copy(update=update)
        candidate = climbing.model_copy(update={"before": before})
        new = state.model_copy(update=version | {"serving": folder, "candidate": candidate})
    else:
        if state.stage + 1 < len(plan):
            update |= {"counts_from": state.version + 1, "since": at}
        new = state.model_copy(update=version | update)
    decision = _decision(state, new, _Step("reload", reason, at), _paths(new))
    return Changed(new, decision.model_copy(update={"student": folder.name}))


def about(state: ExperimentState) -> str | None:
    """Name of the candidate that a state's decisions are about."""
    return None if state.candidate is None else state.candidate.folder.name


def _paths(state: ExperimentState) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for key, one in (
        ("running", state.serving),
        ("candidate", None if state.candidate is None else state.candidate.folder),
    ):
        if one is not None:
            found[key] = one.model_dump(mode="json")
    return found


class _Step(NamedTuple):
    action: Action
    reason: str
    at: float
    by: str = "admin"


def _decision(
    old: ExperimentState, new: ExperimentState, step: _Step, numbers: Mapping[str, JsonValue]
) -> Decision:
    return Decision(
        at=step.at,
        task=old.task,
        action=step.action,
        from_stage=old.stage,
        to_stage=new.stage,
        reason=step.reason or "by hand",
        numbers=numbers,
        by=step.by,
        student=about(old) or about(new),
    )
