"""Stillhouse distils an expensive teacher model into a small student, and proves what it kept."""

from typing import Any

from stillhouse.core.optional import require

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`Distiller` is brought when it is asked for: the light parts stand without torch."""
    if name == "Distiller":
        return require("stillhouse.train.distiller", "train", "Distiller").Distiller
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
