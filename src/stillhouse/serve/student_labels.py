"""What every student's brain does with requests, and the brain that answers with labels.

A batch of requests is read, those that are not for this student are refused, and the others are
answered together with others of about their length. Imports no runtime. Knows requests as bytes and
sends frames; knows no socket.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from stillhouse.core.errors import StillhouseError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tasks import Task
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.student_answers import Send, Voice, label_answer, refusal
from stillhouse.serve.student_frames import Frame, asker_of
from stillhouse.serve.student_requests import Asked, Runtime, read_request

SPREAD: Final = 1.25
FEW_CHARS: Final = 12
LABELS: Final = Runtime(writes=False)
Believe = Callable[[Sequence[Query]], Sequence[Completion]]


class Opening(NamedTuple):
    """What is opened, and how it calls itself."""

    folder: Path
    head: str
    task: Task
    model: str
    max_batch: int
    max_tokens: int
    device: str = "auto"
    adapters: Path | None = None  # FOLDER/TASK/online


class Around(NamedTuple):
    """What a brain is given while it answers.

    `look` takes note of what has come in meanwhile; `gone` says whether nobody waits for a request
    any more.
    """

    send: Send
    look: Callable[[], None]
    gone: Callable[[int], bool]


class Brain(Protocol):
    """A student that is open. `threads`: requests that it takes one by one; 0: it takes batches."""

    voice: Voice
    runtime: Runtime
    threads: int

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """Answer requests; blocks. Whatever happens, each gets its frames."""


class Reading:
    """What all brains do the same with a request."""

    def __init__(self, opening: Opening, voice: Voice, runtime: Runtime) -> None:
        self.voice, self.runtime = voice, runtime
        self.threads = 0
        self._task, self._max_tokens = opening.task, opening.max_tokens

    def _read(self, jobs: Sequence[Frame], send: Send) -> list[tuple[int, Asked]]:
        """The requests that are for this student; the others are refused."""
        found = []
        for job in jobs:
            asker, body = asker_of(job)
            try:
                asked = read_request(body, self._task, self.runtime, self._max_tokens)
            except ApiError as error:
                send(refusal(job.number, error))
            else:
                found.append((job.number, asked._replace(asker=asker)))
        return found


class LabelReading(Reading, ABC):
    """Answers with labels, or with what is as certain, a batch at a time.

    Args:
        spread: how much longer the longest text of a run of the model may be than the shortest.
            On a CPU a padded token costs as much as any, and larger batches save little.
        runtime: what it can be asked for.
    """

    def __init__(
        self,
        opening: Opening,
        voice: Voice,
        spread: float = SPREAD,
        runtime: Runtime = LABELS,
    ) -> None:
        super().__init__(opening, voice, runtime)
        self._spread = spread

    @abstractmethod
    def _said(self, asked: Sequence[Asked]) -> Sequence[Completion]:
        """The answers to requests that are read together."""

    def _frames(self, number: int, asked: Asked, said: Completion) -> bytes:
        """An answer as it is sent."""
        return label_answer(number, asked, said, self.voice)

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """See `Brain`."""
        for asked in self._alike(self._read(jobs, around.send)):
            frames = []
            for (number, one), said in zip(asked, self._all(asked), strict=True):
                if isinstance(said, ApiError):
                    frames.append(refusal(number, said))
                else:
                    frames.append(self._frames(number, one, said))
            around.send(b"".join(frames))

    def _alike(self, asked: list[tuple[int, Asked]]) -> Iterator[list[tuple[int, Asked]]]:
        """Requests of about one length together, the shortest first."""

        def length(one: tuple[int, Asked]) -> int:
            return len(one[1].query.last_user_text)

        group: list[tuple[int, Asked]] = []
        for one in sorted(asked, key=length):
            if group and length(one) > self._spread * length(group[0]) + FEW_CHARS:
                yield group
                group = []
            group.append(one)
        if group:
            yield group

    def _all(self, asked: Sequence[tuple[int, Asked]]) -> Sequence[Completion | ApiError]:
        try:
            return self._said([one for _, one in asked])
        except Exception as error:  # one of them may be at fault: the others are asked again
            if len(asked) == 1:
                return [failure(error)]
            return [said for one in asked for said in self._all([one])]


class LabelBrain(LabelReading):
    """One student for all.

    Args:
        believe: its answers to a batch of queries.
        spread: see `LabelReading`.
    """

    def __init__(
        self, opening: Opening, voice: Voice, believe: Believe, spread: float = SPREAD
    ) -> None:
        super().__init__(opening, voice, spread)
        self._believe = believe

    def _said(self, asked: Sequence[Asked]) -> Sequence[Completion]:
        return self._believe([one.query for one in asked])


def failure(error: Exception) -> ApiError:
    """What a student's own error is to the gateway, which asks the teacher then."""
    if isinstance(error, StillhouseError):
        return ApiError(422, "The student cannot answer this request.", code="unanswerable")
    return ApiError(500, f"The student failed: {type(error).__name__}.", code="student_error")
