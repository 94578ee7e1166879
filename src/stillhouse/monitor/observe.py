"""Rows of live traffic as observations. Knows no test; agreement is the caller's to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from stillhouse.core.live import LiveRow
from stillhouse.core.records import Message
from stillhouse.monitor.drift_records import Observation

# Parsed form of an answer's text (a label, canonical JSON), or None where it has none.
Parse = Callable[[str], str | None]
Agree = Callable[[str, str], float]


def observe(
    rows: Iterable[LiveRow],
    *,
    text: Callable[[tuple[Message, ...]], str] | None = None,
    parse: Parse | None = None,
    agree: Agree | None = None,
    language: Callable[[str], str | None] | None = None,
) -> list[Observation]:
    """The rows as they are compared, in their order.

    Args:
        text: what of a request's messages is compared; without it, the last message. A task's is
            `task.varying_text`.
        parse: answer's text to label or canonical form; without it, answers are not compared.
        agree: (student's text, teacher's text) to 0..1; without it, equal parsed forms are 1.
        language: text to a language code, such as `languages.language_guess()`.
    """
    raise NotImplementedError
