"""The gateway after a move in the registry: it answers with the live student, or is said not to.

A reload, without a climb: whoever moved a student by hand has decided. Of two who move at once the
gateway follows the one whom the registry has live: what is swapped there is the state that was read
before the registry was. Knows a registry and a gateway; moves nothing in the registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple, Protocol

from stillhouse.retrain.gateway_admin import GatewayError, GatewayState
from stillhouse.retrain.loop import BEST
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import Entry

TRIES: Final = 4  # while others change the gateway's state
CONFLICT: Final = 409


class Admin(Protocol):
    """What is asked of a gateway (`GatewayAdmin`)."""

    def state(self, task: str) -> GatewayState:
        """Where a task stands."""

    def withdraw(self, task: str, reason: str = "") -> GatewayState:
        """End a candidate's climb."""

    def reload(
        self,
        task: str,
        path: str,
        name: str,
        reason: str = "",
        *,
        version: int | None = None,
        refined: bool = True,
    ) -> GatewayState:
        """Swap the running student, if the state is still at a version."""


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
    path = str(served_path(registry, entry))
    left = TRIES
    while True:
        left -= 1
        try:
            state = admin.state(entry.task)
            live = registry.live(entry.task)
            if live is None or live.id != entry.id:
                now = "none is" if live is None else f"{live.id} was made"
                return Followed(
                    False, f"{now} live meanwhile: the gateway is left to whoever did that"
                )
            if state.student == entry.id:
                said = f"the gateway answers with {entry.id} already"
                return Followed(True, said + _but(state))
            before = state.student
            if state.candidate == entry.id:
                state = admin.withdraw(entry.task, reason)
            state = admin.reload(
                entry.task, path, entry.id, reason, version=state.version, refined=False
            )
        except GatewayError as error:
            if error.status == CONFLICT and left:
                continue
            return Followed(
                False,
                f"the gateway does not answer with {entry.id} yet: {error}; {_remedy(error)}, then "
                f"run: stillhouse registry reload {entry.task} --loop LOOP_YAML",
            )
        said = f"the gateway answers with {entry.id} now, {before} before"
        return Followed(True, said + _but(state))


def _but(state: GatewayState) -> str:
    if not state.teacher_answers:
        return ""
    return (
        "; but the teacher answers for it, since no gate lets its answers through: calibrate it "
        "with stillhouse calibrate, add it with its gate.json, and promote that"
    )


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
