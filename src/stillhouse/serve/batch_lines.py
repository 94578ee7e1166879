"""Lines of batch files in OpenAI's shape: what a client sends in, and what it gets back.

Pure: bytes and records. Knows no database, and no model but by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.batch_records import ENDPOINTS, LineError
from stillhouse.serve.request_checks import parse_json

LONGEST_ID: Final = 512
MOST_ERRORS: Final = 20
_BOM: Final = b"\xef\xbb\xbf"


class BadLineError(Exception):
    """A line that is no request of the batch."""

    def __init__(self, code: str, message: str, line: int, param: str | None = None) -> None:
        super().__init__(message)
        self.error = LineError(code=code, message=message, line=line, param=param)


class Asked(NamedTuple):
    """One line of an input file."""

    number: int
    custom_id: str
    body: dict[str, Any]


class Checked(NamedTuple):
    """What a whole input file holds: good only without errors."""

    total: int
    model: str | None
    errors: tuple[LineError, ...]


def split_lines(parts: Iterable[bytes], longest: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1; empty ones are counted and left out.

    Raises:
        BadLineError: a line is longer than `longest`.
    """
    rest, number, first = b"", 0, True
    for part in parts:
        if first:
            part, first = part.removeprefix(_BOM), False
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            number += 1
            yield from _line(number, line, longest)
        if len(rest) > longest:
            break
    yield from _line(number + 1, rest, longest)


def _line(number: int, line: bytes, longest: int) -> Iterator[tuple[int, bytes]]:
    line = line.strip()
    if len(line) > longest:
        text = f"A line may be {longest} bytes at most."
        raise BadLineError("line_too_long", text, number)
    if line:
        yield number, line


def asked(number: int, raw: bytes, endpoint: str, depth: int) -> Asked:
    """A line as a request.

    Raises:
        BadLineError: it is none, or of another endpoint.
    """
    try:
        line = parse_json(raw, depth + 1)
    except ApiError as error:
        text = error.message.replace("The body", "The line")
        raise BadLineError("invalid_json_line", text, number) from None
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        text = f"custom_id must be a string of 1 to {LONGEST_ID} characters."
        raise BadLineError("invalid_custom_id", text, number, "custom_id")
    if line.get("method") != "POST":
        raise BadLineError("invalid_method", "method must be POST.", number, "method")
    if line.get("url") != endpoint:
        text = f"url must be the batch's endpoint: {endpoint}"
        raise BadLineError("invalid_url", text, number, "url")
    if not isinstance(body, dict):
        raise BadLineError("missing_required_parameter", "body must be an object.", number, "body")
    return Asked(number, custom_id, body)


def checked(
    lines: Iterator[tuple[int, bytes]],
    endpoint: str,
    may: Callable[[str], bool],
    most: int,
    depth: int,
) -> Checked:
    """A file before anything of it is asked; stops after `MOST_ERRORS` errors.

    Args:
        may: whether a line may name a task.
        most: lines that a batch may have.
    """
    seen: set[bytes] = set()
    models: set[str] = set()
    errors: list[LineError] = []
    total = 0
    try:
        for number, raw in lines:
            total += 1
            if total > most:
                text = f"A batch may have {most} requests at most."
                errors.append(LineError(code="too_many_requests", message=text))
                break
            try:
                models.add(_model(asked(number, raw, endpoint, depth), seen, may))
            except BadLineError as bad:
                errors.append(bad.error)
                if len(errors) >= MOST_ERRORS:
                    break
    except BadLineError as bad:
        errors.append(bad.error)
    if not total and not errors:
        errors.append(LineError(code="empty_file", message="The file holds no requests."))
    return Checked(total, models.pop() if len(models) == 1 else None, tuple(errors))


def _model(line: Asked, seen: set[bytes], may: Callable[[str], bool]) -> str:
    identity = blake2b(line.custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if identity in seen:
        text = "custom_id is that of an earlier line."
        raise BadLineError("duplicate_custom_id", text, line.number, "custom_id")
    seen.add(identity)
    model = line.body.get("model")
    if not isinstance(model, str) or not may(model):
        text = "There is no such model for this key."
        raise BadLineError("model_not_found", text, line.number, "body.model")
    if line.body.get("stream"):
        text = "Answers of a batch are not streamed."
        raise BadLineError("stream_not_supported", text, line.number, "body.stream")
    return model


def line_id(batch: str, number: int) -> str:
    """A line's id in the result files: the same however often the batch is begun again."""
    text = f"{batch}:{number}".encode("ascii")
    return "batch_req_" + blake2b(text, digest_size=12).hexdigest()


class Answer(NamedTuple):
    """What a line was answered, and by whom; `None`: by nobody, it was refused."""

    status: int
    request_id: str
    body: Mapping[str, Any]
    variant: str | None = None


def answer_line(batch: str, line: Asked, answer: Answer) -> str:
    """A line that was answered, or refused.

    Raises:
        ValueError: the body holds what JSON does not.
    """
    response: dict[str, Any] = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": answer.body,
    }
    if answer.variant is not None:
        response["variant"] = answer.variant
    return _dumped(batch, line.number, line.custom_id, response, None)


def unasked_line(batch: str, number: int, raw: bytes, code: str, message: str) -> str:
    """A line that nobody was asked: the batch ended first."""
    custom_id: object = None
    try:
        custom_id = parse_json(raw, 500).get("custom_id")
    except ApiError:
        pass
    shown = custom_id if isinstance(custom_id, str) else None
    return _dumped(batch, number, shown, None, {"code": code, "message": message})


def _dumped(
    batch: str,
    number: int,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, str] | None,
) -> str:
    line = {"id": line_id(batch, number), "custom_id": custom_id}
    return json.dumps(
        {**line, "response": response, "error": error}, separators=(",", ":"), allow_nan=False
    )


def endpoint_named(value: object) -> str:
    """A batch's endpoint as the client named it.

    Raises:
        ApiError: 400: it is none that is served.
    """
    if not isinstance(value, str) or value not in ENDPOINTS:
        raise ApiError(
            400,
            f"endpoint must be one of {', '.join(ENDPOINTS)}.",
            param="endpoint",
            code="invalid_value",
        )
    return value
