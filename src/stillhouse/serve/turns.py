"""What keeps the event loop from waiting for the rest of its process: threads and the collector.

Knows no server and no request.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# How long a thread that computes (the log's writer, the evidence) keeps the interpreter from the
# event loop, which asks for it several times a request. Python's own 5 ms would be as many each.
SWITCH_S: Final = 0.0002


@contextmanager
def short_turns() -> Iterator[None]:
    """Threads of this process give the interpreter back after `SWITCH_S`, seconds, meanwhile."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def settle() -> None:
    """What is there now stays: the collector need not look at it with every generation again, which
    would hold all requests up."""
    gc.collect()
    gc.freeze()
