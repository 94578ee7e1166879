"""Judges that know the truth from the answer's own text: perfect, noisy, or telling nothing.

An answer is good if its text holds the word `right`. A judge reads the prompt as a model would.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stillhouse.core.records import Query
from stillhouse.core.split import unit_hash
from stillhouse.models.fake import FakeCompleter

Reply = Callable[[str], str]
_MARKER = re.compile(r"^-----[0-9a-f]{8}-----$", re.MULTILINE)


def material(prompt: str) -> list[str]:
    """The task and the answers of a judge's prompt."""
    parts = _MARKER.split(prompt)
    return [part.strip() for part in parts[1::2]]


def is_pair(prompt: str) -> bool:
    return len(material(prompt)) == 3


def good(text: str) -> bool:
    return "right" in text


def perfect(prompt: str) -> str:
    answers = material(prompt)[1:]
    if len(answers) == 1:
        return "5" if good(answers[0]) else "1"
    first, second = map(good, answers)
    return "tie" if first == second else "A" if first else "B"


def noisy(sensitivity: float, specificity: float) -> Reply:
    """A pointwise judge with these errors, drawn by the answer's text."""

    def reply(prompt: str) -> str:
        if is_pair(prompt):
            return "tie"
        (answer,) = material(prompt)[1:]
        draw = unit_hash(answer, 5)
        called_good = draw < sensitivity if good(answer) else draw >= specificity
        return "4" if called_good else "2"

    return reply


def always(word: str) -> Reply:
    return lambda prompt: word


def biased(share: float) -> Reply:
    """Perfect, but for a share of the prompts it names the first place."""

    def reply(prompt: str) -> str:
        if is_pair(prompt) and unit_hash(prompt, 3) < share:
            return "A"
        return perfect(prompt)

    return reply


def double(reply: Reply, name: str = "judge") -> FakeCompleter:
    """A completer that answers so."""

    def answer(query: Query, sample: int) -> str:
        return reply(query.last_user_text)

    return FakeCompleter(name, answer=answer)
