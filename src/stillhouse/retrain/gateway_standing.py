"""A candidate's climb, read from the gateway's admin API (`seams.Gateway`)."""

from __future__ import annotations

from pathlib import Path

from stillhouse.retrain.gateway_admin import GatewayAdmin, GatewayError, GatewayState
from stillhouse.retrain.seams import GatewayStanding


class AdminGateway:
    """`seams.Gateway` over one gateway's admin port."""

    def __init__(self, admin: GatewayAdmin) -> None:
        self._admin = admin

    def offer(self, task: str, path: Path, name: str, reason: str) -> None:
        """Begin its experiment; where it climbs already, or answers, nothing is done.

        Raises:
            GatewayError: it was not begun.
        """
        state = self._admin.state(task)
        if name in (state.candidate, state.student):
            return
        self._admin.offer(task, str(path.resolve()), name, reason, version=state.version)

    def standing(self, task: str, name: str) -> GatewayStanding:
        """How far it is.

        Raises:
            GatewayError: there was no answer.
        """
        state = self._admin.state(task)
        if state.candidate == name:
            return GatewayStanding("climbing", state.kind, _said(state))
        if state.student == name:
            return GatewayStanding("full", state.kind, _said(state))
        return GatewayStanding("rolled_back", state.kind, _said(state))

    def student(self, task: str) -> str | None:
        """Who answers.

        Raises:
            GatewayError: there was no answer.
        """
        return self._admin.state(task).student

    def withdraw(self, task: str, reason: str) -> None:
        """End the experiment; the incumbent stays.

        Raises:
            GatewayError: there is none.
        """
        self._admin.withdraw(task, reason)

    def put_back(self, task: str, path: Path, name: str, reason: str) -> str | None:
        """Answer with another student at once; why it refuses, where it does.

        Raises:
            GatewayError: there was no answer, so it can be asked again.
        """
        try:
            self._admin.reload(task, str(path.resolve()), name, reason, refined=False)
        except GatewayError as error:
            if not 400 <= error.status < 500 or error.status == 409:
                raise
            return str(error)
        return None


def _said(state: GatewayState) -> str:
    if state.problems:
        return "; ".join(state.problems)
    if state.killed:
        return "all traffic goes to the teacher, by an admin's hand"
    return "no decision yet" if state.last is None else state.last.reason
