"""The devices that a plan reckons with: memory, speed and price of an hour, from a dated table.

Knows no model, and does not look at this machine.
"""

from __future__ import annotations

from datetime import date
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Device(BaseModel):
    """One accelerator. `memory_gib` is what a program gets of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_gib: float = Field(gt=0)
    tflops: float = Field(gt=0, description="Dense bf16 peak, 10^12 operations a second.")
    usd_per_hour: float | None = Field(ge=0)
    machine: str | None
    as_of: date | None
    source: str


@cache
def devices() -> tuple[Device, ...]:
    """The table, smallest memory first."""
    text = resources.files("stillhouse.core").joinpath("devices.yaml").read_text(encoding="utf-8")
    found = [Device.model_validate(row) for row in yaml.safe_load(text)["devices"]]
    return tuple(sorted(found, key=lambda device: (device.memory_gib, device.tflops)))
