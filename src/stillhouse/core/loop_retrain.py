"""Distilling a task again: how often, from what, at what price, and who decides.

Strict; knows no file.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from stillhouse.core.recipe_section import Section

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def duration_s(text: str) -> float:
    """`7d`, `12h`, `30m` as seconds.

    Raises:
        ValueError: it is no such text, or not above zero.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError("must be a number above 0 and a unit: 30m, 12h, 7d or 4w")
    return float(found[1]) * _SECONDS[found[2]]


def _is_duration(text: str) -> str:
    duration_s(text)
    return text


Duration = Annotated[str, AfterValidator(_is_duration)]


class ChooseSection(Section):
    """Which requests of a window are worth a teacher's answer: signals mixed by rank."""

    disagreement: float = Field(
        default=1.0, ge=0, description="Weight of student and teacher having answered unlike."
    )
    novelty: float = Field(
        default=1.0, ge=0, description="Weight of the distance to what was trained on before."
    )
    uncertainty: float = Field(default=1.0, ge=0, description="Weight of the student being unsure.")
    chance: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share drawn by chance instead, so that the usual is not forgotten.",
    )
    embedder: str = Field(
        default="hashing",
        pattern=r"^(hashing|minilm|hf:.+)$",
        description="hashing (no download), minilm, or hf:ID_OR_PATH of a sentence encoder.",
    )
    duplicate: float = Field(
        default=0.95, gt=0, le=1, description="Cosine from which a request is one that is known."
    )
    pool: int = Field(
        default=20_000, ge=10, description="At most so many requests of a window, by hash."
    )

    @model_validator(mode="after")
    def _something_counts(self) -> ChooseSection:
        if self.chance < 1 and self.disagreement + self.novelty + self.uncertainty == 0:
            raise ValueError("needs a weight above 0: disagreement, novelty or uncertainty")
        return self


class RegateSection(Section):
    """How sure a new student must be to answer for itself: its gate.json, made by the cycle."""

    calibrate: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="auto: where the live student has a gate.json, or gateway.yaml gives the task "
        "a calibrator.",
    )
    on: Literal["window", "golden"] | None = Field(
        default=None,
        description="window: requests of the window, by the teacher's answers; golden: the "
        "recipe's golden set, by true ones; null: as the live student's gate.",
    )
    held_out: int | None = Field(
        default=None,
        ge=30,
        description="Requests of a window, drawn by chance, that choose the threshold and do "
        "nothing else; beside retrain.held_out; null: three times the least that the promise "
        "takes, at least 300.",
    )
    error: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Promised of what it answers; null: as the live student's gate, else 0.05.",
    )
    delta: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Chance that the promise fails; null: as the live student's gate, else 0.05.",
    )
    acceptable: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Score from which an answer is; null: as the live student's gate; 1 of labels "
        "and extractions.",
    )


class RetrainSection(Section):
    """Distilling a task again: how often, from what, at what price, and who decides."""

    every: Duration | None = Field(
        default=None,
        description="Time between starts while it runs on, where --every gives none; null: by "
        "alerts alone.",
    )
    min_interval: Duration = Field(
        default="1d", description="Least time between two starts while it runs on."
    )
    window: Duration = Field(
        default="30d", description="Requests of at most so long ago; else since the last cycle."
    )
    min_requests: int = Field(
        default=200, ge=2, description="Fewer usable requests than this: nothing is done."
    )
    new: int = Field(default=500, ge=2, description="New queries of a cycle, at most.")
    held_out: int = Field(
        default=200,
        ge=30,
        description="Requests of a window, drawn by chance, that judge and are never trained on.",
    )
    budget_usd: float | None = Field(default=None, gt=0, description="Of a cycle; null: no limit.")
    monthly_usd: float | None = Field(
        default=None, gt=0, description="Of all cycles that began within 30 days; null: no limit."
    )
    choose: ChooseSection = ChooseSection()
    replay: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the earlier examples that are trained on again, of every cycle and "
        "label alike.",
    )
    replay_most: int | None = Field(
        default=20_000, ge=1, description="At most so many of these; null: no limit."
    )
    start: Literal["warm", "scratch"] = Field(
        default="warm",
        description="warm: train on from the live student; scratch: from the recipe's source.",
    )
    epochs: float | None = Field(default=None, gt=0, description="Null: the recipe's.")
    learning_rate: float | None = Field(default=None, gt=0, description="Null: the recipe's.")
    margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Against the teacher on the new window; null: the recipe's evaluate.margin.",
    )
    incumbent_margin: float = Field(
        default=0.02, gt=0, lt=1, description="Against the live student on the new window."
    )
    max_forgetting: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Most that an earlier window may lose against the best live student on it.",
    )
    fallback: RegateSection = RegateSection()
    gateway: bool = Field(
        default=False,
        description="Whether the gateway's shadow and canary decide after the gate; false: the "
        "gate alone.",
    )
    gateway_url: str | None = Field(
        default=None, description="Of its admin API; null: as its gateway.yaml says."
    )
    wait: Duration = Field(
        default="30d", description="How long a candidate may climb the gateway's stages."
    )

    @model_validator(mode="after")
    def _fits(self) -> RetrainSection:
        if self.every is not None and duration_s(self.every) < duration_s(self.min_interval):
            raise ValueError(f"every: {self.every} is shorter than min_interval")
        if self.gateway_url is not None and not self.gateway_url.startswith(
            ("http://", "https://")
        ):
            raise ValueError("gateway_url: write it as http://HOST:PORT")
        return self
