"""Many writers, one fsync: lines that arrive together are made durable together.

Knows a file and bytes; does not know what a line says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from stillhouse.core.jsonl import AppendOnlyFile

L = TypeVar("L")


class GroupCommit(Generic[L]):
    """Appends lines to a file and says when each is durable.

    All lines of one turn of the event loop share one fsync, which runs in the loop. With `overlap`
    it runs in a thread, and all that arrive meanwhile share the next.

    Args:
        file: where lines go.
        keep: called for each line once it is durable, in their order, with its offset and bytes.
    """

    def __init__(self, file: AppendOnlyFile, keep: Callable[[L, int, bytes], None]) -> None:
        self.overlap = False
        self._file = file
        self._keep = keep
        self._pending: list[_Pending[L]] = []
        self._writing: _Writing[L] | None = None
        self._executor: ThreadPoolExecutor | None = None

    def enqueue(self, data: bytes, line: L) -> asyncio.Future[None]:
        """Write a line, with its newline, soon; the future is done once it is durable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self.overlap:
            self._pending.append(_Pending(data, line, future))
            if self._writing is None:
                self._write_behind(loop)
            return future
        if not self._pending:
            loop.call_soon(self.flush)
        self._pending.append(_Pending(data, line, future))
        return future

    def flush(self) -> None:
        """Write what is pending, now."""
        if self._writing is not None:
            self._written(self._writing)
        pending, self._pending = self._pending, []
        if not pending:
            return
        file, data = self._file, b"".join(one.data for one in pending)
        self._finish(pending, lambda: file.append_bytes(data))

    def _write_behind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what is pending in the thread, then what has come meanwhile, until none has."""
        pending, self._pending = self._pending, []
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="answers")
        data = b"".join(one.data for one in pending)
        writing = _Writing(pending, self._executor.submit(self._file.append_bytes, data))
        self._writing = writing

        def written() -> None:
            self._written(writing)
            if self._pending and self._writing is None:
                self._write_behind(loop)

        def tell(_: Future[int]) -> None:
            try:
                loop.call_soon_threadsafe(written)
            except RuntimeError:
                pass  # the loop has ended; `close` takes over

        writing.future.add_done_callback(tell)

    def _written(self, writing: _Writing[L]) -> None:
        if self._writing is writing:  # else `flush` has been before
            self._writing = None
            self._finish(writing.pending, writing.future.result)

    def close(self) -> None:
        """Write what is pending and end the thread; the file stays open."""
        try:
            self.flush()
        finally:
            if self._executor is not None:
                self._executor.shutdown()

    def _finish(self, pending: Sequence[_Pending[L]], written: Callable[[], int]) -> None:
        try:
            offset = written()
        except Exception as error:
            for waiting in pending:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting in pending:
            self._keep(waiting.line, offset, waiting.data)
            offset += len(waiting.data)
            if not waiting.future.done():
                waiting.future.set_result(None)


class _Pending(NamedTuple, Generic[L]):
    data: bytes
    line: L
    future: asyncio.Future[None]


class _Writing(NamedTuple, Generic[L]):
    pending: list[_Pending[L]]
    future: Future[int]
