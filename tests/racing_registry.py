"""An operator in a process of its own: waits for a file, then promotes at the version it saw.

Usage: racing_registry.py ROOT GO REF. Prints `ready`, then `won` or the error's class and text.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from stillhouse.core.errors import StillhouseError
from stillhouse.retrain.registry import Registry

if __name__ == "__main__":
    registry, go, ref = Registry(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    seen = registry.version("mail")
    print("ready", flush=True)
    while not go.exists():
        time.sleep(0.001)
    try:
        registry.promote(ref, reason="race", by=ref, version=seen)
        print("won")
    except StillhouseError as error:
        print(type(error).__name__, error)
