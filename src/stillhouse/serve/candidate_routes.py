"""The admin's routes to a task's students: a new one offered or withdrawn, the running one renewed.

A student is opened here before any state names it, so that what cannot be opened changes nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.candidates import Changed, first_climb, offered, reloaded, withdrawn
from stillhouse.serve.front import read_body
from stillhouse.serve.gate_file import NEVER
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.log_routes import Kept
from stillhouse.serve.records import ExperimentState, StudentFolder
from stillhouse.serve.request_checks import parse_json, reason_of
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import Parts
from stillhouse.serve.seats import Seat

_BODY: Final = 10_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", re.ASCII)
_CHANGED: Final = "The state has been changed meanwhile; read it anew."


def names_of(file: GatewayFile, parts: Parts, task: str) -> dict[str, str | None]:
    """Names of the running student and of the one that climbs, as the log has them."""
    state = parts.states.get(task)
    running = file.tasks[task].student if state.serving is None else state.serving.name
    climbing = None if state.candidate is None else state.candidate.folder.name
    return {"student": running, "candidate": climbing}


def candidate_routes(
    file: GatewayFile,
    parts: Parts,
    roster: Roster,
    check: Callable[[Request], None],
    kept: Kept,
) -> list[Route]:
    """Routes of the admin's application.

    Args:
        check: refuses a request that shows no admin key.
        kept: calls what blocks, off the event loop.
    """

    def known(request: Request) -> str:
        check(request)
        name = str(request.path_params["task"])
        if name not in file.tasks:
            raise ApiError(404, "There is no such task.", code="task_not_found")
        return name

    async def said(request: Request) -> dict[str, Any]:
        raw = await read_body(request.scope, request.receive, _BODY)
        body = parse_json(raw, 8) if raw else {}
        reason_of(body)
        return body

    def stands(task: str) -> ExperimentState:
        if file.tasks[task].student is None:
            raise ApiError(409, "The task has no student.", code="conflict")
        return parts.states.get(task)

    def fits(state: ExperimentState, body: dict[str, Any]) -> None:
        """Refuse a request that was made on another state."""
        if body.get("version", state.version) != state.version:
            raise ApiError(409, f"The state is at version {state.version} now.", code="conflict")

    async def told(task: str) -> Response:
        state, now = parts.states.get(task), time.time()
        names = names_of(file, parts, task)
        problems: list[str] = []
        wanted = [None if state.serving is None else state.serving.name, names["candidate"]]
        for name in wanted:
            if name is not None and parts.presence is not None:
                problems += await kept(parts.presence.missing, task, name, now)
        last = None if parts.last is None else await kept(parts.last, task)
        shown: dict[str, Any] = {
            key: getattr(state, key)
            for key in (
                "task",
                "version",
                "stage",
                "kind",
                "share",
                "since",
                "killed",
                "waiting",
                "held",
            )
        }
        if last is not None:
            last = last.model_dump(mode="json", exclude={"numbers", "task"})
        threshold = (state if state.candidate is None else state.candidate.before).threshold
        shown["teacher_answers"] = threshold is not None and threshold >= NEVER
        return JSONResponse({**shown, **names, "problems": problems, "last": last})

    async def change(changed: Changed, old: ExperimentState) -> None:
        if not await kept(parts.states.swap, old.version, changed.state, changed.decision):
            raise ApiError(409, _CHANGED, code="conflict")

    async def bring(
        task: str,
        body: dict[str, Any],
        make: Callable[[Seat], Changed],
        *,
        refined: bool = False,
        climbs: bool = False,
    ) -> None:
        version = parts.states.get(task).version
        path, name = body["path"], body["name"]
        seat = await roster.open(task, path, name, refined=refined, climbs=climbs)
        with roster.offering(task, seat):
            state = parts.states.get(task)
            if state.version != version and "version" in body:
                raise ApiError(409, _CHANGED, code="conflict")
            await change(make(seat), state)
            if parts.presence is not None:
                await kept(parts.presence.tell, roster.report(), time.time())

    def wanted(body: dict[str, Any]) -> None:
        for key in ("path", "name"):
            if not isinstance(body.get(key), str) or not body[key]:
                raise ApiError(400, f"{key} must be a string.", param=key)
        if not _NAME.fullmatch(body["name"]):
            text = "name must be letters, digits, dots, dashes or @, at most 100."
            raise ApiError(400, text, param="name")

    async def candidate(request: Request) -> Response:
        task = known(request)
        if request.method == "GET":
            return await told(task)
        body = await said(request)
        async with roster.lock(task):
            state = stands(task)
            reason = body.get("reason", "")
            if request.method == "DELETE":
                fits(state, body)
                await change(withdrawn(state, "withdraw", reason, time.time()), state)
                roster.follow()
                return await told(task)
            wanted(body)
            climbing = None if state.candidate is None else state.candidate.folder
            if not await _same(climbing, body):
                fits(state, body)
                plan = file.tasks[task].experiment.stages
                first_climb(plan)
                refused = _unopened(body)
                offered(state, plan, refused, reason, 0.0)  # before its processes are started

                def make(seat: Seat) -> Changed:
                    assert seat.folder is not None
                    now = parts.states.get(task)
                    return offered(now, plan, seat.folder, reason, time.time())

                await bring(task, body, make, climbs=True)
        return await told(task)

    async def reload(request: Request) -> Response:
        task = known(request)
        body = await said(request)
        async with roster.lock(task):
            state = stands(task)
            wanted(body)
            if not isinstance(body.get("refined", True), bool):
                raise ApiError(400, "refined must be true or false.", param="refined")
            if not await _same(state.serving, body):
                fits(state, body)
                plan = file.tasks[task].experiment.stages
                reason = body.get("reason", "")
                reloaded(state, plan, _unopened(body), reason, 0.0)

                def make(seat: Seat) -> Changed:
                    assert seat.folder is not None
                    return reloaded(parts.states.get(task), plan, seat.folder, reason, time.time())

                await bring(task, body, make, refined=body.get("refined", True))
        return await told(task)

    return [
        Route("/tasks/{task:path}/candidate", candidate, methods=["GET", "POST", "DELETE"]),
        Route("/tasks/{task:path}/reload", reload, methods=["POST"]),
    ]


async def _same(folder: StudentFolder | None, body: dict[str, Any]) -> bool:
    """Whether it was brought already: whoever asks again, not having heard the answer, is told,
    though the state has moved on by the first request. By whichever links the path leads there."""
    if folder is None or folder.name != body["name"]:
        return False
    path = Path(body["path"])
    if not path.is_absolute():
        return False
    return await asyncio.to_thread(_resolved, path) == folder.path


def _resolved(path: Path) -> str | None:
    try:
        return str(path.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop, a NUL
        return None


def _unopened(body: dict[str, Any]) -> StudentFolder:
    return StudentFolder(name=body["name"], path=body["path"], fingerprint="")
