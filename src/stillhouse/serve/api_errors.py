"""Errors as OpenAI's and Anthropic's APIs show them. Knows no route."""

from __future__ import annotations

import json
from typing import Final

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: HTTP status.
        message: one sentence; never a key, an address or an upstream's inside.
        code, param: as OpenAI's API has them.
        retry_after: seconds, for the header of the same name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self, *, anthropic: bool = False) -> bytes:
        """The error as JSON, in either API's shape."""
        if anthropic:
            kind = "invalid_request_error" if self.status < 500 else "api_error"
            shown = {"type": _TYPES.get(self.status, kind), "message": self.message}
            return json.dumps({"type": "error", "error": shown}).encode("ascii")
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode("ascii")
