"""The first tables: states, decisions, calls, outcomes and keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "states",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("user", sa.Text),
        sa.Column("variant", sa.Text, nullable=False),
        sa.Column("shadow_of", sa.Text),
        sa.Column("served", sa.Text, nullable=False),
        sa.Column("call", sa.Text),
    )
    op.create_index("calls_task_at", "calls", ["task", "at"])
    op.create_index("calls_at", "calls", ["at"])
    op.create_index("calls_user", "calls", ["user"])
    op.create_index("calls_shadow_of", "calls", ["shadow_of"])
    op.create_table(
        "outcomes",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column(
            "request", sa.Text, sa.ForeignKey("calls.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("ix_outcomes_request", "outcomes", ["request"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("made_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
    )
