"""Benchmark scripts are run from their own folder, which comes first on the path."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_no_benchmark_hides_an_installed_package() -> None:
    installed = set(importlib.metadata.packages_distributions())
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert names
    assert not names & installed, "rename these scripts: an import would find them first"


def test_the_load_goes_on_where_idle_connections_are_closed() -> None:
    """Two waves of slow answers, with quick ones between, while which the server closes what the
    first wave opened: the second opens its own, and every request is answered."""
    asked = 0
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        serving.add(asyncio.current_task())
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 0.3)
                await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
                asked += 1
                if asked <= 10 or 60 < asked <= 70:
                    await asyncio.sleep(0.2)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def run() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        command = [sys.executable, str(BENCHMARKS / "load_generator.py"), url]
        plan = ["--rate", "50", "--requests", "90", "--connections", "64"]
        async with server:
            load = await asyncio.create_subprocess_exec(*command, *plan, stdout=subprocess.PIPE)
            said, _ = await asyncio.wait_for(load.communicate(), 60)
            await asyncio.gather(*(one for one in serving if one is not None))
        return json.loads(said)

    found = asyncio.run(run())
    assert (found["failed"], found["statuses"]) == (0, {"200": 90})
    assert len(serving) > 10
