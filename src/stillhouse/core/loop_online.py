"""Refining the live student between retrainings, and adapters of tenants. Strict; knows no file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.core.recipe_section import Section


class CapsSection(Section):
    """How much of what is learned may come from one tenant or one user."""

    tenant_share: float = Field(
        default=0.25, gt=0, le=1, description="Of buffer, guard and loss; at least an equal share."
    )
    user_share: float = Field(default=0.05, gt=0, le=1, description="Likewise, of one user.")
    window_hours: float = Field(default=24, gt=0, description="Over which rows are counted.")
    tenant_rows: int = Field(default=20_000, ge=1, description="Taken of a tenant a window.")
    user_rows: int = Field(default=500, ge=1, description="Taken of a user a window.")


class TrustSection(Section):
    """When a tenant's answers are no longer learned from."""

    least_rows: int = Field(
        default=30, ge=5, description="Before its corrections count for the shared student."
    )
    excess: float = Field(
        default=0.2, gt=0, lt=1, description="Disagreement above the others' that is suspicious."
    )
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="Of the tests, after Holm.")


class GuardSection(Section):
    """Rows that are never learned from; a new version must be as good on them as the live one."""

    share: float = Field(default=0.2, gt=0, lt=1, description="Of users whose rows are kept here.")
    rows: int = Field(default=1000, ge=20, description="Kept of live traffic: the newest.")
    least: int = Field(default=50, ge=10, description="Before anything is swapped.")
    tolerance: float = Field(
        default=0.02, gt=0, lt=0.5, description="Agreement that may be lost to the live version."
    )
    forgetting: float = Field(
        default=0.08,
        gt=0,
        lt=0.5,
        description="Agreement with the run's held-out set that may be lost to the student as it "
        "was distilled.",
    )
    confidence: float = Field(default=0.9, gt=0.5, lt=1, description="One-sided, of both.")


class PersonalSection(Section):
    """Adapters of tenants or users, trained on their own corrected answers."""

    by: Literal["tenant", "user"] = "tenant"
    least_rows: int = Field(default=20, ge=5, description="Corrected answers before there is one.")
    rows: int = Field(default=500, ge=10, description="Kept of each: the newest.")
    rank: int = Field(default=4, ge=0, le=64, description="Of the weights' part; 0: bias alone.")
    anchor_l2: float = Field(default=0.02, ge=0, description="Pulls it to the shared student.")
    learning_rate: float = Field(default=0.02, gt=0, le=1)
    steps: int = Field(default=100, ge=1, le=10_000)
    harm: float = Field(
        default=0.15, gt=0, lt=1, description="Agreement with the guard set that it may cost."
    )
    most: int = Field(default=10_000, ge=1, description="Adapters; beyond, the oldest go.")


class OnlineSection(Section):
    """Refining the live student between retrainings, and adapters of tenants."""

    buffer: int = Field(default=4000, ge=16, description="Rows that are learned from.")
    recent: float = Field(
        default=0.5, gt=0, lt=1, description="Share of these that is the newest; else a reservoir."
    )
    replay: float = Field(
        default=0.5, ge=0, lt=1, description="Share of the loss that the run's own examples have."
    )
    replay_rows: int = Field(default=2000, ge=0, description="Of these, drawn once.")
    least_rows: int = Field(default=32, ge=1, description="New rows before a step.")
    chunk: int = Field(default=500, ge=1, description="New rows of one step at most.")
    steps: int = Field(default=60, ge=1, le=10_000, description="Batches of one step.")
    batch: int = Field(default=64, ge=1, le=4096)
    learning_rate: float = Field(default=0.001, gt=0, le=1)
    anchor_kl: float = Field(default=0.1, ge=0, description="Weight of KL(live || new), nats.")
    anchor_l2: float = Field(default=0.001, ge=0, description="Weight of the distance to live.")
    priority: float = Field(
        default=0.6, ge=0, le=1, description="Power of disagreement; 0: all rows alike."
    )
    uniform: float = Field(
        default=0.2, gt=0, le=1, description="Share of draws that look at no disagreement."
    )
    corrections: Literal["shared", "personal"] = Field(
        default="shared", description="personal: corrected answers train adapters alone."
    )
    soft_targets: str | None = Field(
        default=None, description="Folder of a local classifier whose beliefs are learned."
    )
    every_s: float = Field(default=60, gt=0, description="Between two looks with --follow.")
    late_hours: float = Field(
        default=6, ge=0, description="That are read again for late rows and corrections."
    )
    keep: int = Field(default=10, ge=2, le=1000, description="Versions to roll back to.")
    seed: int = 0
    guard: GuardSection = GuardSection()
    caps: CapsSection = CapsSection()
    trust: TrustSection = TrustSection()
    personal: PersonalSection | None = None
