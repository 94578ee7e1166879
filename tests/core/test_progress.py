"""Progress: silent where nobody watches."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from stillhouse.core.progress import Silent, Terminal


def test_silent_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    with progress.bar("work", 3, "things") as bar:
        bar.advance()
        bar.note("half way")
    progress.say("done")
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines_but_no_bars(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    progress = Terminal()
    with progress.bar("work", 3, "things") as bar:
        bar.advance(2)
    progress.say("a line with [brackets] and {braces}")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "a line with [brackets] and {braces}\n"


@pytest.mark.parametrize("total", [3.0, None])
def test_on_a_terminal_the_bar_shows_title_unit_and_note(
    total: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = Terminal()
    shown = io.StringIO()
    progress._console = Console(file=shown, force_terminal=True, width=160)
    with progress.bar("asking the teacher", total, "answers") as bar:
        bar.advance()
        bar.note("0.12 USD")
        bar.advance()
    assert "asking the teacher" in shown.getvalue()
    assert "0.12 USD" in shown.getvalue()


def test_an_error_inside_a_bar_passes_through() -> None:
    def fail() -> None:
        with Silent().bar("work", None, "things"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
