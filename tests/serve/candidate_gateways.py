"""Gateways with students in folders, whose processes run a fake: alone, or two on one database."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gateway_servers import ADMIN, Loop
from test_gateway_http import Got, send

from stillhouse.core.recipe_file import parse_as
from stillhouse.retrain.gateway_admin import GatewayAdmin
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.server import Address, Gateway
from stillhouse.serve.stored_parts import StoredParts

TASK = {"kind": "classification", "labels": ["good", "bad"], "prompt": "Review: {text}"}
STAGES = [{"kind": "shadow"}, {"kind": "canary", "share": 0.5}, {"kind": "full"}]
PLAN = {"stages": STAGES, "teacher_only": 0, "candidate_pairs": 0.3, "sticky": "user"}


def student(folder: Path, mark: str, **files: str) -> Path:
    """A folder that the fake opens; `mark` is its fingerprint."""
    folder.mkdir(parents=True)
    for name, text in {"config.json": "{}", "mark": mark, **files}.items():
        (folder / name).write_text(text)
    return folder


def raw(teacher: str, tmp: Path, **more: Any) -> dict[str, Any]:
    """gateway.yaml of the task `t`, whose students come from `registry`."""
    small = {"kind": "student", "path": str(tmp / "old"), "head": "label", "task": TASK}
    task = {"teacher": "big", "student": "small", "experiment": PLAN}
    return {
        "listen": {"port": 0, "drain_s": 2},
        "admin": {"port": 0},
        "upstreams": {"big": {"base_url": teacher, "model": "big-1"}, "small": small},
        "tasks": {"t": task},
        "students": {"roots": [str(tmp / "registry")]},
        **more,
    }


class Stored(NamedTuple):
    """A gateway over a database."""

    url: str
    admin: GatewayAdmin
    parts: StoredParts
    gateway: Gateway
    admin_url: str


@contextmanager
def stored(given: dict[str, Any], database: Path) -> Iterator[Stored]:
    """One in a thread, until the block is left."""
    given = {**given, "log": {"url": f"sqlite:///{database}", "redact": []}}
    file = parse_as(GatewayFile, given, "gateway.yaml")
    parts = StoredParts(
        file, Pseudonyms(b"0123456789abcdef"), lambda kinds: lambda text: text, time.time()
    )
    running = Gateway(file, parts.parts, {"": ADMIN}, parts.refresh)
    opened: list[tuple[Address, Address | None]] = []
    ready = threading.Event()

    def told(listen: Address, admin: Address | None) -> None:
        opened.append((listen, admin))
        ready.set()

    try:
        with Loop() as loop:
            done = asyncio.run_coroutine_threadsafe(running.run(told), loop.loop)
            while not ready.wait(0.02):
                if done.done():
                    done.result()
            listen, admin = opened[0]
            assert admin is not None
            try:
                yield Stored(listen.url, GatewayAdmin(admin.url, ADMIN), parts, running, admin.url)
            finally:
                running.stop()
                done.result(60)
    finally:
        parts.close()


def ask(url: str, words: str, user: str | None = None, **more: Any) -> Got:
    """One request of the task."""
    body = {"model": "t", "messages": [{"role": "user", "content": f"Review: {words}"}], **more}
    return send(url, body | ({} if user is None else {"user": user}))


def who(got: Got) -> str:
    """Which model an answer is of."""
    return str(got.json["model"])


def until(holds: Callable[[], bool], what: str = "it never came", seconds: float = 60) -> None:
    """Wait for it."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, what
        time.sleep(0.02)
