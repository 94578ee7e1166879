"""What a client's request passes before it is asked: key, size, shape, task, assignment.

Bare ASGI on the routes that answer, for their speed. Knows no upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.ask import Ask
from stillhouse.serve.exchange import JSON, Exchange, Send, base_headers, respond
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.gateway_sections import LimitsSection, StudentSection
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.private import raw_weight
from stillhouse.serve.private import weight as weight_of
from stillhouse.serve.records import Route
from stillhouse.serve.request_checks import (
    check_chat,
    check_common,
    check_completion,
    check_embedding,
    parse_json,
)
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import Parts, Principal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Check = Callable[[dict[str, Any], LimitsSection], None]
CHECKS: Final[Mapping[Route, Check]] = {
    "chat": check_chat,
    "messages": check_chat,
    "completions": check_completion,
    "embeddings": check_embedding,
}
LONGEST_KEY: Final = 512
BODY_S: Final = 60
FINISH_S: Final = 1
LONGEST_NAME: Final = 512
ANYBODY: Final = Principal("", frozenset("*"))


def new_id() -> str:
    """A request's id."""
    return "req_" + os.urandom(12).hex()


def header(scope: Scope, name: bytes) -> str | None:
    """A request header's text."""
    for known, value in scope["headers"]:
        if known == name:
            return str(value.decode("latin-1"))
    return None


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413: it is too long; 408: too slow. ClientGoneError: the client left.
    """
    told = header(scope, b"content-length")
    if told is not None and told.isdecimal() and int(told[:20]) > most:
        if header(scope, b"expect") is None:
            await let_finish(receive)
        raise _too_long(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    await let_finish(receive)
                    raise _too_long(most)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts) if len(parts) > 1 else parts[0]
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {BODY_S} seconds.") from None


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"The body may be {most} bytes at most.", code="body_too_long")


async def let_finish(receive: Receive) -> None:
    """Let a client finish sending for a while: one that is cut off never reads the refusal."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FINISH_S):
            while (await receive()).get("more_body", False):
                pass


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def _check_names(scope: Scope) -> None:
    """Where no key is asked for, a page in this machine's browser must not reach the port: neither
    under a name of its own that leads here, nor from another site.

    Raises:
        ApiError: 403.
    """
    host, origin = header(scope, b"host"), header(scope, b"origin")
    if (host is None or _is_here(f"//{host}", any_address=True)) and (
        origin is None or _is_here(origin, any_address=False)
    ):
        return
    text = "Without client keys only this machine's own names are answered; give clients keys."
    raise ApiError(403, text, code="foreign_name")


@lru_cache(maxsize=256)
def _is_here(url: str, *, any_address: bool) -> bool:
    """Whether a URL names this machine; a bare address is no name that could lead elsewhere."""
    try:
        name = urlsplit(url).hostname or ""
        if name == "localhost":
            return True
        return ip_address(name).is_loopback or any_address
    except ValueError:
        return False


def admit(scope: Scope, parts: Parts) -> Principal:
    """Whose key a request shows.

    Raises:
        ApiError: 401.
    """
    if parts.keys is None:
        _check_names(scope)
        return ANYBODY
    shown = header(scope, b"authorization") or ""
    kind, _, key = shown.partition(" ")
    if kind.lower() != "bearer":
        key = header(scope, b"x-api-key") or ""
    key = key.strip()
    found = parts.keys.check(key) if 0 < len(key) <= LONGEST_KEY else None
    if found is None:
        raise ApiError(401, "The API key is missing or not known.", code="invalid_api_key")
    return found


class Front:
    """One answering route, as an ASGI application."""

    def __init__(
        self,
        route: Route,
        asks: Asks,
        parts: Parts,
        exchange: Exchange,
        metrics: Metrics,
    ) -> None:
        self._route = route
        self._made = asks
        self._limits = asks.limits
        self._parts = parts
        self._exchange = exchange
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = time.perf_counter()
        request_id = new_id()
        self._metrics.open.inc()
        self._exchange.live += 1
        begun = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if self._exchange.live > self._limits.open_requests:
                raise ApiError(503, "Too many requests in work.", code="busy", retry_after=1)
            principal = admit(scope, self._parts)
            raw = await read_body(scope, receive, self._limits.body_bytes)
            ask = self._ask(scope, raw, request_id, started, principal)
            await unless_gone(self._exchange.answer(ask, watched), receive)
        except ClientGoneError:
            pass
        except ApiError as error:
            self._metrics.refused.labels(str(error.status)).inc()
            await refuse(send, request_id, error, anthropic=self._route == "messages")
        except Exception:
            if begun:
                raise
            failed = ApiError(500, "The gateway failed; the request id says where to look.")
            await refuse(send, request_id, failed, anthropic=self._route == "messages")
            raise
        finally:
            self._metrics.open.dec()
            self._exchange.live -= 1

    def _ask(
        self, scope: Scope, raw: bytes, request_id: str, started: float, principal: Principal
    ) -> Ask:
        body = parse_json(raw, self._limits.json_depth)
        ask = self._made(
            self._route,
            body,
            principal,
            request_id,
            user=header(scope, b"x-stillhouse-user"),
            conversation=header(scope, b"x-stillhouse-conversation"),
            weight=raw_weight(raw),
        )
        ask.started = started
        return ask


