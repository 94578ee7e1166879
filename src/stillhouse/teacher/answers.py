"""Reading a teacher's answers against the task: what is wrong with one, or with all.

Knows completions and tasks; keeps nothing and asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion
from stillhouse.core.tasks import Task

NO_LOGPROBS: Final = (
    "the server gives no logprobs, and train.alpha above 0 needs the teacher's class probabilities"
)


def problem_of(task: Task, completion: Completion) -> str | None:
    """Why an answer cannot be used, or `None`."""
    if completion.finish_reason in ("refusal", "content_filter"):
        return f"refused ({completion.finish_reason})"
    problem = task.parse(completion.text).problem
    if problem is not None and completion.finish_reason == "length":
        return f"{problem} (cut off at max_tokens)"
    return problem


def blind_problem(completion: Completion) -> str | None:
    """Why no belief over the labels can be read from an answer, or `None`."""
    if completion.label_logprobs is None and not completion.logprobs:
        return NO_LOGPROBS
    return None


def require_usable(task: Task, model: str, completions: Iterable[Completion]) -> None:
    """Refuse a teacher none of whose answers can be used.

    Raises:
        UserError: names the first answer and what is wrong with it.
    """
    first: tuple[Completion, str] | None = None
    count = 0
    for completion in completions:
        problem = problem_of(task, completion)
        if problem is None:
            return
        first = first or (completion, problem)
        count += 1
    if first is None:
        return
    raise none_usable(model, count, *first)


def none_usable(model: str, count: int, first: Completion, problem: str) -> UserError:
    """The error of a teacher none of whose `count` answers can be used."""
    action = "say in task.system or task.prompt exactly what to answer"
    if problem == NO_LOGPROBS:
        action = (
            "set teacher.signals: samples with samples: 5 and sampling_temperature: 1, or "
            "train.alpha: 0"
        )
    elif first.finish_reason == "length":
        action = "raise teacher.max_tokens: the model may be thinking before it answers"
    return UserError(
        f"teacher.model {model}",
        f"none of its {count} answers can be used; the first, to query {first.query_id}: {problem}",
        value=first.text[:80],
        action=action,
    )
