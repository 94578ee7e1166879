"""Recipe sections of other ways to ask: by batch, and on a cluster. Knows no provider."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from stillhouse.core.recipe_section import Section


class BatchSection(Section):
    """Asking through the provider's Batch API: at half price, answered within 24 hours."""

    poll_s: float = Field(default=60.0, gt=0, description="Seconds between looks at a batch.")
    max_requests: int | None = Field(
        default=None, ge=1, description="Requests a batch; null: as many as the provider takes."
    )
    max_mb: float | None = Field(
        default=None, gt=0, description="Size of a batch, in MB; null: what the provider takes."
    )
    in_flight: int = Field(default=10, ge=1, description="Batches that run at a time.")
    rounds: int = Field(
        default=3,
        ge=1,
        description="Batches that a query may go into before it is asked live at list price.",
    )
    pilot: int = Field(
        default=20,
        ge=1,
        description="Queries asked live before the first batch: they find the parameters that the "
        "model refuses, and a task whose answers cannot be used.",
    )
    min_requests: int = Field(
        default=1, ge=1, description="Fewer requests than this are asked live, at list price."
    )
    when_lost: Literal["stop", "ask_again"] = Field(
        default="stop",
        description="What to do about a batch that the provider no longer knows, or whose results "
        "are incomplete: stop, or pay for its queries again.",
    )


class RaySection(Section):
    """A Ray cluster that asks a local teacher on several machines at once."""

    address: str = Field(
        description="HOST:PORT of the cluster, auto for the one this machine belongs to, or local "
        "to use all of this machine."
    )
    actors: int = Field(default=1, ge=1, description="Copies of the teacher, at most.")
    batch_size: int = Field(
        default=256, ge=1, description="Queries per task: what is asked again where a node dies."
    )
    gpus_per_actor: float = Field(default=0.0, ge=0)
    cpus_per_actor: float = Field(default=1.0, gt=0)

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address in ("auto", "local") or re.fullmatch(r"[^:/\s]+:\d{1,5}", address):
            return address
        raise ValueError(
            "must be HOST:PORT, auto or local (not ray://: run on a machine of the cluster)"
        )
