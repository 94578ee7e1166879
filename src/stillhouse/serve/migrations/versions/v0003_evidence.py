"""The course of evidence, who works on it, and what to read it by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.add_column("calls", sa.Column("written_at", sa.Double, nullable=False, server_default="0"))
    op.create_index("calls_task_written_at", "calls", ["task", "written_at"])
    op.create_index("outcomes_at", "outcomes", ["at"])
    op.create_table(
        "courses",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("since", sa.Double, primary_key=True),
        sa.Column("at", sa.Double, primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
