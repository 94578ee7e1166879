"""The server's seams in memory: for tests, and for a gateway without a database.

States are lost with the process. Knows no evidence: it hands on what others look at.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.candidates import about, running_share
from stillhouse.serve.feeds import MemoryFeed
from stillhouse.serve.gateway_sections import ClientKey, ExperimentSection, TaskSection
from stillhouse.serve.records import Arm, Assignment, Decision, ExperimentState, Outcome, Served
from stillhouse.serve.seams import GatePlan, Principal, Verdict

_SPAN: Final = float(2**64)
REMEMBERED: Final = 10_000


class MemoryStates:
    """States by task, with their decisions."""

    def __init__(self, states: Iterable[ExperimentState]) -> None:
        self._states = {state.task: state for state in states}
        self.decisions: list[Decision] = []

    def get(self, task: str) -> ExperimentState:
        """See `States`."""
        return self._states[task]

    def swap(self, old_version: int, new: ExperimentState, decision: Decision) -> bool:
        """See `States`."""
        if self._states[new.task].version != old_version:
            return False
        self._states[new.task] = new
        self.decisions.append(decision)
        return True

    def last(self, task: str) -> Decision | None:
        """The newest decision on a task."""
        return next((one for one in reversed(self.decisions) if one.task == task), None)


class MemoryLog:
    """The newest requests; older ones are forgotten. Whose they are is remembered for longer.

    Args:
        kept: requests, with their bodies, and outcomes.
        feeds: of tasks: told of everything, for who looks at the evidence.
    """

    def __init__(
        self, kept: int = REMEMBERED, feeds: Mapping[str, MemoryFeed] | None = None
    ) -> None:
        self._feeds = feeds or {}
        self.calls: deque[tuple[GatewayCall, Served]] = deque(maxlen=kept)
        self.outcomes: deque[Outcome] = deque(maxlen=kept)
        self._owners: dict[str, str] = {}

    def offer(self, call: GatewayCall, served: Served, weight: int | None = None) -> bool:
        """See `Log`."""
        self.calls.append((call, served))
        if served.task in self._feeds:
            self._feeds[served.task].serve(served)
        self._owners[served.id] = served.tenant
        if len(self._owners) > REMEMBERED:
            del self._owners[next(iter(self._owners))]
        return True

    def outcome(self, outcome: Outcome) -> None:
        """See `Log`."""
        self.outcomes.append(outcome)
        for feed in self._feeds.values():
            feed.score(outcome)

    def scores(self, outcomes: Sequence[Outcome]) -> int:
        """See `Log`."""
        for outcome in outcomes:
            self.outcome(outcome)
        return len(outcomes)

    def owner(self, request: str) -> str | None:
        """See `Log`."""
        return self._owners.get(request)


class ListedKeys:
    """The keys of gateway.yaml. Compares digests, each in constant time."""

    def __init__(self, clients: Iterable[ClientKey]) -> None:
        self._clients = [
            (one.sha256.encode("ascii"), Principal(one.tenant, frozenset(one.scopes)))
            for one in clients
        ]

    def check(self, presented: str) -> Principal | None:
        """See `Keys`."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).hexdigest().encode()
        found: Principal | None = None
        for known, principal in self._clients:
            if hmac.compare_digest(known, digest):
                found = principal
        return found


