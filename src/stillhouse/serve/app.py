"""The gateway's two applications: the API for clients, and the admin's on its own port.

Knows which path leads where. Clients' errors are in OpenAI's shape, also for unknown paths.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.batch_routes import SCOPE as BATCHES
from stillhouse.serve.batch_routes import admin_batch_routes, batch_routes
from stillhouse.serve.candidate_routes import candidate_routes, names_of
from stillhouse.serve.exchange import Exchange
from stillhouse.serve.feedback import outcome_of
from stillhouse.serve.front import Asks, ClientGoneError, Front, admit, new_id, read_body
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.log_routes import log_routes
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.migration import ACTIONS, changed
from stillhouse.serve.records import Route as Kind
from stillhouse.serve.request_checks import parse_json, reason_of
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import KeyStore, Parts
from stillhouse.serve.tables import StoreError
from stillhouse.serve.traffic_log import UnknownRequestError

_ROUTES: Final[Mapping[str, Kind]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
}
ADMIN_BODY: Final = 10_000
SCOPES: Final = ("*", "feedback", BATCHES)  # of client keys, beside names of tasks
STORE_S: Final = 15.0  # longer than an outcome waits for its request
P = ParamSpec("P")
R = TypeVar("R")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        json.dumps(value),
        status,
        headers={"x-request-id": new_id(), **(headers or {})},
        media_type="application/json",
    )


def _error(error: ApiError) -> Response:
    headers = {"x-request-id": new_id()}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error.body(), error.status, headers=headers, media_type="application/json")


async def _api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(ApiError(error.status_code, str(error.detail)))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _unknown(_request: Request, _what: Exception) -> Response:
    return _error(ApiError(404, "There is no such request.", code="request_not_found"))


async def _no_store(_request: Request, _what: Exception) -> Response:
    return _error(ApiError(503, "What is kept cannot be reached now.", retry_after=5))


async def _gone(_request: Request, _what: Exception) -> Response:
    return Response(status_code=499)


async def _crash(_request: Request, _what: Exception) -> Response:
    return _error(ApiError(500, "The gateway failed; the request id says where to look."))


_HANDLERS: Final[Any] = {
    ApiError: _api_error,
    HTTPException: _http_error,
    UnknownRequestError: _unknown,
    StoreError: _no_store,
    SQLAlchemyError: _no_store,
    ClientGoneError: _gone,
    Exception: _crash,
}


async def kept(call: Callable[P, R], *args: P.args, **more: P.kwargs) -> R:
    """What the database says, off the event loop.

    Raises:
        ApiError: 503: it says nothing in time; whether it has done what it was asked is not known.
    """
    try:
        async with asyncio.timeout(STORE_S):
            return await asyncio.to_thread(call, *args, **more)
    except TimeoutError:
        text = "What is kept does not answer now; it may yet do what was asked."
        raise ApiError(503, text, retry_after=5) from None


class Direct:
    """Sends what is asked of models past the router, whose layers would cost each request as much
    as its checks; all else goes through it.
    """

    def __init__(self, fronts: Mapping[str, Front], others: ASGIApp) -> None:
        self._fronts = fronts
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        front = self._fronts.get(scope["path"]) if scope["type"] == "http" else None
        if front is not None and scope["method"] == "POST":
            await front(scope, receive, send)
        else:
            await self._others(scope, receive, send)


def client_app(
    file: GatewayFile, parts: Parts, exchange: Exchange, roster: Roster, metrics: Metrics
) -> ASGIApp:
    """What clients reach."""
    born = int(time.time())

    def shown(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": born, "owned_by": "stillhouse"}

    async def models(request: Request) -> Response:
        principal = admit(request.scope, parts)
        data = [shown(name) for name in file.tasks if principal.may(name)]
        return _json({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        principal = admit(request.scope, parts)
        name = request.path_params["name"]
        if name not in file.tasks or not principal.may(name):
            raise ApiError(404, "There is no such model for this key.", code="model_not_found")
        return _json(shown(name))

    async def feedback(request: Request) -> Response:
        principal = admit(request.scope, parts)
        if not principal.may("feedback"):
            raise ApiError(403, "The key may not give feedback.", code="missing_scope")
        raw = await read_body(request.scope, request.receive, file.limits.body_bytes)
        outcome = outcome_of(parse_json(raw, file.limits.json_depth), time.time())
        owner = await kept(parts.log.owner, outcome.request)
        if owner is None or owner != principal.tenant:
            raise ApiError(404, "There is no such request.", code="request_not_found")
        await kept(parts.log.outcome, outcome)
        return _json({"object": "feedback", "request_id": outcome.request}, 201)

    async def health(_request: Request) -> Response:
        return _json({"status": "ok"})

    asks = Asks(file, parts, roster)
    fronts = {path: Front(kind, asks, parts, exchange, metrics) for path, kind in _ROUTES.items()}
    others = Starlette(
        routes=[
            *(Route(path, front, methods=["POST"]) for path, front in fronts.items()),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/feedback", feedback, methods=["POST"]),
            *batch_routes(file, parts),
            Route("/healthz", health),
        ],
        exception_handlers=_HANDLERS,
    )
    return Direct(fronts, others)


def admin_app(
    file: GatewayFile,
    parts: Parts,
    roster: Roster,
    metrics: Metrics,
    key: str,
    *,
    dashboard: ASGIApp | None = None,
) -> Starlette:
    """What the admin reaches: states, decisions by hand, metrics; at /dashboard the pages, which
    look after their own key."""

    def check(request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode("latin-1", "replace"), key.encode("ascii")):
            raise ApiError(401, "The admin key is missing or wrong.", code="invalid_api_key")

    def known(request: Request) -> str:
        name = str(request.path_params["task"])
        if name not in file.tasks:
            raise ApiError(404, "There is no such task.", code="task_not_found")
        return name

    async def states(request: Request) -> Response:
        check(request)
        found = {name: parts.states.get(name).model_dump(mode="json") for name in file.tasks}
        names = {name: names_of(file, parts, name) for name in file.tasks}
        metrics.tell_breakers(roster.breakers())
        return _json({"tasks": found, "students": names, "breakers": metrics.breakers()})

    async def act(request: Request) -> Response:
        check(request)
        name = known(request)
        action = request.path_params["action"]
        if action not in ACTIONS:
            raise ApiError(404, f"The actions are {', '.join(ACTIONS)}.")
        raw = await read_body(request.scope, request.receive, ADMIN_BODY)
        body = parse_json(raw, 8) if raw else {}
        reason = reason_of(body)
        state = parts.states.get(name)
        version = body.get("version", state.version)
        if version != state.version:
            raise ApiError(409, f"The state is at version {state.version} now.", code="conflict")
        if action == "approve" and state.candidate is not None and parts.presence is not None:
            new_one = state.candidate.folder.name
            missing = await kept(parts.presence.missing, name, new_one, time.time())
            if missing:
                raise ApiError(409, f"Not yet: {'; '.join(missing)}.", code="conflict")
        plan = file.tasks[name].experiment.stages
        new, decision = changed(state, plan, action, reason, time.time())
        if not await kept(parts.states.swap, state.version, new, decision):
            raise ApiError(
                409, "The state has been changed meanwhile; read it anew.", code="conflict"
            )
        roster.follow()
        return _json(new.model_dump(mode="json"))

    async def experiment(request: Request) -> Response:
        check(request)
        name = known(request)
        if parts.experiments is None:
            raise ApiError(404, "Nothing watches experiments here.", code="task_not_found")
        return _json(await kept(parts.experiments.view, name))

    def key_store() -> KeyStore:
        if parts.key_store is None:
            raise ApiError(404, "Keys are in gateway.yaml: keys_in_store is off.", code="no_keys")
        return parts.key_store

    async def keys(request: Request) -> Response:
        check(request)
        found = await kept(key_store().listed)
        shown = [{**one._asdict(), "scopes": sorted(one.scopes)} for one in found]
        return _json({"keys": shown})

    async def make_key(request: Request) -> Response:
        check(request)
        store = key_store()
        body = parse_json(await read_body(request.scope, request.receive, ADMIN_BODY), 8)
        tenant, scopes = body.get("tenant"), body.get("scopes", ["*"])
        if not isinstance(tenant, str) or not tenant or not tenant.isprintable():
            raise ApiError(400, "tenant must be a printable string.", param="tenant")
        if not isinstance(scopes, list) or not scopes:
            raise ApiError(400, "scopes must be a list of strings.", param="scopes")
        if not all(isinstance(one, str) and one for one in scopes):
            raise ApiError(400, "scopes must be a list of strings.", param="scopes")
        unknown = [one for one in scopes if one not in (*SCOPES, *file.tasks)]
        if unknown:
            text = f"There is no scope {unknown[0]!r:.100}; there are {', '.join(SCOPES)}"
            raise ApiError(400, f"{text}, and the tasks {', '.join(file.tasks)}.", param="scopes")
        return _json({"key": await kept(store.make, tenant, scopes, time.time())}, 201)

    async def revoke_key(request: Request) -> Response:
        check(request)
        identity = str(request.path_params["id"])
        if not await kept(key_store().revoke, identity, time.time()):
            raise ApiError(404, "There is no such key that holds.", code="key_not_found")
        return _json({"revoked": identity})

    async def page(request: Request) -> Response:
        check(request)
        metrics.tell_breakers(roster.breakers())
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    async def health(_request: Request) -> Response:
        return _json({"status": "ok"})

    return Starlette(
        routes=[
            Route("/state", states),
            Route("/experiments/{task:path}", experiment),
            *candidate_routes(file, parts, roster, check, kept),
            Route("/tasks/{task:path}/{action}", act, methods=["POST"]),
            Route("/keys", keys, methods=["GET"]),
            Route("/keys", make_key, methods=["POST"]),
            Route("/keys/{id}/revoke", revoke_key, methods=["POST"]),
            *log_routes(parts, check, kept),
            *admin_batch_routes(parts, check),
            Route("/metrics", page),
            Route("/healthz", health),
            *([] if dashboard is None else [Mount("/dashboard", dashboard)]),
        ],
        exception_handlers=_HANDLERS,
    )
