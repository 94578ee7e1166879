"""A progress that remembers its lines."""

from __future__ import annotations

from stillhouse.core.progress import Silent


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
