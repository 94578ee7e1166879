"""When a stage advances, waits for approval, holds or is rolled back, by numbers and time.

Pure: no database, no clock. What the chances of error are, over stages and attempts, is argued in
docs/evidence.md:

- each attempt's tests of "good enough" get alpha / attempts, each stage its own evidence: a student
  that is not good enough leaves the first stage that is decided by scores with probability alpha;
- the tests of "worse than allowed" share alpha over the stages, the guardrails have alpha a stage;
- after its last attempt it is held until an admin says otherwise.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pydantic import JsonValue

from stillhouse.core.anytime_margin import Margin, margin_of
from stillhouse.serve.candidates import about, is_last, running_share, stepped, withdrawn
from stillhouse.serve.evidence import Rules
from stillhouse.serve.gateway_sections import ExperimentSection, StageSection, TaskSection
from stillhouse.serve.numbers import StageNumbers, in_words
from stillhouse.serve.records import Action, Decision, ExperimentState, OutcomeKind

HOUR_S: Final = 3600.0
# Of alpha, for the chance that the judge is worse than its gold set says.
GOLD_SHARE: Final = 0.2


class Proposal(NamedTuple):
    """What is to be done, and why."""

    action: Action
    to_stage: int
    reason: str


class JudgeTrust(NamedTuple):
    """What a judge's preferences are worth.

    Its net preference (wins less losses) is at least `net` times the true one; `tested` says
    whether a gold set was there.
    """

    net: float
    tested: bool


class Blocked(NamedTuple):
    """Why a judge's verdicts cannot be used, or not yet."""

    why: str


def rules_of(task: TaskSection, state: ExperimentState, trust: JudgeTrust | None = None) -> Rules:
    """How a stage is judged.

    Args:
        trust: of the judge, where there is one.
    """
    plan = task.experiment
    evidence, stages = plan.evidence, plan.stages
    kinds: frozenset[OutcomeKind] = frozenset()
    design = None
    alpha, unit_s = plan.alpha, 0.0
    margin = margin_of(plan.margin_kind, plan.margin)
    if evidence is not None:
        design = evidence.seen if state.kind in ("canary", "full") else "pairs"
        if design == "pairs" and evidence.source == "feedback":
            design = None
        kinds = frozenset(evidence.outcomes)
        if evidence.source != "feedback":
            kinds = frozenset((evidence.source,))
        alpha = plan.alpha / evidence.attempts
        unit_s = 0.0 if plan.sticky == "request" else evidence.unit_hours * HOUR_S
        if evidence.source == "judge":
            margin = preference_margin(plan, trust)
            alpha *= 1 - GOLD_SHARE if trust is not None and trust.tested else 1
    decided = sum(stage.kind in ("shadow", "canary", "full") for stage in stages)
    return Rules(
        margin=margin,
        design=design,
        kinds=kinds,
        unit_s=unit_s,
        alpha=alpha,
        alpha_worse=plan.alpha / max(decided, 1),
        teachers_per_student=teachers_per_student(plan, state),
        guardrails=plan.guardrails,
        alpha_guardrails=plan.alpha,
        falls_back=task.fallback.teacher_when_student_down,
        renews=state.stage + 1 >= len(stages),
    )


def preference_margin(plan: ExperimentSection, trust: JudgeTrust | None) -> Margin:
    """The margin on a judge's preferences: scores of 1, 1/2 and 0 that sum to 1.

    With D = P(student better) - P(teacher better), an absolute margin m asks for D > -m; a relative
    one for s > (1 - m) t with s = (1 + D) / 2, t = (1 - D) / 2, which is D > -m / (2 - m). A judge
    whose net preference is the true one times `net` is asked for so much less of it.
    """
    loss = plan.margin if plan.margin_kind == "absolute" else plan.margin / (2 - plan.margin)
    return Margin(1.0, loss * (trust.net if trust is not None else 1.0))


