"""Changes of a registry, each in a process that is killed at its N-th step on disk, for all N.

Usage: killed_registry.py TEMPLATE FOLDER OPERATION. Copies TEMPLATE to FOLDER/N, does the operation
there in a child that kills itself before its N-th call that changes the disk, and stops when one
came to its end. Prints how many were killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.retrain.registry import Registry

CALLS = ("mkdir", "rename", "replace", "symlink", "write", "ftruncate", "unlink", "rmdir")


def arm(number: int) -> None:
    """Die before the N-th of the calls."""
    left = number

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return called

    os.fsync = lambda _: None  # a kill loses nothing of what was written
    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def operate(folder: Path, operation: str) -> None:
    """One change."""
    registry = Registry(folder / "registry")
    if operation == "add":
        registry.add(folder / "made" / "mail" / "new", task="mail", lineage={}, metrics={})
    elif operation == "promote":
        registry.promote("mail@next", reason="r", by="b")
    elif operation == "roll_back":
        registry.roll_back("mail", reason="r", by="b")
    else:
        old = registry.get("mail@next").id
        registry.move(old, "retired", reason="r", by="b")
        registry.alias("mail", "next", None)
        registry.remove({"mail": [old]}, by="b", reason="r")


if __name__ == "__main__":
    template, place, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for step in range(1, 500):
        own = place / str(step)
        shutil.copytree(template, own, symlinks=True)
        child = os.fork()
        if child == 0:
            arm(step)
            operate(own, what)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            print(step - 1)
            break
