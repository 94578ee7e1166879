"""What changes of a state that comes to a stage of its plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.serve.gateway_sections import StageSection
from stillhouse.serve.records import ExperimentState


def at_stage(
    state: ExperimentState, plan: Sequence[StageSection], stage: int, at: float
) -> dict[str, object]:
    """What changes of a state that comes to a stage; its evidence begins with this version."""
    return {
        "version": state.version + 1,
        "counts_from": state.version + 1,
        "stage": stage,
        "kind": plan[stage].kind,
        "share": share_at(plan[stage]),
        "since": at,
        "waiting": False,
        "held": False,
    }


def share_at(stage: StageSection) -> float:
    """Of the traffic, to the student."""
    return 1.0 if stage.kind == "full" else stage.share
