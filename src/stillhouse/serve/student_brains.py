"""A student that answers requests, whatever runs it: in batches or in threads.

onnxruntime and transformers answer whole batches; llama.cpp batches by itself what comes from many
threads. Imports a runtime only when its student is opened. Knows requests as bytes and sends
frames; knows no socket.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from stillhouse.core.artefact import ARTEFACT, is_artefact, read_artefact, student_sha
from stillhouse.core.errors import StillhouseError
from stillhouse.core.optional import require
from stillhouse.core.records import Completion, Query, message_key
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.models.artefact_student import open_artefact
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling, draw_seed
from stillhouse.models.writing import Writing
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.student_answers import Answering, Send, Voice, label_answer, refusal
from stillhouse.serve.student_frames import Frame
from stillhouse.serve.student_requests import Asked, Runtime, read_request

FINGERPRINT_DIGITS: Final = 16
SPREAD: Final = 1.25
FEW_CHARS: Final = 12
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


class _Reading:
    """What all brains do the same with a request."""

    def __init__(self, opening: Opening, voice: Voice, runtime: Runtime) -> None:
        self.voice, self.runtime = voice, runtime
        self.threads = 0
        self._task, self._max_tokens = opening.task, opening.max_tokens

    def _read(self, jobs: Sequence[Frame], send: Send) -> list[tuple[int, Asked]]:
        """The requests that are for this student; the others are refused."""
        found = []
        for job in jobs:
            try:
                asked = read_request(job.payload, self._task, self.runtime, self._max_tokens)
            except ApiError as error:
                send(refusal(job.number, error))
            else:
                found.append((job.number, asked))
        return found


class LabelBrain(_Reading):
    """Answers with labels, a batch at a time.

    Args:
        spread: how much longer the longest text of a run of the model may be than the shortest.
            On a CPU a padded token costs as much as any, and larger batches save little.
    """

    def __init__(
        self, opening: Opening, voice: Voice, believe: Believe, spread: float = SPREAD
    ) -> None:
        super().__init__(opening, voice, Runtime(writes=False))
        self._believe, self._spread = believe, spread

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """See `Brain`."""
        for asked in self._alike(self._read(jobs, around.send)):
            frames = []
            for (number, one), said in zip(asked, self._all(asked), strict=True):
                if isinstance(said, ApiError):
                    frames.append(refusal(number, said))
                else:
                    frames.append(label_answer(number, one, said, self.voice))
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
            return self._believe([one.query for _, one in asked])
        except Exception as error:  # one of them may be at fault: the others are asked again
            if len(asked) == 1:
                return [failure(error)]
            return [said for one in asked for said in self._all([one])]


class WritingBrain(_Reading):
    """Writes texts with transformers, a batch at a time."""

    def __init__(self, opening: Opening, voice: Voice, writer: Any, asked: Any) -> None:
        super().__init__(opening, voice, Runtime(writes=True))
        self._writer, self._asked_type = writer, asked

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """See `Brain`."""
        rows: list[tuple[Answering, int]] = []
        writings = []
        for number, asked in self._read(jobs, around.send):
            answering = Answering(number, asked, self.voice, around.send, around.gone)
            for index, writing in enumerate(writings_of(asked)):
                rows.append((answering, index))
                writings.append(self._asked_type(writing, answering.say(index)))
        if not rows:
            return
        try:
            ends = self._writer.write(writings, around.look)
        except Exception as error:  # a batch that fails must not end the process
            for answering, _ in rows:
                answering.fail(failure(error))
            return
        for (answering, index), end in zip(rows, ends, strict=True):
            if isinstance(end, Exception):
                answering.fail(failure(end))
            else:
                answering.ended(index, end)


class ThreadedBrain(_Reading):
    """Writes texts with llama.cpp, each request in a thread of its own."""

    def __init__(self, opening: Opening, voice: Voice, student: Any, threads: int) -> None:
        runtime = Runtime(writes=True, schemas=True, top_p=True, penalties=True)
        super().__init__(opening, voice, runtime)
        self._student, self.threads = student, threads

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """See `Brain`; one job a call."""
        for number, asked in self._read(jobs, around.send):
            answering = Answering(number, asked, self.voice, around.send, around.gone)
            try:
                for index, writing in enumerate(writings_of(asked)):
                    written = self._student.write(writing, answering.say(index))
                    answering.ended(index, written)
            except Exception as error:  # a request that fails must not end the process
                answering.fail(failure(error))


def writings_of(asked: Asked) -> list[Writing]:
    """The answers that a request wants. With a seed they depend on seed, chat and number alone."""
    seed = asked.seed if asked.seed is not None else int.from_bytes(os.urandom(4), "big")
    key = message_key(asked.query.messages)
    return [
        Writing(
            query=asked.query,
            max_tokens=asked.max_tokens,
            sampling_temperature=asked.sampling_temperature,
            top_p=asked.top_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            seed=draw_seed(seed, key, sample),
            logprobs=asked.logprobs,
            stop=asked.stop,
            json_schema=asked.json_schema,
        )
        for sample in range(asked.n)
    ]


def failure(error: Exception) -> ApiError:
    """What a student's own error is to the gateway, which asks the teacher then."""
    if isinstance(error, StillhouseError):
        return ApiError(422, "The student cannot answer this request.", code="unanswerable")
    return ApiError(500, f"The student failed: {type(error).__name__}.", code="student_error")


