"""The gateway's admin API, as what distils again uses it: offer a student, withdraw it, swap it.

Blocking HTTP to one configured address; no redirect is followed and no proxy asked. Knows no
registry and no policy.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, JsonValue, ValidationError

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.records import Record

TIMEOUT_S: Final = 30.0
# Of what opens a student there: longer than gateway.yaml's `start_s` usually is.
OPEN_S: Final = 300.0
TRIES: Final = 4
PAUSE_S: Final = 0.5
MOST_BYTES: Final = 64_000_000
StageKind = Literal["off", "shadow", "canary", "full"]


class GatewayError(StillhouseError):
    """The gateway could not be reached, or did not do what it was asked.

    `status`: of HTTP; 0 where there was no answer. 409: the state has moved on, or the action does
    not fit it; 422: the student cannot be opened, or may not be. `code` is the gateway's own word
    for what is wrong, where it gave one.
    """

    def __init__(self, message: str, status: int = 0, code: str | None = None) -> None:
        self.status, self.code = status, code
        super().__init__(" ".join(message.split()))


class GatewayDecision(Record):
    """A line of the gateway's audit log."""

    at: float
    action: str = Field(description="As serve.records.Action: offer, advance, promote, roll_back.")
    from_stage: int
    to_stage: int
    reason: str
    by: str
    student: str | None = Field(default=None, description="The new student that it is about.")


class GatewayState(Record):
    """Where a task's experiment stands."""

    task: str
    version: int
    stage: int = Field(description="Number in the plan; the candidate's where there is one.")
    kind: StageKind
    share: float = Field(description="Of the traffic: the candidate's where there is one.")
    since: float
    killed: bool
    waiting: bool
    held: bool
    student: str | None = Field(description="Name of the student that answers; None: no student.")
    candidate: str | None = Field(description="Name of the new one that climbs.")
    problems: tuple[str, ...] = Field(
        default=(), description="Why gateways have not opened what the state says."
    )
    teacher_answers: bool = Field(
        default=False,
        description="Whether the teacher answers whatever the student's share: its gate lets "
        "nothing through, or it has none and its task wants one.",
    )
    last: GatewayDecision | None = None


