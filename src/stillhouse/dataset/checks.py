"""Quality checks of a teacher's answer, each a small pure function with a stable reason name.

A check says what is wrong with an answer, or `None`. They run in the order of `CHECKS`, then the
recipe's own validators; the first that finds something names the rejection. Knows one answer at a
time: agreement, duplicates and contamination are elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.tasks import (
    ClassificationTask,
    ExtractionTask,
    GenerationTask,
    ParsedAnswer,
    Task,
    canonical_json,
    fold,
)
from stillhouse.dataset.endings import looks_cut
from stillhouse.dataset.refusals import opens_as_refusal
from stillhouse.dataset.validators import Problem, Validators, bare_json

# An answer that begins with this many words of its prompt repeats it.
ECHO_WORDS: Final = 8
# Repetition is judged from so many words or lines on; shorter texts repeat by chance.
LOOP_WORDS: Final = 20
LOOP_LINES: Final = 4
LOOP_SHARE: Final = 0.5
RUN_CHARS: Final = 40

# UTF-8 read as Latin-1 or Windows-1252: a lead byte and continuation bytes, as characters.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf]|â€[\x80-\xbf˜™œ\x9d¦“”]|ï¿½")
_WORD = re.compile(r"\w+")
_RUN = re.compile(rf"([^\W_])\1{{{RUN_CHARS - 1},}}")


class ExampleParts(NamedTuple):
    """An accepted answer: its canonical text, and the label of a classification task."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the checks look at."""

    task: Task
    query: Query
    completion: Completion
    section: DatasetSection
    parsed: ParsedAnswer

    @property
    def text(self) -> str:
        """The answer without surrounding space."""
        return self.completion.text.strip()


Check = Callable[[Answer], str | None]


def check_completion(
    task: Task,
    query: Query,
    completion: Completion,
    section: DatasetSection,
    validators: Validators | None = None,
) -> Rejection | ExampleParts:
    """Judge one answer: the parts of an example, or the rejection with its reason.

    The checks read the answer as it came; `validators`, those of the section (given where many
    answers are judged), read what is kept of it: the label, canonical JSON, a text without fence.
    """
    answer = Answer(task, query, completion, section, task.parse(completion.text))
    problem = next(
        (
            Problem(reason, detail)
            for reason, check in CHECKS
            if (detail := check(answer)) is not None
        ),
        None,
    )
    if problem is None:
        parts = _parts(answer)
        problem = (validators or Validators(section.validators)).problem(query, parts.text)
        if problem is None:
            return parts
    return Rejection(
        query_id=query.id,
        reason=problem.reason,
        detail=problem.detail,
        messages=query.messages,
        completion=completion,
    )


def _parts(answer: Answer) -> ExampleParts:
    """What is kept of an answer without a problem."""
    value = answer.parsed.value
    if isinstance(answer.task, ClassificationTask):
        return ExampleParts(str(value), str(value))
    if isinstance(answer.task, ExtractionTask):
        return ExampleParts(canonical_json(value), None)
    if answer.section.validators.json_schema is not None:
        return ExampleParts(bare_json(str(value)), None)
    return ExampleParts(str(value), None)


def refusal(answer: Answer) -> str | None:
    """The provider marked a refusal, or a text that is no label or object opens like one."""
    if answer.completion.finish_reason in ("refusal", "content_filter"):
        return f"finish reason {answer.completion.finish_reason}"
    if not isinstance(answer.task, GenerationTask) and answer.parsed.problem is None:
        return None
    if answer.section.validators.refusals and opens_as_refusal(answer.text):
        return f"refuses: {answer.text[:60]!r}"
    return None


def tool_calls(answer: Answer) -> str | None:
    """The model called a tool instead of answering."""
    return "a tool call, no answer" if answer.completion.finish_reason == "tool_calls" else None


def empty(answer: Answer) -> str | None:
    """Nothing but space."""
    return None if answer.text else "no text"


