"""A watched task for tests: a real SQLite log of a gateway, filled by seeded draws; loop.yaml."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.records import Message
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

LABELS = ("fresh", "rotten")
TASK = {"kind": "classification", "labels": list(LABELS), "name": "reviews"}
HOUR = 3600.0


class World:
    """A folder with gateway.yaml, recipe.yaml, loop.yaml and the gateway's database."""

    def __init__(self, folder: Path, monitor: dict[str, Any] | None = None, **loop: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.url = f"sqlite:///{folder}/gateway.db"
        self.engine: Engine = open_database(self.url)
        self.loop = folder / "loop.yaml"
        self.kept = folder / "loop" / "reviews"
        section = {
            "window": {"requests": 100, "least": 50, "settle_s": 0, "first_days": 10_000},
            "reference": {"windows": 2},
            "segments": {"by": ["tenant"]},
            "canaries": None,
            "drift": None,
            "bounds": {"persist": [1, 1]},
        }
        for name, value in (monitor or {}).items():
            before = section.get(name)
            merged = isinstance(before, dict) and isinstance(value, dict)
            section[name] = {**before, **value} if merged else value  # type: ignore[dict-item]
        self.monitor = section
        self.more = loop
        self.teacher: dict[str, Any] = {"model": "embedded"}
        self.prices: dict[str, Any] = {}
        self.student_url = "http://127.0.0.1:9/v1"
        self.key_env: str | None = None
        self.log = TrafficLog(
            self.engine,
            redact=lambda text: text,
            pseudonyms=Pseudonyms(b"0123456789abcdef"),
        )
        self.count = 0
        self.write()

    def write(self) -> None:
        """The three files."""
        gateway = {
            "log": {"url": self.url},
            "upstreams": {
                "big": {"base_url": "http://127.0.0.1:9/v1", "model": "big"},
                "small": {
                    "base_url": self.student_url,
                    "model": "small",
                    "api_key_env": self.key_env,
                },
            },
            "tasks": {"reviews": {"teacher": "big", "student": "small"}},
        }
        recipe = {
            "name": "reviews",
            "task": TASK,
            "traffic": {"path": "traffic.jsonl"},
            "teacher": self.teacher,
            "prices": self.prices,
            "student": {"head": "label", "from": "embedded-encoder"},
        }
        task = {"recipe": "recipe.yaml", "monitor": self.monitor, **self.more}
        loop = {"gateway": "gateway.yaml", "tasks": {"reviews": task}}
        for name, value in (("gateway", gateway), ("recipe", recipe), ("loop", loop)):
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")

    def pairs(
        self,
        count: int,
        *,
        begin: float,
        agree: float,
        seed: int = 0,
        step: float = 1.0,
        users: int = 40,
        arm: str = "teacher_only",
        student: str = "small",
        confidence: float | None = None,
        text: Callable[[int], str] = lambda number: f"Review {number} of a film",
        tenant: Callable[[int], str] = lambda _: "shop",
    ) -> list[str]:
        """Requests that both answered, in the log; their ids."""
        draw = random.Random(seed)
        ids = []
        for number in range(count):
            self.count += 1
            name, user = f"q{self.count}", draw.randrange(users)
            truth = draw.choice(LABELS)
            other = LABELS[1 - LABELS.index(truth)]
            said = truth if draw.random() < agree else other
            at = begin + number * step
            same = {"at": at, "tenant": tenant(number), "unit": f"u{user}", "user": f"user{user}"}
            asked = {
                "model": "reviews",
                "messages": [{"role": "user", "content": text(number)}],
            }
            self.log.offer(
                call_of(1, id=name, user=f"user{user}", request=asked, response=_answer(truth)),
                served_of(1, id=name, arm=arm, **same),
            )
            shadow = served_of(
                1,
                id=f"{name}s",
                arm="shadow",
                variant="student",
                upstream=student,
                shadow_of=name,
                confidence=confidence,
                **same,
            )
            self.log.offer(
                call_of(
                    1, id=f"{name}s", user=f"user{user}", request=asked, response=_answer(said)
                ),
                shadow,
            )
            ids.append(name)
        assert self.log.flush(20)
        return ids

    def outcome(self, request: str, score: float, at: float, **more: Any) -> None:
        """Feedback on an answer."""
        self.log.outcome(Outcome(request=request, kind="feedback", score=score, at=at, **more))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """A JSONL file of the task's folder."""
        path = self.kept / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """Let go of the database."""
        self.log.close()
        self.engine.dispose()


def _answer(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def row_of(number: int, **fields: Any) -> LiveRow:
    """A request that teacher and student answered alike."""
    values: dict[str, Any] = {
        "id": f"r{number}",
        "at": float(number),
        "task": "reviews",
        "tenant": "shop",
        "unit": f"u{number}",
        "messages": (Message(role="user", content=f"Review {number}"),),
        "seen": "teacher",
        "arm": "teacher_only",
        "student_name": "small",
        "teacher": said_of("fresh"),
        "student": said_of("fresh"),
    }
    return LiveRow(**(values | fields))


def said_of(text: str | None, **fields: Any) -> LiveAnswer:
    """An answer."""
    return LiveAnswer(**({"id": "a", "text": text, "latency_ms": 5.0} | fields))
