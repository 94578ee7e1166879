"""A student that answers requests, whatever runs it: opened, in batches or in threads.

onnxruntime and transformers answer whole batches; llama.cpp batches by itself what comes from many
threads. Imports a runtime only when its student is opened. Knows requests as bytes and sends
frames; knows no socket.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from stillhouse.core.artefact import ARTEFACT, is_artefact, read_artefact, student_sha
from stillhouse.core.optional import require
from stillhouse.core.records import Completion, Query, message_key
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.artefact_student import open_artefact
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling, draw_seed
from stillhouse.models.writing import Writing
from stillhouse.serve.student_answers import Answering, Voice
from stillhouse.serve.student_frames import Frame
from stillhouse.serve.student_labels import (
    SPREAD,
    Around,
    Believe,
    Brain,
    LabelBrain,
    Opening,
    Reading,
    failure,
)
from stillhouse.serve.student_personal import open_personal_brain
from stillhouse.serve.student_requests import Asked, Runtime
from stillhouse.serve.student_tags import Extract, TagBrain

FINGERPRINT_DIGITS: Final = 16


class WritingBrain(Reading):
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


class ThreadedBrain(Reading):
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
    if opening.adapters is not None:
        return open_personal_brain(opening, voice)
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
    spread = SPREAD if student.info.notes.get("device", "cpu") == "cpu" else math.inf
    if opening.head == "tags":
        return TagBrain(opening, voice, _extracts(student), spread)
    return LabelBrain(opening, voice, _labels(student), spread)


def _labels(student: Any) -> Believe:
    def believe(queries: Sequence[Query]) -> list[Completion]:
        return [said[0] for said in student.run_batch([Call(one, Sampling()) for one in queries])]

    return believe


def _extracts(student: Any) -> Extract:
    def extract(queries: Sequence[Query], alternatives: int) -> list[Completion]:
        how = Sampling(logprobs=alternatives)
        return [said[0] for said in student.run_batch([Call(one, how) for one in queries])]

    return extract


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
