"""Watching one task: windows, tests, canaries, alerts. Strict; knows no file."""

from __future__ import annotations

from stillhouse.core.recipe_section import Section


class MonitorSection(Section):
    """Watching one task: windows, tests, canaries, alerts."""
