"""Sums by the hour: nobody reads a million requests for one figure; a user's newest first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table, and fill it with what the log holds."""
    op.create_table(
        "hours",
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("variant", sa.Text, primary_key=True),
        sa.Column("shadow", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("fell_back", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.Column("teacher_cost_usd", sa.Double, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
    )
    op.drop_index("calls_user", "calls")
    op.create_index("calls_user_at", "calls", ["user", "at"])
    op.execute(_SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL)


_SQLITE = """
INSERT INTO hours
SELECT task, CAST(at / 3600 AS INTEGER), variant, shadow_of IS NOT NULL, 0, count(*),
  sum(coalesce(json_extract(served, '$.fell_back'), 0)),
  sum(json_extract(served, '$.status') >= 500 OR json_extract(served, '$.status') = 429),
  sum(coalesce(json_extract(served, '$.cost_usd'), 0)),
  sum(coalesce(json_extract(served, '$.teacher_cost_usd'), 0)),
  sum(coalesce(json_extract(served, '$.latency_ms'), 0))
FROM calls GROUP BY 1, 2, 3, 4
"""
_POSTGRESQL = """
INSERT INTO hours
SELECT task, floor(at / 3600)::bigint, variant, (shadow_of IS NOT NULL)::int, 0, count(*),
  sum(coalesce((s ->> 'fell_back')::boolean, false)::int),
  sum(((s ->> 'status')::int >= 500 OR (s ->> 'status')::int = 429)::int),
  sum(coalesce((s ->> 'cost_usd')::double precision, 0)),
  sum(coalesce((s ->> 'teacher_cost_usd')::double precision, 0)),
  sum(coalesce((s ->> 'latency_ms')::double precision, 0))
FROM (SELECT task, at, variant, shadow_of, served::jsonb AS s FROM calls) AS one
GROUP BY 1, 2, 3, 4
"""
