"""What a gateway and its student processes send each other: frames of bytes over a socket.

A frame is a head of 13 bytes (length of the payload, kind, number of the request) and its payload:
JSON as it came from the client or goes to it, so that neither side reads it for the other's sake.
Who asks stands before a request's body and not in it, where a client could write what it likes.
Knows no socket, no student and no request.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct(">IBQ")
_STATUS: Final = struct.Struct(">H")
_ASKER: Final = struct.Struct(">H")
LONGEST: Final = 64_000_000

# To a student: what to open, a request's body, a request that nobody waits for any more.
SETUP: Final = 1
ASK: Final = 2
CANCEL: Final = 3
ASK_AS: Final = 4  # a request's body with who asks
# From it: open, cannot be opened, a whole answer, a part of a stream, its end, a sign of life,
# whose adapter answers (before the answer), what an operator should hear.
READY: Final = 11
FAILED: Final = 12
ANSWER: Final = 13
PIECE: Final = 14
END: Final = 15
BEAT: Final = 16
ADAPTER: Final = 17
TROUBLE: Final = 18


class FrameError(Exception):
    """The other side does not speak this."""


class Frame(NamedTuple):
    """One message."""

    kind: int
    number: int
    payload: bytes


def framed(kind: int, number: int = 0, payload: bytes = b"") -> bytes:
    """One message as bytes."""
    return _HEAD.pack(len(payload), kind, number) + payload


def answered(number: int, status: int, body: bytes) -> bytes:
    """A whole answer with its HTTP status."""
    return framed(ANSWER, number, _STATUS.pack(status) + body)


def status_of(payload: bytes) -> tuple[int, bytes]:
    """HTTP status and body of an answer.

    Raises:
        FrameError: there is no status.
    """
    if len(payload) < _STATUS.size:
        raise FrameError("an answer without its status")
    return _STATUS.unpack_from(payload)[0], payload[_STATUS.size :]


def asked_as(number: int, asker: str, body: bytes) -> bytes:
    """A request's body with who asks."""
    name = asker.encode("utf-8", "replace")
    return framed(ASK_AS, number, _ASKER.pack(len(name)) + name + body)


def asker_of(frame: Frame) -> tuple[str | None, bytes]:
    """Who asks, where the frame says so, and the request's body.

    Raises:
        FrameError: the name is cut off.
    """
    if frame.kind != ASK_AS:
        return None, frame.payload
    if len(frame.payload) < _ASKER.size:
        raise FrameError("a request without its asker")
    at = _ASKER.size + _ASKER.unpack_from(frame.payload)[0]
    if len(frame.payload) < at:
        raise FrameError("an asker that is cut off")
    return frame.payload[_ASKER.size : at].decode("utf-8", "replace"), frame.payload[at:]


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self, longest: int = LONGEST) -> None:
        self._rest = b""
        self._longest = longest

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames that a piece completes.

        Raises:
            FrameError: a frame that is longer than any may be.
        """
        data = self._rest + piece if self._rest else piece
        found: list[Frame] = []
        at, size = 0, len(data)
        while size - at >= _HEAD.size:
            length, kind, number = _HEAD.unpack_from(data, at)
            if length > self._longest:
                raise FrameError(f"a frame of {length:,} bytes")
            end = at + _HEAD.size + length
            if end > size:
                break
            found.append(Frame(kind, number, data[at + _HEAD.size : end]))
            at = end
        self._rest = data[at:]
        return found
