"""One request on its way through the gateway: what is known of it, and what goes upstream.

Knows the shapes of requests; asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stillhouse.serve.anthropic_shapes import anthropic_request, openai_request
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.quick_json import json_bytes
from stillhouse.serve.records import Assignment, Route
from stillhouse.serve.seats import Seat
from stillhouse.serve.upstream import ASKER

NO_ADAPTER: Final = (None, "shared", "broken")
PATHS: Mapping[Route, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "messages": "/messages",
}


@dataclass(slots=True)
class Ask:
    """A request that may be answered."""

    id: str
    at: float
    started: float
    route: Route
    name: str
    task: TaskSection
    body: dict[str, Any]
    tenant: str
    user: str | None
    conversation: str | None
    assignment: Assignment
    weight: int = 0  # of its body in memory, in bytes
    upstream_s: float = 0.0  # waited for models: for their answers, or their streams' first pieces
    first_byte_s: float | None = None
    fell_back: str | None = None
    confidence: float | None = None
    features: dict[str, float] = field(default_factory=dict)
    sampled_tokens: tuple[int, int] = (0, 0)
    seat: Seat | None = None  # of its student
    asker: str | None = None  # for whom its student may have an adapter
    adapter: str | None = None  # whose last layer answered, where the student has several

    @property
    def own_adapter(self) -> str | None:
        """The name of the asker's own adapter, where that answered."""
        return None if self.adapter in NO_ADAPTER else self.adapter

    def beside(self, kind: str) -> dict[str, str]:
        """What an upstream of a kind gets beside the body."""
        found = {"x-request-id": self.id}
        if kind == "student" and self.asker is not None:
            found[ASKER] = self.asker
        return found

    @property
    def streams(self) -> bool:
        """Whether the client wants a stream."""
        return self.body.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for usage in the stream."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def own_alternatives(self) -> int | None:
        """How many alternatives a token the client asked for; `None`: no log-probabilities."""
        if not self.body.get("logprobs"):
            return None
        wanted = self.body.get("top_logprobs")
        return wanted if isinstance(wanted, int) else 0


def translated(ask: Ask, kind: str) -> bool:
    """Whether client and upstream speak different APIs."""
    return (kind == "anthropic") != (ask.route == "messages")


def sent_body(
    ask: Ask,
    kind: str,
    model: str,
    *,
    alternatives: int = 0,
    whole: bool = False,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """The request as an upstream of a kind gets it: its own model name, usage in streams.

    Args:
        alternatives: log-probabilities with at least so many a token; 0: as the client asked.
        whole: no stream, whatever the client wants.
        more: parameters in place of the client's.

    Raises:
        ApiError: it cannot be said in that API.
    """
    body = {**ask.body, "model": model, **(more or {})}
    for name, value in (more or {}).items():
        if value is None:
            body.pop(name, None)
    if whole or translated(ask, kind):
        body.pop("stream", None)
        body.pop("stream_options", None)
    if kind == "anthropic":
        if ask.route != "messages":
            body = _translated(anthropic_request, body)
    else:
        if ask.route == "messages":
            body = _translated(openai_request, body)
        if body.get("stream") and ask.route != "embeddings":
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if alternatives:
            body["logprobs"] = True
            body["top_logprobs"] = max(alternatives, ask.own_alternatives or 0)
    return json_bytes(body)


def path_of(ask: Ask, kind: str) -> str:
    """Where an upstream of a kind is asked."""
    if kind == "anthropic":
        return PATHS["messages"]
    return PATHS["chat" if ask.route == "messages" else ask.route]


def _translated(
    translate: Callable[[Mapping[str, Any]], dict[str, Any]], body: Mapping[str, Any]
) -> dict[str, Any]:
    """A request in the other API.

    Raises:
        ApiError: it cannot be said there, or is of no shape that either knows.
    """
    try:
        return translate(body)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise ApiError(
            400, "The request is not of the API's shape.", code="invalid_value"
        ) from None
