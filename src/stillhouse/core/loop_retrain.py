"""Distilling a task again: how often, from what, at what price, and who decides.

Strict; knows no file.
"""

from __future__ import annotations

from stillhouse.core.recipe_section import Section


class RetrainSection(Section):
    """Distilling a task again: how often, from what, at what price, and who decides."""
