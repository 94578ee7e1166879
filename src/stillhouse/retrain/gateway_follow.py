"""The gateway after a move in the registry: it answers with the live student, or is said not to.

A reload, without a climb: whoever moved a student by hand has decided. Knows a registry and a
gateway; moves nothing in the registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from stillhouse.retrain.gateway_admin import GatewayError, GatewayState
from stillhouse.retrain.loop import BEST
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import Entry


class Admin(Protocol):
    """What is asked of a gateway (`GatewayAdmin`)."""

    def state(self, task: str) -> GatewayState:
        """Where a task stands."""

    def withdraw(self, task: str, reason: str = "") -> object:
        """End a candidate's climb."""

    def reload(self, task: str, path: str, name: str, reason: str = "") -> object:
        """Swap the running student."""


class Followed(NamedTuple):
    """Whether the gateway answers with the student, and a line for people."""

    done: bool
    said: str


def served_path(registry: RegistryReader, entry: Entry) -> Path:
    """The folder of a student that a gateway opens: its best smaller form where it has one.

    Raises:
        UserError: the registry was tampered with.
    """
    return (registry.folder(entry.id) / entry.artefacts.get(BEST, "")).resolve()


def follow(admin: Admin, registry: RegistryReader, entry: Entry, reason: str) -> Followed:
    """Have the gateway answer with a student from now on, at the share that its student has.

    Raises:
        UserError: the registry was tampered with.
    """
    path = served_path(registry, entry)
    try:
        state = admin.state(entry.task)
        if state.student == entry.id:
            return Followed(True, f"the gateway answers with {entry.id} already")
        if state.candidate == entry.id:
            admin.withdraw(entry.task, reason)
        admin.reload(entry.task, str(path), entry.id, reason)
    except GatewayError as error:
        return Followed(
            False,
            f"the gateway does not answer with {entry.id} yet: {error}; {_remedy(error)}, then "
            f"run: stillhouse registry reload {entry.task} --loop LOOP_YAML",
        )
    return Followed(True, f"the gateway answers with {entry.id} now, {state.student} before")


def _remedy(error: GatewayError) -> str:
    if error.status == 422:
        return "let students.roots of gateway.yaml name the registry's folder and start it again"
    if error.status in (401, 403):
        return "export the key that the gateway was started with"
    if error.status == 404:
        return "give gateway.yaml a task of that name"
    if error.status:
        return "see what stands there with GET /experiments/TASK"
    return "start the gateway"
