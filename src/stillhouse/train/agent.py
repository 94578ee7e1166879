"""torch's launcher, which ends when the process that started it does: `agent PID ARGUMENTS`.

Knows torchrun's command line; knows no job.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

from torch.distributed.run import main as torchrun

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int, by: signal.Signals) -> None:
    """Have the kernel end this process when its parent ends (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), by)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    torchrun(sys.argv[2:])