def truncated(answer: Answer) -> str | None:
    """Cut at the token limit, or a free text that stops in the middle.

    A label that is whole all the same counts as an answer.
    """
    if answer.completion.finish_reason != "length":
        if isinstance(answer.task, GenerationTask) and answer.section.validators.unfinished:
            return looks_cut(answer.text)
        return None
    if isinstance(answer.task, ClassificationTask) and answer.parsed.problem is None:
        cut = fold(answer.text)
        if not any(
            fold(label) != cut and fold(label).startswith(cut) for label in answer.task.labels
        ):
            return None
    return "cut at the token limit: raise teacher.max_tokens"


def too_short(answer: Answer) -> str | None:
    """Fewer characters than `dataset.min_chars`."""
    if len(answer.text) >= answer.section.min_chars:
        return None
    return f"{len(answer.text)} characters, fewer than {answer.section.min_chars}"


def too_long(answer: Answer) -> str | None:
    """More characters than `dataset.max_chars`."""
    if len(answer.text) <= answer.section.max_chars:
        return None
    return f"{len(answer.text)} characters, more than {answer.section.max_chars}"


def encoding(answer: Answer) -> str | None:
    """Control characters, replacement characters, or text decoded with the wrong character set.

    What the query itself holds is not held against the answer. Labels are stored as the task writes
    them, so that their raw text does not matter.
    """
    if isinstance(answer.task, ClassificationTask):
        return None
    asked = "\n".join(message.content for message in answer.query.messages)
    for character in set(answer.text):
        if character in "\n\t\r" or character in asked:
            continue
        if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co"):
            return f"holds the character U+{ord(character):04X}"
    found = _MOJIBAKE.search(answer.text)
    if found and found.group() not in asked:
        return f"wrongly decoded text: {found.group()!r}"
    return None


def label(answer: Answer) -> str | None:
    """The answer of a classification task names none of its labels."""
    return answer.parsed.problem if isinstance(answer.task, ClassificationTask) else None


def schema(answer: Answer) -> str | None:
    """The answer of an extraction task is no JSON, or breaks the schema."""
    return answer.parsed.problem if isinstance(answer.task, ExtractionTask) else None


def echo(answer: Answer) -> str | None:
    """The answer of a generation task is its input, or begins by repeating the prompt."""
    if not isinstance(answer.task, GenerationTask) or not answer.section.validators.echo:
        return None
    said = _words(answer.text)
    asked = _words(answer.query.last_user_text)
    text = _words(answer.task.last_text(answer.query))
    if said in (asked, text):
        return "is the input"
    if len(asked) >= ECHO_WORDS and said[: len(asked)] == asked:
        return "begins by repeating the prompt"
    return None


def repetition(answer: Answer) -> str | None:
    """A generated text runs in circles: most lines or 4-grams are repeats, or one character runs.

    The shares of repeated lines and n-grams are those of Rae et al. (2021), section A1.1, with one
    lenient threshold: answers are short, and lists repeat some words rightly.
    """
    if not isinstance(answer.task, GenerationTask):
        return None
    run = _RUN.search(answer.text)
    if run:
        return f"a run of {len(run.group())} times {run.group(1)!r}"
    lines = [line.strip() for line in answer.text.splitlines() if _WORD.search(line)]
    if len(lines) >= LOOP_LINES and _repeated(lines) > LOOP_SHARE:
        return f"{_repeated(lines):.0%} of the lines are repeats"
    words = _words(answer.text)
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(words) >= LOOP_WORDS and _repeated(grams) > LOOP_SHARE:
        return f"{_repeated(grams):.0%} of the 4-grams are repeats"
    return None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _repeated(items: list[str] | list[tuple[str, str, str, str]]) -> float:
    """Share of items that occurred before."""
    return 1.0 - len(Counter(items)) / len(items)


# Reason names are stable: reports and rejections.jsonl carry them.
CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("refusal", refusal),
    ("tool_calls", tool_calls),
    ("empty", empty),
    ("truncated", truncated),
    ("label", label),
    ("schema", schema),
    ("too_short", too_short),
    ("too_long", too_long),
    ("encoding", encoding),
    ("echo", echo),
    ("repetition", repetition),
)
