"""`POST /v1/files`: a multipart form, streamed into the store part by part, never held whole.

Limits: the file, the tenant's files together, the fields, the time. Knows no route.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.files import PART_BYTES, FileInfo, StoredFiles, new_file_id
from stillhouse.serve.front import ClientGoneError, Receive, Scope, header, let_finish
from stillhouse.serve.gateway_sections import BatchesSection

# It would tell the terminal of every broken form.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
FIELD_BYTES: Final = 1000
BETWEEN_S: Final = 60.0
TOTAL_S: Final = 3600.0
DAY_S: Final = 86_400.0
LEAST_EXPIRY_S: Final = 3600
MOST_EXPIRY_S: Final = 2_592_000
LONGEST_NAME: Final = 255
LONGEST_BOUNDARY: Final = 200
# Boundaries and headers of a form around its file.
_AROUND: Final = 20_000
_FIELDS: Final = frozenset(("purpose", "expires_after[anchor]", "expires_after[seconds]"))
_UNSHOWN: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class _Form:
    """What a form holds, as it comes: small fields, and one file whose bytes wait to be taken."""

    def __init__(self, boundary: bytes, file_bytes: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.waiting = bytearray()
        self.size = 0
        self.ended = False
        self._file_bytes = file_bytes
        self._name = ""
        self._header = self._value = b""
        self._disposition = b""
        self._field = bytearray()
        self._in_file = False
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def _begin(self) -> None:
        self._disposition = self._header = self._value = b""
        self._field = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._in_file = self._name == "file" and b"filename" in options
        if self._in_file:
            if self.filename is not None:
                raise ApiError(400, "Send one file.", param="file", code="invalid_value")
            self.filename = _named(options[b"filename"].decode("utf-8", "replace"))
        elif self._name not in _FIELDS or self._name in self.fields:
            shown = _UNSHOWN.sub("", self._name)[:60]
            raise ApiError(400, f"The form may not hold {shown!r} here.", code="unknown_parameter")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.size += end - start
            if self.size > self._file_bytes:
                raise _too_long(self._file_bytes)
            self.waiting += data[start:end]
        else:
            self._field += data[start:end]
            if len(self._field) > FIELD_BYTES:
                raise ApiError(400, f"{self._name} is too long.", param=self._name)

    def _end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.ended = True


async def receive_file(
    scope: Scope, receive: Receive, files: StoredFiles, tenant: str, section: BatchesSection
) -> FileInfo:
    """Take an uploaded file. What does not arrive whole, and as it must be, leaves nothing behind.

    Raises:
        ApiError: 4xx. ClientGoneError: the client left.
    """
    try:
        return await _received(scope, receive, files, tenant, section)
    except ApiError as error:
        if error.status == 413 and header(scope, b"expect") is None:
            await let_finish(receive)
        raise


async def _received(
    scope: Scope, receive: Receive, files: StoredFiles, tenant: str, section: BatchesSection
) -> FileInfo:
    form = _Form(_boundary(header(scope, b"content-type") or ""), section.file_bytes)
    told = header(scope, b"content-length") or ""
    size = section.file_bytes
    if told.isdecimal():
        size = int(told[:18])
        if size > section.file_bytes + _AROUND:
            raise _too_long(section.file_bytes)
    size = min(size, section.file_bytes)
    if await asyncio.to_thread(files.used, tenant) + size > section.tenant_bytes:
        text = f"Your files may hold {section.tenant_bytes} bytes together; delete some first."
        raise ApiError(413, text, code="storage_full")
    now = time.time()
    most = section.retention_days * DAY_S
    info = FileInfo(new_file_id(), tenant, "", "batch", size, now, now + most)
    await asyncio.to_thread(files.begin, info)
    try:
        await _pour(form, receive, files, info.id, section.file_bytes)
        info = info._replace(
            filename=form.filename or "",
            bytes=form.size,
            expires_at=now + min(most, _kept_s(form)),
        )
        await asyncio.to_thread(files.finish, info)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(files.drop, info.id))
        raise
    return info


async def _pour(
    form: _Form, receive: Receive, files: StoredFiles, identity: str, file_bytes: int
) -> None:
    """The whole body through the form into the store."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + TOTAL_S
    seq, most, more = 0, file_bytes + _AROUND, True
    while more:
        try:
            async with asyncio.timeout_at(min(ends, loop.time() + BETWEEN_S)):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "The file did not arrive in time.", code="too_slow") from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        more = message.get("more_body", False)
        body = message.get("body", b"")
        most -= len(body)
        if most < 0:
            raise _too_long(file_bytes)
        try:
            if not form.ended:
                form.parser.write(body)
        except FormParserError:
            raise _no_form() from None
        while len(form.waiting) >= PART_BYTES or (form.waiting and not more):
            part = bytes(form.waiting[:PART_BYTES])
            del form.waiting[:PART_BYTES]
            await asyncio.to_thread(files.append, identity, seq, part)
            seq += 1
    if not form.ended:
        raise _no_form()
    if form.filename is None or not form.size:
        raise ApiError(400, "file must be a file that is not empty.", param="file")
    if form.fields.get("purpose") != "batch":
        text = "purpose must be batch: no other files are kept here."
        raise ApiError(400, text, param="purpose", code="invalid_value")


def _kept_s(form: _Form) -> float:
    """How long the client wants the file to be kept."""
    anchor = form.fields.get("expires_after[anchor]")
    seconds = form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return float("inf")
    if anchor != "created_at" or seconds is None or not seconds.isdecimal():
        raise wrong_expiry("expires_after")
    return expiry_s("expires_after", int(seconds[:18]))


def expiry_s(param: str, seconds: int) -> float:
    """An expiry in OpenAI's bounds.

    Raises:
        ApiError: 400: it is not.
    """
    if not LEAST_EXPIRY_S <= seconds <= MOST_EXPIRY_S:
        raise wrong_expiry(param)
    return float(seconds)


def wrong_expiry(param: str) -> ApiError:
    """What is told where an expiry is none."""
    return ApiError(
        400,
        f"{param} must hold anchor: created_at, and seconds from {LEAST_EXPIRY_S} to "
        f"{MOST_EXPIRY_S}.",
        param=param,
        code="invalid_value",
    )


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= LONGEST_BOUNDARY:
        raise _no_form()
    return boundary


def _no_form() -> ApiError:
    text = "The body must be multipart/form-data with a file and its purpose."
    return ApiError(400, text, code="invalid_form")


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"A file may be {most} bytes at most.", param="file", code="file_too_long")


def _named(filename: str) -> str:
    """A name that can be shown: its last part, without what no terminal should print."""
    name = _UNSHOWN.sub("", filename).replace("\\", "/").rsplit("/", 1)[-1].strip()
    return name[:LONGEST_NAME] or "upload.jsonl"
