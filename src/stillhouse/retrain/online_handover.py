"""The gateway that is given versions of a refined student, where it has another of them.

Only in place of the student that learning began from, or of a version of it: where the gateway
answers with any other, a retraining or an operator has put that to work meanwhile, and it stays.
Knows names and states; no student and no file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from stillhouse.core.errors import StillhouseError
from stillhouse.retrain.online_state import OnlineState


class Answering(Protocol):
    """What a gateway says of a task (`GatewayState`)."""

    @property
    def student(self) -> str | None:
        """Name of the student that answers."""

    @property
    def version(self) -> int:
        """Of the state."""


class HandOver(Protocol):
    """Gives a student to the gateway in place of the one it has (`GatewayAdmin`)."""

    def state(self, task: str) -> Answering:
        """Where a task stands."""

    def reload(
        self, task: str, path: str, name: str, reason: str = "", *, version: int | None = None
    ) -> object:
        """Open a folder and answer from it; refused where the state is not at `version` any
        more."""


def name_of(task: str, number: int) -> str:
    """What the gateway calls a version."""
    return f"{task}-online-{number}"


def give(
    state: OnlineState, task: str, gateway: HandOver, names: Collection[str]
) -> tuple[OnlineState, str | None]:
    """Hand the live version over, where the gateway was given another.

    Args:
        names: by which the gateway knows the student that learning began from.

    Returns:
        The state, in which it is handed over; or as it was, and why not: to be tried again.
    """
    if state.handed == state.live:
        return state, None
    version = state.version(state.live)
    numbers = {one.number for one in state.versions} | {state.handed}
    own = {*names, *(name_of(task, one) for one in numbers if one is not None)}
    try:
        found = gateway.state(task)
        if found.student not in own:
            return state, (
                f"version {version.number} was not handed over: the gateway answers with "
                f"{found.student}, which is no version of this student; make one right with "
                "stillhouse registry promote or reload"
            )
        name = name_of(task, version.number)
        gateway.reload(task, version.path, name, version=found.version)
    except StillhouseError as error:
        return state, f"the gateway did not take version {version.number}: {error}"
    return state.model_copy(update={"handed": state.live}), None
