"""One line of the gateway's traffic log: what `serve/` writes and `traffic/` reads.

The request and the response are the bodies of the OpenAI chat API as they passed through; an answer
that was streamed is put together first. Knows no file and no server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from stillhouse.core.records import Record


class GatewayUsage(Record):
    """Tokens of one request, as the model's server counted them."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class GatewayCall(Record):
    """One request that came through the gateway, and what it was answered.

    `response` is `None` exactly when the request failed, and `error` then says why. `cost_usd` and
    `latency_ms` are `None` when not measured. `cached`: no model was asked.
    """

    log: Literal["stillhouse"] = "stillhouse"
    id: str = Field(min_length=1, description="The gateway's own id of the request; unique.")
    at: str = Field(description="When it came in: ISO 8601, UTC.")
    user: str | None = Field(default=None, description="Who asked, as the caller named them.")
    model: str = Field(description="Who answered, as recipes name it (openai:gpt-4.1).")
    request: Mapping[str, JsonValue] = Field(description="Body: messages and parameters.")
    response: Mapping[str, JsonValue] | None = Field(description="Body: choices.")
    usage: GatewayUsage | None = None
    latency_ms: float | None = Field(default=None, ge=0)
    cost_usd: float | None = Field(default=None, ge=0)
    cached: bool = False
    error: str | None = None
