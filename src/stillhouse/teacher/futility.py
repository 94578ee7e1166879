"""When asking on is futile: nothing can be answered, or nothing that is answered can be used.

Decides from what came back so far; asks nobody and keeps nothing but the first useless answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from stillhouse.core.errors import (
    StillhouseError,
    TeacherError,
    UnanswerableQueryError,
    UserError,
)
from stillhouse.core.records import Completion
from stillhouse.models.completer import ModelInfo
from stillhouse.teacher.answers import none_usable
from stillhouse.teacher.keys import AnswerKey
from stillhouse.teacher.retry import INPUT_REASONS, USER_REASONS, TeacherFailure
from stillhouse.teacher.store import AnswerStore

FIRST_FAILURES: Final = 5
LATER_FAILURES: Final = 50
FIRST_UNUSABLE: Final = 20
# A local model costs nothing and answers the longest queries first, which are no fair sample.
FIRST_UNUSABLE_LOCAL: Final = 200


class Futility:
    """See the module.

    Args:
        info: who is asked.
        problem_of: why an answer cannot be used; `None` to take all.
        reused: chats that were answered before.
        say: where a warning goes.
    """

    def __init__(
        self,
        info: ModelInfo,
        problem_of: Callable[[Completion], str | None] | None,
        *,
        reused: int,
        say: Callable[[str], None],
    ) -> None:
        self._info = info
        self._problem_of = problem_of  # None once enough were seen
        self._reused = reused
        self._say = say
        self._successes = 0
        self._failed_in_a_row: list[str] = []
        self._usable: set[str] = set()  # queries
        self._unusable: dict[str, Completion] = {}  # by query

    def answered(self) -> None:
        """All samples of a query are there."""
        self._successes += 1
        self._failed_in_a_row.clear()

    def of_stored(self, store: AnswerStore, keys: Iterable[AnswerKey]) -> UserError | None:
        """Whether the answers there are show that more would be of no use."""
        for key in keys:
            if self._problem_of is None:
                return None
            problem = self.of_answers(store.get(key))
            if problem is not None:
                return problem
        return None

    def of_answers(self, completions: Sequence[Completion]) -> UserError | None:
        """The error of a teacher none of whose first answers can be used, or `None`.

        Where most cannot, it says so once: whoever pays can stop the run.
        """
        if self._problem_of is None:
            return None
        for completion in completions:
            if self._problem_of(completion) is None:
                self._usable.add(completion.query_id)
                self._unusable.pop(completion.query_id, None)
            elif completion.query_id not in self._usable:
                self._unusable.setdefault(completion.query_id, completion)
        seen, bad = len(self._usable) + len(self._unusable), len(self._unusable)
        if seen < (FIRST_UNUSABLE_LOCAL if self._info.local else FIRST_UNUSABLE):
            return None
        error: UserError | None = None
        if bad > seen / 2:
            first = next(iter(self._unusable.values()))
            problem = self._problem_of(first) or ""
            if not self._usable:
                error = none_usable(self._info.name, bad, first, problem)
            else:
                self._say(
                    f"warning: {bad} of the first {seen} answers cannot be used "
                    f"(such as: {problem})"
                )
        self._problem_of = None
        return error

    def of_failure(self, error: TeacherError, failures: int) -> StillhouseError | None:
        """The error to stop by after a query got no answer, or `None`.

        Args:
            error: why it got none.
            failures: queries without an answer so far, with this one.
        """
        if isinstance(error, TeacherFailure) and error.fatal:
            # A refused key and an unknown model are the user's to mend.
            mine = error.reason in USER_REASONS
            return UserError("teacher", str(error)) if mine else error
        reason = error.reason if isinstance(error, TeacherFailure) else type(error).__name__
        if isinstance(error, UnanswerableQueryError) or reason in INPUT_REASONS:
            return self._of_input(error, failures)
        if self._failed_in_a_row and self._failed_in_a_row[-1] != reason:
            self._failed_in_a_row.clear()
        self._failed_in_a_row.append(reason)
        count = len(self._failed_in_a_row)
        if count < (LATER_FAILURES if self._successes else FIRST_FAILURES):
            return None
        which = f"the last {count}" if self._successes else f"the first {count}"
        return TeacherError(
            f"{which} queries got no answer, all for one reason: {error}; every answer so far "
            "is kept: run the same command again once it is mended"
        )

    def _of_input(self, error: TeacherError, failures: int) -> TeacherError | None:
        """A query's own fault counts only where a server took none of very many.

        A local model answers the longest first: those it cannot read come before all others.
        """
        if self._info.local or self._successes or self._reused or failures < LATER_FAILURES:
            return None
        return TeacherError(
            f"none of the first {failures} queries could be answered; the last: {error}"
        )
