"""The demo's traffic: film reviews and, for the shift, newspaper editorials; and who sends them.

Reviews are the run's golden set: no student has trained on them, and each has its critic's verdict.
Editorials are sentences of the New York Times, each rated by people from -4 to 4, of
hutto_ICWSM_2014 in the source archive of vaderSentiment 3.3.2 (MIT); only clear ratings are taken.
Users ask, read the answer, and some of them send the right one back.
"""

from __future__ import annotations

import asyncio
import io
import random
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from stillhouse.core.jsonl import read_records
from stillhouse.core.records import LabelledQuery
from stillhouse.core.tasks import ClassificationTask

ARCHIVE: Final = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
EDITORIALS: Final = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
CLEAR: Final = 1.0  # mean rating from which a sentence has a side
WORDS: Final = (4, 30)


class Said(NamedTuple):
    """A text, and what is right about it."""

    text: str
    label: str


class Sent(NamedTuple):
    """What became of requests."""

    requests: int
    variants: dict[str, int]
    right: int
    failed: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of the answers that were right."""
        return self.right / max(1, self.requests - self.failed)


def reviews_of(run: Path, task: ClassificationTask) -> list[Said]:
    """The run's golden set."""
    found = []
    for query in read_records(run / "traffic" / "golden.jsonl", LabelledQuery):
        found.append(Said(task.varying_text(query), str(query.reference)))
    return found


def editorials_of(archive: Path, labels: Sequence[str]) -> list[Said]:
    """The sentences, with the first label for praise and the second for blame."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(ARCHIVE)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as tar:
            member = tar.extractfile(EDITORIALS)
            assert member is not None
            lines = member.read().decode("utf-8", "replace").splitlines()
    found = []
    for line in lines:
        parts = line.split("\t")
        if len(parts) != 3:
            continue
        rating, text = float(parts[1]), " ".join(parts[2].split())
        if abs(rating) >= CLEAR and WORDS[0] <= len(text.split()) <= WORDS[1]:
            found.append(Said(text, labels[0] if rating > 0 else labels[1]))
    random.Random(0).shuffle(found)
    return found


class Mix:
    """Texts in turn: of each kind as many as its share, and none twice while they last."""

    def __init__(self, usual: Sequence[Said], other: Sequence[Said], seed: int = 0) -> None:
        self._usual, self._other = _turning(usual), _turning(other)
        self._random = random.Random(seed)

    def take(self, count: int, share: float = 0.0) -> list[Said]:
        """So many, `share` of them of the other kind."""
        return [
            next(self._other if self._random.random() < share else self._usual)
            for _ in range(count)
        ]


def _turning(texts: Sequence[Said]) -> Iterator[Said]:
    while True:
        yield from texts


class Users:
    """Clients of the gateway.

    Args:
        url: of the gateway, with /v1.
        corrects: share of the requests whose user sends the right answer afterwards.
        at_once: open requests.
    """

    def __init__(
        self, url: str, name: str, task: ClassificationTask, corrects: float, at_once: int = 16
    ) -> None:
        self._url, self._name, self._task = url, name, task
        self._corrects, self._at_once = corrects, at_once
        self._number = 0
        self._random = random.Random(7)

    async def send(self, texts: Sequence[Said]) -> Sent:
        """Ask about each text, as users do."""
        gate = asyncio.Semaphore(self._at_once)
        variants: Counter[str] = Counter()
        counts = {"right": 0, "failed": 0}
        loop = asyncio.get_running_loop()
        began = loop.time()
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def one(said: Said, number: int, corrects: bool) -> None:
                body: dict[str, Any] = {
                    "model": self._name,
                    "user": f"user-{number % 499}",
                    "messages": [
                        {"role": message.role, "content": message.content}
                        for message in self._task.messages_for(said.text)
                    ],
                }
                async with gate:
                    async with session.post(f"{self._url}/chat/completions", json=body) as reply:
                        if reply.status != 200:
                            counts["failed"] += 1
                            return
                        variants[reply.headers["x-stillhouse-variant"]] += 1
                        name = reply.headers["x-request-id"]
                        answer = (await reply.json())["choices"][0]["message"]["content"]
                    counts["right"] += answer.strip() == said.label
                    if corrects:
                        told = {"request_id": name, "corrected": said.label}
                        async with session.post(f"{self._url}/feedback", json=told) as reply:
                            await reply.read()

            jobs = []
            for said in texts:
                self._number += 1
                jobs.append(one(said, self._number, self._random.random() < self._corrects))
            await asyncio.gather(*jobs)
        return Sent(
            len(texts), dict(variants), counts["right"], counts["failed"], loop.time() - began
        )
