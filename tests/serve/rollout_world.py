"""A world for experiments: requests assigned, answered and scored, with known qualities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.in_memory import HashAssigner
from stillhouse.serve.migration import first_state
from stillhouse.serve.records import ExperimentState, Outcome, OutcomeKind, Scored, Served

LABELS = {"kind": "classification", "labels": ["fresh", "rotten"]}
SCORER = {"source": "scorer", "task": LABELS, "unit_hours": 0}
FEEDBACK = {"source": "feedback", "unit_hours": 0}
PLAN = [
    {"kind": "shadow", "min_requests": 100},
    {"kind": "canary", "share": 0.05, "min_requests": 100},
    {"kind": "canary", "share": 0.25, "min_requests": 100},
    {"kind": "full", "share": 1},
]


def file_of(url: str | None = None, **experiment: Any) -> GatewayFile:
    """A gateway.yaml of one task, `reviews`."""
    raw = {
        "upstreams": {
            "big": {
                "base_url": "http://127.0.0.1:1/v1",
                "model": "m",
                "price": {"input": 10, "output": 10},
            },
            "small": {"base_url": "http://127.0.0.1:1/v1", "model": "s"},
        },
        "tasks": {
            "reviews": {
                "teacher": "big",
                "student": "small",
                "experiment": {"stages": PLAN, "evidence": SCORER, **experiment},
            }
        },
        "log": {"url": url},
    }
    return parse_as(GatewayFile, raw, "gateway.yaml")


def state_of(file: GatewayFile, stage: int = 0, **fields: Any) -> ExperimentState:
    """A state at a stage of the plan, since second 0."""
    task = file.tasks["reviews"]
    stages = task.experiment.stages[stage:]
    first = first_state("reviews", stages, 0.0, student=True, threshold=None)
    return first.model_copy(update={"stage": stage, **fields})


@dataclass
class World:
    """What requests come and how they are answered.

    Qualities are chances of an answer being right; `slow` multiplies the student's latency, `fails`
    is its share of errors, `dear` its cost as a share of the teacher's. `new` is the quality of a
    candidate, where the state has one.
    """

    file: GatewayFile
    student: float
    teacher: float
    seed: int = 0
    users: int = 1_000_000_000
    slow: float = 0.5
    fails: float = 0.0
    dear: float = 0.1
    kind: OutcomeKind = "scorer"
    step: float = 1.0
    now: float = 0.0
    number: int = 0
    new: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.assigner = HashAssigner(self.file.tasks)

    def request(self, state: ExperimentState) -> tuple[list[Served], list[Scored]]:
        """One more request, `step` seconds after the last."""
        self.number += 1
        self.now += self.step
        identity, user = f"r{self.number}", f"u{self.rng.integers(self.users)}"
        place = self.assigner.assign("reviews", user, None, identity, state)
        seen = self._served(identity, place.variant, place.arm, place.unit, state)
        served, scored = [seen], []
        # A running student's own traffic is shadowed where the teacher answers for it: never here.
        shadowed = place.shadowed and place.arm != "incumbent"
        if shadowed:
            shadow = self._served(f"{identity}-s", "student", place.arm, place.unit, state)
            served.append(shadow.model_copy(update={"shadow_of": identity}))
        if shadowed or self.kind != "scorer":
            for one in served:
                quality = self.student if one.variant == "student" else self.teacher
                if one.upstream not in ("small", "big"):
                    quality = self.new
                right = float(self.rng.random() < quality and one.error is None)
                outcome = Outcome(request=one.id, kind=self.kind, score=right, at=self.now)
                scored.append(Scored(one, outcome))
        return served, scored

    def requests(self, state: ExperimentState, count: int) -> tuple[list[Served], list[Scored]]:
        """Many."""
        served: list[Served] = []
        scored: list[Scored] = []
        for _ in range(count):
            one, other = self.request(state)
            served += one
            scored += other
        return served, scored

    def _served(
        self, identity: str, variant: Any, arm: Any, unit: str, state: ExperimentState
    ) -> Served:
        own = variant == "student"
        upstream = "small" if own else "big"
        if own and state.candidate is not None and arm != "incumbent":
            upstream = state.candidate.folder.name
        elif own and state.serving is not None:
            upstream = state.serving.name
        failed = own and self.rng.random() < self.fails
        latency = float(self.rng.exponential(100.0)) + 50.0
        return Served(
            id=identity,
            at=self.now,
            task="reviews",
            tenant="shop",
            unit=unit,
            arm=arm,
            variant=variant,
            stage=state.stage,
            version=state.version,
            upstream=upstream,
            cost_usd=0.01 * (self.dear if own else 1.0),
            teacher_cost_usd=0.01,
            latency_ms=latency * (self.slow if own else 1.0),
            status=502 if failed else 200,
            error="down" if failed else None,
        )
