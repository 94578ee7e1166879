"""Writing an answer piece by piece: what a text student is asked, and what it says meanwhile.

The seam between a runtime (llama.cpp, transformers) and whoever sends the pieces on. Also the two
things that hold text back: surrounding space, which is no part of an answer, and the beginning of a
stop text. Knows no runtime; imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from stillhouse.core.records import FinishReason, Query, TokenLogprob


class Writing(NamedTuple):
    """One answer to be written. `logprobs`: alternatives a token, `None` where none are wanted."""

    query: Query
    max_tokens: int
    sampling_temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, object] | None = None


class Piece(NamedTuple):
    """Some more of an answer. The text may be empty while a character is incomplete."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Written(NamedTuple):
    """How an answer ended."""

    finish: FinishReason
    prompt_tokens: int
    completion_tokens: int


# Takes a piece; False: nobody wants more of it.
Say = Callable[[Piece], bool]


class Trimmer:
    """Passes text on without the space around the whole."""

    def __init__(self) -> None:
        self._begun = False
        self._held = ""

    def feed(self, text: str) -> str:
        """What may be said of it now: space at the end waits for what follows."""
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        text = self._held + text
        said = text.rstrip()
        self._held = text[len(said) :]
        return said


class Stopper:
    """Ends text before the first of the stop texts, however they are cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be said of it now; nothing once it has stopped."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        # The one that is whole first, whatever the pieces are; of several the longest.
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops]
        found = [(end, at) for end, at in ends if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = max(len(stop) for stop in self._stops) - 1
        keep = next(
            (
                size
                for size in range(min(longest, len(text)), 0, -1)
                if any(stop.startswith(text[-size:]) for stop in self._stops)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back and turned out to be no stop text."""
        held, self._held = self._held, ""
        return held
