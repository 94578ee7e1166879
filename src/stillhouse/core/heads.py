"""The heads that a student may have. Knows names alone."""

from __future__ import annotations

from typing import Final, Literal

Head = Literal["label", "text", "tags"]
# How transformers' architectures of each head end, as a config names them; all others write text.
_ARCHITECTURES: Final[dict[str, Head]] = {
    "ForSequenceClassification": "label",
    "ForTokenClassification": "tags",
}


def head_of_architecture(name: str) -> Head:
    """The head of a student whose config names this architecture."""
    return next((h for end, h in _ARCHITECTURES.items() if name.endswith(end)), "text")
