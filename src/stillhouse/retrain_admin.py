"""The admin API of the gateway that a loop.yaml names. Knows files; asks nothing."""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.errors import UserError
from stillhouse.core.loop_file import LoopFile
from stillhouse.retrain.gateway_admin import GatewayAdmin, address_of
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.gateway_sections import AdminSection


def opened_admin(section: AdminSection, url: str | None) -> GatewayAdmin:
    """A client of an admin API, at `url` or where its section says."""
    base = url or address_of(section.host, section.port)
    return GatewayAdmin.from_environment(base, section.key_env)


def admin_of(file: LoopFile, task: str) -> GatewayAdmin:
    """The admin API of the gateway that a loop.yaml names.

    Raises:
        UserError: it has no such task or no admin API, or its key is not set.
    """
    gateway = load_gateway(Path(file.gateway))
    if task not in gateway.tasks:
        raise UserError("TASK", f"is not in {file.gateway}", value=task, action="leave out --loop")
    if gateway.admin is None:
        raise UserError(
            "admin",
            f"is missing in {file.gateway}: nobody can tell that gateway of a student",
            action="leave out --loop, and start the gateway again afterwards",
        )
    section = file.tasks.get(task)
    return opened_admin(gateway.admin, None if section is None else section.retrain.gateway_url)
