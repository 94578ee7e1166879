"""A batch as it is kept and as OpenAI's API shows it. Knows no database and no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from stillhouse.core.records import Record
from stillhouse.serve.records import Route

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
UNFINISHED: Final[frozenset[Status]] = frozenset(
    ("validating", "in_progress", "finalizing", "cancelling")
)
ENDPOINTS: Final[Mapping[str, Route]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
# Each has the time at which it began, but for the first, whose time is `created_at`.
_TIMED: Final = (
    "in_progress",
    "expires",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
)


class LineError(Record):
    """What is wrong with a line of an input file, so that the batch was not begun."""

    code: str
    message: str
    param: str | None = None
    line: int | None = Field(default=None, ge=1)


class Counts(Record):
    """Lines of a batch by what became of them, and their tokens."""

    total: int = Field(default=0, ge=0)
    completed: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class Batch(Record):
    """One batch. Times are Unix seconds."""

    id: str
    tenant: str
    scopes: tuple[str, ...] = Field(description="Of the key that made it.")
    endpoint: str
    input_file: str
    status: Status
    created_at: float
    expires_at: float
    metadata: Mapping[str, str] | None = None
    model: str | None = Field(default=None, description="Where all lines name the same.")
    output_seconds: float | None = Field(
        default=None, description="After which the result files expire."
    )
    output_file: str | None = None
    error_file: str | None = None
    errors: tuple[LineError, ...] = ()
    ends_as: Status = Field(default="completed", description="Once its files are written.")
    times: Mapping[str, float] = Field(default_factory=dict, description="By status.")
    counts: Counts = Counts()

    def at(self, status: Status, now: float, **changes: Any) -> Batch:
        """The batch in its next status."""
        times = {**self.times, status: now}
        return self.model_copy(update={"status": status, "times": times, **changes})

    def shown(self, counts: Counts | None = None) -> dict[str, Any]:
        """As OpenAI's API has it, without what is not known yet; `counts` as they are now."""
        counts = counts or self.counts
        times = {**self.times, "expires": self.expires_at}
        errors = [
            {"code": one.code, "message": one.message, "param": one.param, "line": one.line}
            for one in self.errors
        ]
        shown = {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": int(self.created_at),
            "request_counts": {
                "total": counts.total,
                "completed": counts.completed,
                "failed": counts.failed,
            },
            "usage": {
                "input_tokens": counts.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": counts.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts.prompt_tokens + counts.completion_tokens,
            },
            "metadata": self.metadata and dict(self.metadata),
        }
        for name in _TIMED:
            at = times.get(name)
            shown[f"{name}_at"] = None if at is None else int(at)
        return {name: value for name, value in shown.items() if value is not None}
