"""A student asked in this process as the gateway asks it: for calibration, and for tests.

The same reading of requests, the same runtime and the same answers as behind the gateway. Knows
brains and frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from stillhouse.serve.student_frames import ANSWER, ASK, Frame, Frames, status_of
from stillhouse.serve.student_labels import Around, Brain


class LocalAnswer(NamedTuple):
    """What a student said to one request."""

    status: int
    body: Mapping[str, Any]


def ask_all(
    brain: Brain, bodies: Sequence[Mapping[str, Any]], batch: int, done: Callable[[int], None]
) -> list[LocalAnswer]:
    """The answers to plain requests, in their order.

    Args:
        batch: requests at a time.
        done: hears how many more are answered.
    """
    frames = [Frame(ASK, n, json.dumps(body).encode()) for n, body in enumerate(bodies)]
    found: dict[int, LocalAnswer] = {}

    def take(piece: bytes) -> None:
        for kind, number, payload in Frames().feed(piece):
            if kind == ANSWER:
                status, body = status_of(payload)
                found[number] = LocalAnswer(status, json.loads(body))

    around = Around(take, lambda: None, lambda _: False)

    def answer(jobs: Sequence[Frame]) -> None:
        brain.answer(jobs, around)
        done(len(jobs))

    if brain.threads:
        with ThreadPoolExecutor(brain.threads) as threads:
            list(threads.map(answer, ([job] for job in frames)))
    else:
        for jobs in _parts(frames, batch):
            answer(jobs)
    return [found[number] for number in range(len(frames))]


def _parts(frames: Sequence[Frame], size: int) -> Iterator[Sequence[Frame]]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]
