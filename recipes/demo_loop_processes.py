"""Processes of the demo: those that stay up, each with its log, and commands that end.

All get the same secrets, made for this telling; they are in no file. What is left when the demo
ends, in whatever way, is ended too.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ADMIN_KEY: Final = "STILLHOUSE_ADMIN_KEY"
SECRET: Final = "STILLHOUSE_PSEUDONYM_SECRET"
START_S: Final = 180
COMMAND_S: Final = 3600
END_S: Final = 30


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    opened = [socket.socket() for _ in range(count)]
    try:
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in opened]
    finally:
        for one in opened:
            one.close()


class Processes:
    """Started here, and ended when the block is left, the last one first."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self.admin_key = os.environ.get(ADMIN_KEY) or secrets.token_hex(32)
        self._environment = {
            **os.environ,
            ADMIN_KEY: self.admin_key,
            SECRET: os.environ.get(SECRET) or secrets.token_hex(32),
        }
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for _name, one in reversed(self._running):
            one.terminate()
            try:
                one.wait(END_S)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()

    def stillhouse(self, name: str, *arguments: str, ready: str, keyless: bool = False) -> None:
        """Start a command that stays up; see `start`."""
        self.start(name, ["-m", "stillhouse", *arguments], ready, keyless)

    def start(self, name: str, arguments: Sequence[str], ready: str, keyless: bool = False) -> None:
        """Start a Python process, and wait until an address answers.

        Args:
            keyless: without the admin's key, unless it was given from outside.

        Raises:
            SystemExit: it ended, or took too long; the end of its log is shown.
        """
        environment = dict(self._environment)
        if keyless and ADMIN_KEY not in os.environ:
            del environment[ADMIN_KEY]
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], stdout=log, stderr=log, env=environment
            )
        self._running.append((name, process))
        ends = time.monotonic() + START_S
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"{name} does not answer at {ready}:\n{self._last(name)}")
            time.sleep(0.1)

    def run(self, *arguments: str, passes: tuple[int, ...]) -> str:
        """Run a command of Stillhouse's to its end; what it printed.

        Raises:
            SystemExit: it ended with a status that is not among those that pass.
        """
        done = subprocess.run(
            [sys.executable, "-m", "stillhouse", *arguments],
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
            timeout=COMMAND_S,
        )
        with (self._logs / "commands.log").open("a", encoding="utf-8") as log:
            log.write(f"$ stillhouse {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
        if done.returncode not in passes:
            told = f"{done.stdout}{done.stderr}".strip()
            raise SystemExit(
                f"stillhouse {arguments[0]} ended with {done.returncode}:\n{told[-2000:]}"
            )
        return done.stdout

    def wait(self) -> None:
        """Until one of those that stay up ends."""
        while all(one.poll() is None for _, one in self._running):
            time.sleep(0.5)

    def _last(self, name: str) -> str:
        text = (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return text[-2000:]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