def teachers_per_student(plan: ExperimentSection, state: ExperimentState) -> float:
    """Units of the two arms, as the stage assigns them."""
    if state.kind not in ("canary", "full"):
        return 1.0
    if state.candidate is not None:
        # The running student's own traffic, less what is the teacher's for the comparison, is of
        # neither arm.
        running = running_share(state)
        both = max(running - state.share, 0.0) * plan.candidate_pairs
        rest = both + 1 - max(running, state.share)
        teachers = plan.teacher_only + (1 - plan.teacher_only) * rest
        return max(teachers / ((1 - plan.teacher_only) * state.share), 1e-3)
    share = (1 - plan.teacher_only) * state.share
    return max((1 - share) / share, 1e-3) if share > 0 else 1.0


def decide(
    state: ExperimentState, plan: ExperimentSection, numbers: StageNumbers, now: float
) -> Proposal | None:
    """What is to be done now; `None`: nothing, it holds.

    Args:
        now: Unix seconds.
    """
    if state.killed or state.kind == "off":
        return None
    words = in_words(numbers)
    if numbers.tripped or numbers.worse:
        # Held at its first stage it has been rolled back already.
        return None if state.held and state.stage == 0 else Proposal("roll_back", 0, words)
    if plan.evidence is None or state.held or state.waiting:
        return None
    if state.stage + 1 >= len(plan.stages):
        return None
    if not _ripe(plan.stages[state.stage], state, numbers, now):
        return None
    if numbers.design is not None and not numbers.better:
        return None
    if numbers.design is None:
        words = f"{numbers.requests:,} requests within the guardrails; {words}"
    return Proposal("wait" if plan.approval else "advance", state.stage + 1, words)


def carried_out(
    state: ExperimentState,
    plan: ExperimentSection,
    proposal: Proposal,
    numbers: StageNumbers,
    now: float,
) -> tuple[ExperimentState, Decision]:
    """The state after a proposal, and its line for the audit log, with all its numbers."""
    told: dict[str, JsonValue] = {
        **numbers.model_dump(mode="json"),
        "attempt": state.attempt,
        "margin": plan.margin,
        "margin_kind": plan.margin_kind,
        "stage_seconds": round(now - state.since, 3),
    }
    action = proposal.action
    if state.candidate is not None and action == "roll_back":
        return withdrawn(state, action, proposal.reason, now, by="policy", numbers=told)
    update: dict[str, object] = {"version": state.version + 1, "waiting": True}
    if action != "wait":
        update = stepped(state, plan.stages, proposal.to_stage, now)
        if state.candidate is not None and is_last(plan.stages, proposal.to_stage):
            action = "promote"
    if action == "roll_back":
        attempts = plan.evidence.attempts if plan.evidence is not None else 1
        last = state.attempt >= attempts
        update |= {"held": last, "attempt": state.attempt + (0 if last else 1)}
        if plan.stages[0].kind in ("canary", "full"):
            update |= {"killed": True}  # the plan has no stage at which the teacher answers all
    decision = Decision(
        at=now,
        task=state.task,
        action=action,
        from_stage=state.stage,
        to_stage=proposal.to_stage,
        reason=proposal.reason,
        numbers=told,
        student=about(state),
    )
    return state.model_copy(update=update), decision


def why_it_holds(
    state: ExperimentState, plan: ExperimentSection, numbers: StageNumbers, now: float
) -> str:
    """In words, where `decide` says nothing is to be done."""
    if state.killed:
        return "killed: the teacher answers all"
    if state.kind == "off":
        return "off: the teacher answers all"
    words = in_words(numbers)
    if state.waiting:
        return f"waits for approval; {words}"
    if plan.evidence is None:
        return "no evidence section: an admin decides"
    if state.held:
        return f"rolled back, held until an admin says retry or approve; {words}"
    if state.stage + 1 >= len(plan.stages):
        return f"at the last stage; {words}"
    stage = plan.stages[state.stage]
    if not _ripe(stage, state, numbers, now):
        hours = (now - state.since) / HOUR_S
        return (
            f"{numbers.requests:,} of {stage.min_requests:,} requests, "
            f"{max(hours, 0):.1f} of {stage.min_hours:g} hours; {words}"
        )
    return words


def _ripe(stage: StageSection, state: ExperimentState, numbers: StageNumbers, now: float) -> bool:
    enough = numbers.requests >= stage.min_requests
    return enough and now - state.since >= stage.min_hours * HOUR_S