def address_of(host: str, port: int) -> str:
    """The admin port of a gateway.yaml as an address; IPv6 stands in brackets there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class GatewayAdmin:
    """One gateway's admin port.

    Args:
        base_url: http://HOST:PORT or https://HOST:PORT.
        key: the admin key; never shown.

    Raises:
        UserError: no address, or a key that no header may hold.
    """

    def __init__(
        self, base_url: str, key: str, *, timeout_s: float = TIMEOUT_S, open_s: float = OPEN_S
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("gateway", "is no http:// or https:// address", value=base_url)
        if not key or not key.isascii() or not key.isprintable():
            raise UserError("gateway key", "is empty, or holds what no key may hold")
        try:
            port = parts.port
        except ValueError:
            raise UserError("gateway", "has no port that there is", value=base_url) from None
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._prefix = parts.path.rstrip("/")
        self._key = key
        self._timeout_s, self._open_s = timeout_s, open_s

    @classmethod
    def from_environment(
        cls, base_url: str, variable: str, environment: Mapping[str, str] = os.environ
    ) -> GatewayAdmin:
        """With the key of an environment variable.

        Raises:
            UserError: it is not set.
        """
        key = environment.get(variable, "").strip()
        if not key:
            raise UserError(
                "gateway key", f"the variable {variable} is not set", action="export it"
            )
        return cls(base_url, key)

    def offer(
        self, task: str, path: str, name: str, reason: str, *, version: int | None = None
    ) -> GatewayState:
        """Let a student of a folder climb beside the running one; returns once it is open there.

        Args:
            path: absolute, below one of gateway.yaml's `students.roots`.
            name: of the student in log and states: its id in the registry.
            version: of the state that this was decided on; refused where it has moved on.

        Raises:
            GatewayError: it was not.
        """
        body = {"path": path, "name": name, "reason": reason}
        return self._state("POST", f"{_of(task)}/candidate", _with(body, version), self._open_s)

    def withdraw(self, task: str, reason: str = "") -> GatewayState:
        """End a candidate's climb; the running student goes on.

        Raises:
            GatewayError: there is none.
        """
        return self._state("DELETE", f"{_of(task)}/candidate", {"reason": reason})

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
        """Swap the running student for a refined version of itself, or for another, without a
        climb.

        Args:
            version: of the state that this was decided on; refused where it has moved on.
            refined: a version of the running one, whose gate goes on; no gate of another student
                does that was calibrated for it.

        Raises:
            GatewayError: the old one goes on, and why.
        """
        body: dict[str, Any] = {"path": path, "name": name, "reason": reason}
        if not refined:
            body["refined"] = False
        return self._state("POST", f"{_of(task)}/reload", _with(body, version), self._open_s)

    def act(
        self,
        task: str,
        action: Literal["approve", "retry", "rollback", "kill", "revive"],
        reason: str,
        *,
        version: int | None = None,
    ) -> GatewayState:
        """What an admin does by hand; the state after it.

        Raises:
            GatewayError: it does not fit.
        """
        self._ask("POST", f"{_of(task)}/{action}", _with({"reason": reason}, version))
        return self.state(task)

    def state(self, task: str) -> GatewayState:
        """Where a task's experiment stands, names of both students, and the last decision.

        Raises:
            GatewayError: there is no such task, or no answer.
        """
        return self._state("GET", f"{_of(task)}/candidate", None)

    def experiment(self, task: str) -> dict[str, JsonValue]:
        """All that is known of an experiment: plan, numbers, course and decisions.

        Raises:
            GatewayError: there is no such task, or no answer.
        """
        return self._ask("GET", f"/experiments/{quote(task)}", None)

    def _state(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float | None = None
    ) -> GatewayState:
        found = self._ask(method, path, body, seconds)
        try:
            return GatewayState.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise GatewayError(f"gateway: its state is of another version: {where}") from None

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float | None = None
    ) -> dict[str, JsonValue]:
        raw = None if body is None else json.dumps(body).encode()
        for attempt in range(1, TRIES + 1):
            try:
                status, content = self._once(method, path, raw, seconds or self._timeout_s)
                break
            except ConnectionRefusedError:  # nothing was asked yet
                if attempt == TRIES:
                    raise self._failed("refuses connections; is it running?") from None
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            except TimeoutError:
                raise self._failed("did not answer in time; it may yet do it") from None
            except (OSError, http.client.HTTPException) as error:
                raise self._failed(f"gave no answer: {type(error).__name__}") from None
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if status >= 300 or not isinstance(found, dict):
            shown = found.get("error") if isinstance(found, dict) else None
            told, code = (
                (shown.get("message"), shown.get("code"))
                if isinstance(shown, dict)
                else (None, None)
            )
            text = f"status {status}: {told or 'no answer that is known'}"
            raise self._failed(text, status, code if isinstance(code, str) else None)
        return found

    def _once(
        self, method: str, path: str, body: bytes | None, seconds: float
    ) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=seconds)
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        try:
            connection.request(method, self._prefix + path, body, headers)
            reply = connection.getresponse()
            content = reply.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise self._failed("answers with more than is read")
            return reply.status, content
        finally:
            connection.close()

    def _failed(self, why: str, status: int = 0, code: str | None = None) -> GatewayError:
        port = "" if self._port is None else f":{self._port}"
        return GatewayError(f"gateway {self._host}{port}: {why}", status, code)


def _of(task: str) -> str:
    return f"/tasks/{quote(task)}"


def _with(body: dict[str, Any], version: int | None) -> dict[str, Any]:
    return body if version is None else {**body, "version": version}
