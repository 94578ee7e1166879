"""A folder's lock: one holder at a time, told to the second, free when the first is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stillhouse.core.errors import RunFolderError
from stillhouse.core.locks import folder_lock

HOLD = (
    "import sys, pathlib\n"
    "from stillhouse.core.locks import folder_lock\n"
    "with folder_lock(pathlib.Path(sys.argv[1]), '.lock', 'held'):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def test_a_second_holder_is_told_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with folder_lock(folder, ".lock", "another run is at work; wait for it"):
        assert (folder / ".lock").exists()
        with (
            pytest.raises(RunFolderError, match=r"run: another run is at work; wait for it"),
            folder_lock(folder, ".lock", "another run is at work; wait for it"),
        ):
            pytest.fail("two held it")
    with folder_lock(folder, ".lock", "not to be said"):
        pass


def test_who_may_wait_gets_it_when_the_first_lets_go(tmp_path: Path) -> None:
    let_go, there = threading.Event(), threading.Event()

    def hold() -> None:
        with folder_lock(tmp_path, ".lock", "held"):
            there.set()
            let_go.wait()

    first = threading.Thread(target=hold)
    first.start()
    assert there.wait(60)
    threading.Timer(0.1, let_go.set).start()
    with folder_lock(tmp_path, ".lock", "held", wait_s=60):
        assert let_go.is_set()
    first.join()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError), folder_lock(tmp_path, ".lock", "held"):
            pytest.fail("two held it")
        other.kill()
        other.wait()
    with folder_lock(tmp_path, ".lock", "held"):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunFolderError, match=r"cannot be written"),
        folder_lock(tmp_path / "file" / "run", ".lock", "held"),
    ):
        pytest.fail("held")