def open_brain(opening: Opening) -> Brain:
    """Open a student's folder or an artefact with its runtime.

    Raises:
        UserError: it cannot be opened, or is not of this task.
        MissingExtraError: its runtime is not installed.
    """
    folder = opening.folder
    kind = "hf"
    if is_artefact(folder):
        raw = (folder / ARTEFACT).read_bytes()
        kind = read_artefact(folder).kind
        voice = Voice(opening.model, f"fp_{hashlib.sha256(raw).hexdigest()[:FINGERPRINT_DIGITS]}")
    else:
        voice = Voice(opening.model, f"fp_{student_sha(folder)[:FINGERPRINT_DIGITS]}")
    if kind == "hf" and opening.head == "text":
        return _transformers_text(opening, voice)
    if kind == "hf":
        module = require("stillhouse.models.student", "train", "a student of transformers")
        student = module.open_weights(
            folder, opening.task, opening.head, opening.max_batch, opening.device
        )
    else:
        student = open_artefact(folder, opening.task, opening.head, opening.max_batch)
    if kind == "gguf":
        return _llama_text(opening, voice, student)
    on_cpu = student.info.notes.get("device", "cpu") == "cpu"
    return LabelBrain(opening, voice, _labels(student), SPREAD if on_cpu else math.inf)


def _labels(student: Any) -> Believe:
    def believe(queries: Sequence[Query]) -> list[Completion]:
        return [said[0] for said in student.run_batch([Call(one, Sampling()) for one in queries])]

    return believe


def _transformers_text(opening: Opening, voice: Voice) -> Brain:
    module = require("stillhouse.models.hf_writer", "train", "a student of transformers")
    writer = module.open_writer(str(opening.folder), opening.max_batch, opening.device)
    if isinstance(opening.task, ClassificationTask):
        labels = opening.task.labels
        return LabelBrain(opening, voice, lambda queries: writer.believe(queries, labels))
    return WritingBrain(opening, voice, writer, module.Asked)


def _llama_text(opening: Opening, voice: Voice, student: Any) -> Brain:
    slots = student.slots
    if isinstance(opening.task, ClassificationTask):
        labels = opening.task.labels
        pool = ThreadPoolExecutor(slots, thread_name_prefix="labels")
        return LabelBrain(
            opening,
            voice,
            lambda queries: list(pool.map(lambda one: student.believe(one, labels), queries)),
        )
    return ThreadedBrain(opening, voice, student, slots)