class HashAssigner:
    """Assigns by hash of the unit: sticky, alike on every gateway with the same file."""

    def __init__(self, tasks: Mapping[str, TaskSection]) -> None:
        self._tasks = tasks

    def assign(
        self,
        task: str,
        user: str | None,
        conversation: str | None,
        request_id: str,
        state: ExperimentState,
    ) -> Assignment:
        """See `Assigner`."""
        plan = self._tasks[task].experiment
        who = request_id
        if plan.sticky == "user":
            who = user or conversation or request_id
        elif plan.sticky == "conversation":
            who = conversation or user or request_id
        unit = hashlib.blake2b(f"{task}\n{plan.salt}\n{who}".encode(), digest_size=24).digest()
        slice_, place, shadow = (
            int.from_bytes(unit[start : start + 8], "big") / _SPAN for start in (0, 8, 16)
        )
        if state.candidate is not None:
            return _climbing(plan, state, unit.hex()[:32], Places(slice_, place, shadow))
        arm: Arm = "control"
        if self._tasks[task].student is None or state.killed or state.kind == "off":
            arm = "control"
        elif slice_ < plan.teacher_only:
            arm = "teacher_only"
        elif state.kind == "shadow":
            arm = "shadow" if shadow < plan.shadow_share else "control"
        elif state.kind == "full" or place < state.share:
            arm = "treatment"
        # A shadow call is unseen, so the slice that always goes to the teacher stays what it is.
        beside = plan.shadows_later and arm != "treatment" and state.kind in ("canary", "full")
        beside = beside and self._tasks[task].student is not None and not state.killed
        return Assignment(
            task=task,
            unit=unit.hex()[:32],
            arm=arm,
            variant="student" if arm == "treatment" else "teacher",
            shadowed=arm == "shadow" or (beside and shadow < plan.shadow_share),
            stage=state.stage,
            version=state.version,
            student=None if state.serving is None else state.serving.name,
        )


class Places(NamedTuple):
    """Where a unit's hash puts it, in [0, 1) each: for the slice, the share and shadow calls."""

    slice: float
    share: float
    shadow: float


def _climbing(plan: ExperimentSection, state: ExperimentState, unit: str, at: Places) -> Assignment:
    """While a new student climbs: its share is its own, the running student keeps what it had, but
    for the part that the teacher answers to be compared with; the rest is the teacher's."""
    arm: Arm = "control"
    compared = at.shadow < max(plan.shadow_share, plan.candidate_pairs)
    if state.killed or state.kind == "off" or state.candidate is None:
        arm = "control"
    elif at.slice < plan.teacher_only:
        arm = "teacher_only"
    elif state.kind == "canary" and at.share < state.share:
        arm = "treatment"
    elif at.share < running_share(state) and at.shadow >= plan.candidate_pairs:
        arm = "incumbent"
    elif state.kind == "shadow" and compared:
        arm = "shadow"
    beside = arm != "treatment" and not state.killed
    beside = beside and (state.kind == "shadow" or (plan.shadows_later and state.kind == "canary"))
    return Assignment(
        task=state.task,
        unit=unit,
        arm=arm,
        variant="student" if arm in ("treatment", "incumbent") else "teacher",
        # Of the running student's traffic: where the teacher answers in its stead.
        shadowed=beside and (arm == "incumbent" or compared),
        stage=state.stage,
        version=state.version,
        student=None if state.serving is None else state.serving.name,
        candidate=about(state),
    )


class ThresholdGate:
    """Accepts where an answer's mean token probability is at least its task's threshold.

    The probability is the model's own, not calibrated. Tasks without a threshold accept everything.
    """

    def __init__(self, thresholds: Mapping[str, float], windows: Mapping[str, int]) -> None:
        self._thresholds = thresholds
        self._windows = windows

    def plan(self, task: str) -> GatePlan | None:
        """See `Gate`."""
        if task not in self._thresholds:
            return None
        return GatePlan(window=self._windows.get(task))

    async def about(self, task: str, body: Mapping[str, Any]) -> Mapping[str, float]:
        """See `Gate`: none."""
        return {}

    def agreement(self, task: str, texts: Sequence[str]) -> Mapping[str, float]:
        """See `Gate`: none."""
        return {}

    def confident(self, task: str, features: Mapping[str, float], *, whole: bool = True) -> Verdict:
        """See `Gate`. Features without a probability are not enough."""
        probability = features.get("mean_probability", 0.0)
        return Verdict(probability, probability >= self._thresholds.get(task, 0.0))
