"""What Alembic runs: the steps on the connection that `tables` hands over, in its transaction.

Imported by anybody else it does nothing: `context` has a config only while Alembic runs this file.
"""

from __future__ import annotations

from alembic import context

config = getattr(context, "config", None)
if config is not None:
    context.configure(connection=config.attributes["connection"])
    context.run_migrations()
