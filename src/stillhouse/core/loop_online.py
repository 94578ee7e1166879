"""Refining the live student between retrainings, and adapters of tenants. Strict; knows no file."""

from __future__ import annotations

from stillhouse.core.recipe_section import Section


class OnlineSection(Section):
    """Refining the live student between retrainings, and adapters of tenants."""
