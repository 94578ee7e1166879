"""A bounded window at the head of a stream: the student's or the teacher's, never both.

Pieces are held until the window is full, the stream ends or time is up; then one decision is made,
before the first byte is sent. Knows pieces as opaque values with a size; does not know tokens,
HTTP or what confidence is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

T = TypeVar("T")
Closed = Literal["full", "ended", "late", "failed"]


class Window(NamedTuple, Generic[T]):
    """What was held when the decision fell, and why it fell then."""

    pieces: Sequence[T]
    closed: Closed


async def choose_stream(
    student: AsyncIterator[T],
    teacher: Callable[[], AsyncIterator[T]],
    accept: Callable[[Window[T]], bool],
    *,
    pieces: int,
    window_ms: float,
) -> tuple[bool, AsyncIterator[T]]:
    """(whether the student answers, the stream to send): held pieces come first, none twice.

    A student that fails inside the window, or sends nothing, is not asked of `accept`: the teacher
    answers. A student that fails later raises from the stream. The stream that is not sent is
    closed; the teacher is opened only when it answers.

    Args:
        pieces: held at most; window_ms: of the wait for them, from the call.
    """
    if pieces < 1 or not window_ms > 0:
        raise ValueError(f"the window needs pieces and time (got {pieces}, {window_ms} ms)")
    held: list[T] = []
    closed: Closed = "full"
    try:
        # asyncio.timeout cancels the student's read, and a cancelled generator is over: what it
        # held is lost with it, so that a late student never goes on behind the teacher's answer.
        async with asyncio.timeout(window_ms / 1000):
            while len(held) < pieces:
                try:
                    held.append(await anext(student))
                except StopAsyncIteration:
                    closed = "ended"
                    break
    except TimeoutError:
        closed = "late"
    except Exception:  # whatever the student's upstream raises, the teacher can still answer
        closed = "failed"
    try:
        takes = held and closed in ("full", "ended") and accept(Window(tuple(held), closed))
    except BaseException:
        await _close(student)
        raise
    if takes:
        return True, _rest(held, student)
    await _close(student)
    return False, teacher()


async def _rest(held: Sequence[T], student: AsyncIterator[T]) -> AsyncIterator[T]:
    try:
        for piece in held:
            yield piece
        async for piece in student:
            yield piece
    finally:
        await _close(student)


async def _close(stream: AsyncIterator[T]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
