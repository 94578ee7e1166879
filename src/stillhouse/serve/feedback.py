"""`POST /v1/feedback`: what a client says of an answer, as an outcome. Knows no log."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.records import Outcome, OutcomeKind

LONGEST_ID: Final = 100
LONGEST_TEXT: Final = 1_000_000
_KEYS: Final = frozenset(("request_id", "thumbs", "score", "corrected", "delayed", "detail"))


def outcome_of(body: dict[str, Any], at: float) -> Outcome:
    """The outcome that a body states: `thumbs` (up or down), `score` (0 to 1) or `corrected` (the
    right answer), with `delayed` where it was found out later than the user saw it.

    Raises:
        ApiError: 400.
    """
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # what is stored so could not be read again
        raise ApiError(400, "The body holds half a character.", code="invalid_value") from None
    unknown = body.keys() - _KEYS
    if unknown:
        raise ApiError(400, f"The keys are {', '.join(sorted(_KEYS))}.", code="unknown_key")
    request = body.get("request_id")
    if not isinstance(request, str) or not 0 < len(request) <= LONGEST_ID:
        raise _wrong("request_id", "must be the x-request-id of an answer")
    thumbs, score, corrected = body.get("thumbs"), body.get("score"), body.get("corrected")
    if (thumbs is not None) + (score is not None) + (corrected is not None) == 0:
        raise ApiError(400, "Give thumbs, score or corrected.", code="nothing_said")
    if thumbs is not None and score is not None:
        raise ApiError(400, "Give thumbs or score, not both.", param="thumbs")
    if corrected is not None and (not isinstance(corrected, str) or len(corrected) > LONGEST_TEXT):
        raise _wrong("corrected", "must be a string")
    kind: OutcomeKind = "feedback"
    if thumbs is not None:
        if thumbs not in ("up", "down"):
            raise _wrong("thumbs", "must be up or down")
        score = 1.0 if thumbs == "up" else 0.0
    elif score is None:
        kind, score = "corrected", 0.0
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise _wrong("score", "must be a number from 0 to 1")
    if not 0 <= score <= 1:
        raise _wrong("score", "must be a number from 0 to 1")
    delayed, detail = body.get("delayed", False), body.get("detail") or {}
    if not isinstance(delayed, bool):
        raise _wrong("delayed", "must be a boolean")
    if not isinstance(detail, dict):
        raise _wrong("detail", "must be an object")
    return Outcome(
        request=request,
        kind="delayed" if delayed else kind,
        score=float(score),
        at=at,
        corrected=corrected,
        detail=detail,
    )


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}.", param=param, code="invalid_value")
