"""Progress bars with rate and time left; quiet when standard error is not a terminal.

Stages take a `Progress` and report counts; they never print. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text


class Ticker(Protocol):
    """One running bar."""

    def advance(self, count: float = 1) -> None:
        """So much more is done."""

    def note(self, text: str) -> None:
        """A short remark beside the bar (a loss, a cost)."""


class Progress(Protocol):
    """Where stages report how far they are, and what people should read."""

    def bar(self, title: str, total: float | None, unit: str) -> _BarContext:
        """Open a bar of `total` units (`None`: unknown), as a context manager."""

    def say(self, text: str) -> None:
        """One line for people."""


class _BarContext(Protocol):
    def __enter__(self) -> Ticker: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None: ...


class _SilentTicker:
    def advance(self, count: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Reports nothing: for tests, and for `--json`."""

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Ticker]:
        """No bar."""
        yield _SilentTicker()

    def say(self, text: str) -> None:
        """No line."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text("" if speed is None else f"{speed:,.1f} {unit}/s", style="cyan")


class _RichTicker:
    def __init__(self, bars: RichProgress, task: int) -> None:
        self._bars, self._task = bars, task

    def advance(self, count: float = 1) -> None:
        self._bars.update(self._task, advance=count)  # type: ignore[arg-type]

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)  # type: ignore[arg-type]


class Terminal:
    """Bars and lines on standard error; where that is no terminal, lines only."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Ticker]:
        """A bar while the block runs."""
        if not self._console.is_terminal:
            yield _SilentTicker()
            return
        with RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
        ) as bars:
            yield _RichTicker(bars, bars.add_task(title, total=total, unit=unit, note=""))

    def say(self, text: str) -> None:
        """A line, also where standard error is no terminal."""
        self._console.print(text, markup=False)