class Asks:
    """Requests out of bodies: checked, and assigned to who answers them."""

    def __init__(self, file: GatewayFile, parts: Parts, roster: Roster) -> None:
        self._roster = roster
        self._tasks = file.tasks
        self.limits = file.limits
        self._parts = parts
        self._personal = any(
            isinstance(one, StudentSection) and one.adapters is not None
            for one in file.upstreams.values()
        )

    def __call__(
        self,
        route: Route,
        body: dict[str, Any],
        principal: Principal,
        request_id: str,
        *,
        user: str | None = None,
        conversation: str | None = None,
        unit: str | None = None,
        weight: int | None = None,
    ) -> Ask:
        """A request that may be answered.

        Args:
            user: whom it belongs to where the body does not say so.
            unit: what is assigned where neither user nor conversation is known; the request's id
                otherwise.
            weight: of the body in memory, in bytes, where the caller knows.

        Raises:
            ApiError: 4xx.
        """
        if route == "messages":
            check_common(body, self.limits)
            if not isinstance(body.get("max_tokens"), int):
                raise ApiError(400, "max_tokens is missing.", param="max_tokens")
        CHECKS[route](body, self.limits)
        name = body["model"]
        task = self._tasks.get(name)
        if task is None or not principal.may(name):
            raise ApiError(
                404, "There is no such model for this key.", code="model_not_found", param="model"
            )
        told = body.get("user") or body.get("safety_identifier")
        if route == "messages":
            metadata = body.get("metadata") or {}
            told = metadata.get("user_id") if isinstance(metadata.get("user_id"), str) else None
        user = told or user
        for param, value in (("user", user), ("conversation", conversation)):
            if value is not None and len(value) > LONGEST_NAME:
                raise ApiError(400, f"{param} is longer than {LONGEST_NAME}.", param=param)
        tenant = principal.tenant
        assignment = self._parts.assigner.assign(
            name,
            _own(tenant, user),
            _own(tenant, conversation),
            unit or request_id,
            self._roster.seen(self._parts.states.get(name)),
        )
        return Ask(
            id=request_id,
            at=time.time(),
            started=time.perf_counter(),
            route=route,
            name=name,
            task=task,
            body=body,
            tenant=tenant,
            user=user,
            conversation=conversation,
            assignment=assignment,
            weight=weight_of(body) if weight is None else weight,
            asker=self._asker(tenant, user) if self._personal else None,
        )

    def _asker(self, tenant: str, user: str | None) -> str:
        """For whom a student may have an adapter: a tenant, and its user where that is known."""
        if user is None or self._parts.pseudonym is None:
            return tenant
        return f"{tenant}\n{self._parts.pseudonym(tenant, user)}"


def _own(tenant: str, name: str | None) -> str | None:
    """Users of two tenants are two users, whatever they are called."""
    return None if name is None else f"{tenant}\n{name}".encode("utf-8", "replace").decode()


async def unless_gone(work: Awaitable[None], receive: Receive) -> None:
    """Do the work in this task, but give it up when the client leaves.

    Raises:
        ClientGoneError: it left.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        await receive()
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        # Somebody else may have cancelled it too.
        if left and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watching.cancel()


async def refuse(send: Send, request_id: str, error: ApiError, *, anthropic: bool = False) -> None:
    """Send an error."""
    headers = base_headers(request_id, JSON, anthropic=anthropic)
    if error.retry_after is not None:
        seconds = max(1, round(error.retry_after))
        headers.append((b"retry-after", str(seconds).encode("ascii")))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 413:
        headers.append((b"connection", b"close"))
    await respond(send, error.status, headers, error.body(anthropic=anthropic))
