"""Sections of loop.yaml: what is watched, when a student is distilled again, and how.

Strict. Knows no file; the folders that use a section say what follows from it.
"""

from __future__ import annotations

from pydantic import Field

from stillhouse.core.loop_monitor import MonitorSection
from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.recipe_section import Section


class LoopTask(Section):
    """One task of the gateway."""

    recipe: str = Field(description="The recipe that its student was distilled by.")
    run: str | None = Field(
        default=None, description="Run folder of that student: its data are the reference."
    )
    monitor: MonitorSection = MonitorSection()
    retrain: RetrainSection = RetrainSection()
    online: OnlineSection | None = None
