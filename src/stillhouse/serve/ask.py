"""One request on its way through the gateway: what is known of it, and what goes upstream.

Knows the shapes of requests; asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stillhouse.serve.anthropic_shapes import anthropic_request, openai_request
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.quick_json import json_bytes
from stillhouse.serve.records import Assignment

Route = Literal["chat", "completions", "embeddings", "messages"]
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
    tried: list[str] = field(default_factory=list)

    @property
    def streams(self) -> bool:
        """Whether the client wants a stream."""
        return self.body.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        """Whether the client asked for usage in the stream."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def own_logprobs(self) -> bool:
        """Whether log-probabilities, if there are any, were asked for by the client."""
        return bool(self.body.get("logprobs"))


def translated(ask: Ask, kind: str) -> bool:
    """Whether client and upstream speak different APIs."""
    return (kind == "anthropic") != (ask.route == "messages")


def sent_body(ask: Ask, kind: str, model: str, *, logprobs: bool = False) -> bytes:
    """The request as an upstream of a kind gets it: its own model name, usage in streams.

    Raises:
        ApiError: it cannot be said in that API.
    """
    body = {**ask.body, "model": model}
    if translated(ask, kind):
        body.pop("stream", None)
        body.pop("stream_options", None)
    if kind == "anthropic":
        if ask.route != "messages":
            body = anthropic_request(body)
    else:
        if ask.route == "messages":
            body = openai_request(body)
        if body.get("stream") and ask.route != "embeddings":
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        if logprobs and not body.get("logprobs"):
            body["logprobs"] = True
            body["top_logprobs"] = 2
    return json_bytes(body)
