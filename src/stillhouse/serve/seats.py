"""A student as one task has it: who is asked, how sure it must be, how many requests it has now.

Knows no state and no request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.artefact import GATE
from stillhouse.core.errors import UserError
from stillhouse.serve.gate_file import NEVER, load_gate
from stillhouse.serve.gates import CalibratedGate, ClosedGate, TaskGate
from stillhouse.serve.gateway_sections import StudentSection
from stillhouse.serve.in_memory import ThresholdGate
from stillhouse.serve.records import StudentFolder
from stillhouse.serve.seams import Gate
from stillhouse.serve.student_folder import notes_of
from stillhouse.serve.student_upstream import StudentUpstream
from stillhouse.serve.upstream import Upstream

OF_FILE: Final = "gateway.yaml"  # in place of a gate.json: the gate of that file
NO_GATE: Final = "none"  # likewise: none is fitted to it, and the teacher answers


class Seat:
    """One student of one task.

    Args:
        folder: that it is of; `None`: gateway.yaml's.
        gate: that judges its answers; `None`: all of them are shown.
    """

    def __init__(
        self, upstream: Upstream, gate: Gate | None, folder: StudentFolder | None = None
    ) -> None:
        self.upstream, self.gate, self.folder = upstream, gate, folder
        self._users = 0
        self._free = asyncio.Event()
        self._free.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """It is not closed meanwhile."""
        self._users += 1
        self._free.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._free.set()

    async def idle(self, seconds: float) -> None:
        """Wait until nobody uses it any more, or so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._free.wait()

    async def close(self) -> None:
        """End its processes, where it has any."""
        if isinstance(self.upstream, StudentUpstream):
            await self.upstream.close()


def allowed(folder: Path, roots: tuple[Path, ...]) -> Path | None:
    """A folder without its symbolic links, if it then lies below a root; else `None`."""
    try:
        found = folder.resolve(strict=True)
        tops = [root.resolve() for root in roots]
    except (OSError, RuntimeError, ValueError):  # gone, a loop, a NUL
        return None
    below = any(found != top and found.is_relative_to(top) for top in tops)
    return found if below and found.is_dir() else None


def section_of(like: object, folder: Path, name: str) -> StudentSection:
    """How a folder's student is run: as the local student that it follows; else by the defaults.

    Its head and task are what its folder says.

    Args:
        like: gateway.yaml's section of the task's student.

    Raises:
        UserError: it holds no student.
    """
    notes = notes_of(folder, name)
    own: dict[str, Any] = {"path": folder, "model": name, "head": notes.head, "task": notes.task}
    if not isinstance(like, StudentSection):
        return StudentSection(kind="student", **own)
    own |= {"head": notes.head or like.head, "task": notes.task or like.task}
    return like.model_copy(update=own)


class Inherited(NamedTuple):
    """The gate of a folder without a gate.json: a file's path, `OF_FILE` with that gate, `NO_GATE`.

    `fitted`: the fingerprint of the student that it was calibrated for, and only for which it is;
    `None`: whoever has it. `closed`: any other has `NO_GATE` then, and not simply none.
    """

    path: str
    gate: Gate | None
    threshold: float | None
    fitted: str | None = None
    closed: bool = False


CLOSED: Final = Inherited(NO_GATE, None, NEVER)


async def opened(
    task: str, upstream: StudentUpstream, folder: Path, inherited: Inherited | None = None
) -> Seat:
    """Start a student's processes and read its gate.

    Args:
        upstream: not started; it is closed again where anything fails.
        folder: it lies in.

    Raises:
        UserError: it cannot be opened, or its gate was fitted for another student.
    """
    await upstream.start()
    try:
        assert upstream.pool.fingerprint is not None
        return await asyncio.to_thread(
            _gated, task, upstream, folder, upstream.pool.fingerprint, inherited
        )
    except BaseException:
        await upstream.close()
        raise


def _gated(
    task: str,
    upstream: StudentUpstream,
    path: Path,
    fingerprint: str,
    inherited: Inherited | None,
) -> Seat:
    """Reads files."""
    if inherited is not None and inherited.fitted not in (None, fingerprint):
        inherited = CLOSED if inherited.closed else None
    own = path / GATE
    gate = str(own) if own.is_file() else None if inherited is None else inherited.path
    made: Gate | None = None
    threshold: float | None = None
    if gate == OF_FILE and inherited is not None:
        made, threshold = inherited.gate, inherited.threshold
    elif gate == NO_GATE:
        made, threshold = ClosedGate(upstream.section.task), NEVER
    elif gate is not None:
        fitted = load_gate(Path(gate))
        if gate == str(own) and fitted.student not in (None, fingerprint):
            raise UserError(
                gate,
                f"was fitted for the student {fitted.student}; this one is {fingerprint}",
                action="run: stillhouse calibrate RUN --student ITS_FOLDER",
            )
        threshold = NEVER if fitted.threshold is None else fitted.threshold
        made = CalibratedGate({task: TaskGate(Path(gate))}, ThresholdGate({}, {}))
    folder = StudentFolder(
        name=upstream.name,
        path=str(path),
        fingerprint=fingerprint,
        gate=gate,
        threshold=threshold,
    )
    return Seat(upstream, made, folder)
