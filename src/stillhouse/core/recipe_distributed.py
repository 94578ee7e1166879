"""Recipe section of training with several processes. Knows no stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.core.recipe_section import Section


class DistributedSection(Section):
    """Several processes, one for each GPU (or some on one CPU), on one machine or more."""

    processes: int = Field(default=1, ge=1, description="Training processes on each machine.")
    strategy: Literal["ddp", "fsdp2"] = Field(
        default="ddp",
        description="ddp: each process holds the student; fsdp2: each holds a part of it.",
    )
    nodes: int = Field(default=1, ge=1, description="Machines; they share the run folder's disk.")
    rendezvous: str | None = Field(
        default=None,
        pattern=r"^.+:\d+$",
        description="HOST:PORT of the first machine, where there are several.",
    )

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _meets(self) -> DistributedSection:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need rendezvous: HOST:PORT of the first")
        return self
