"""A gateway with files and batches, in this process, and a client that uses them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
from gateway_servers import Running, gateway

from stillhouse.serve.batches import BatchWork
from stillhouse.serve.tables import open_database

ASK: dict[str, Any] = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}
KEYS = [
    {"tenant": one, "sha256": sha256(f"key-{one}".encode()).hexdigest()} for one in ("a", "b")
] + [{"tenant": "a", "sha256": sha256(b"key-t").hexdigest(), "scopes": ["t"]}]


@contextmanager
def batching(
    folder: Path, raw: dict[str, Any], **section: Any
) -> Iterator[tuple[Running, BatchWork]]:
    """A gateway with files and batches in a database in a folder."""
    url = f"sqlite:///{folder}/gateway.db"
    engine = open_database(url)
    work = BatchWork(engine)
    whole = {**raw, "log": {"url": url}, "batches": section, "clients": KEYS}
    try:
        with gateway(whole, batches=work) as running:
            yield running, work
    finally:
        engine.dispose()


def client_of(running: Running, key: str = "key-a") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)


def line(number: int, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    asked = {**ASK, "messages": [{"role": "user", "content": f"text {number}"}], **body}
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": asked}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def begun(client: openai.OpenAI, content: bytes, endpoint: str = "/v1/chat/completions") -> Any:
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    named: Any = endpoint
    return client.batches.create(
        input_file_id=file.id, endpoint=named, completion_window="24h", metadata={"why": "labels"}
    )


def ended(client: openai.OpenAI, identity: str, seconds: float = 20) -> Any:
    """The batch once it is done."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        batch = client.batches.retrieve(identity)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.02)
    raise AssertionError(f"still {batch.status}")


def lines_of(client: openai.OpenAI, identity: str | None) -> list[dict[str, Any]]:
    assert identity is not None
    return [json.loads(one) for one in client.files.content(identity).text.splitlines()]
