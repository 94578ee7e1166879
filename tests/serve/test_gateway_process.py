"""`stillhouse serve` as a process: light to start, drained on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from gateway_servers import Model, models, says, two

from stillhouse.core.recipe_file import parse_as
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.server import Address, Gateway, serve_here

ASK = {"model": "t", "messages": [{"role": "user", "content": "hello"}]}


# The command alone: the whole command line takes seconds to import.
SERVE = "import sys, pathlib, stillhouse.cli_serve as c; c.serve(pathlib.Path(sys.argv[1]))"
SECRET = "0123456789abcdef"


def started(path: Path, raw: dict[str, Any]) -> subprocess.Popen[str]:
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "A": "sk-secret",
            "STILLHOUSE_ADMIN_KEY": "a",
            "STILLHOUSE_PSEUDONYM_SECRET": SECRET,
        },
    )


def test_a_gateway_drains_on_sigterm_and_prints_no_secret(tmp_path: Path) -> None:
    good = says("good")

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await good(request, body)

    teacher = Model(slow)
    with models(teacher):
        raw = {"listen": {"port": 0}, "admin": {"port": 0}, **two(teacher, None)}
        process = started(tmp_path / "gateway.yaml", raw)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            port = int(line.split(":")[-1].split("/")[0])
            assert process.stdout.readline().startswith("admin and metrics on http://127.0.0.1:")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/chat/completions", json.dumps(ASK))
            ends = time.monotonic() + 10
            while not teacher.bodies and time.monotonic() < ends:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            response = connection.getresponse()
            assert response.status == 200
            assert b"good" in response.read()
            connection.close()
            rest, errors = process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert process.returncode == 0
    assert not errors
    assert "sk-secret" not in line + rest


def test_a_gateway_lets_nothing_beside_the_event_loop_hold_it_up(tmp_path: Path) -> None:
    """Threads give the interpreter back soon, and the collector passes over what was loaded."""
    seen: dict[str, float] = {}
    frozen, before = gc.get_freeze_count(), sys.getswitchinterval()

    def told(listen: Address, admin: Address | None) -> None:
        seen["frozen"] = gc.get_freeze_count()
        seen["switch"] = sys.getswitchinterval()
        running[0].stop()

    running: list[Gateway] = []
    raw = {
        "listen": {"port": 0},
        "upstreams": {"big": {"base_url": "http://127.0.0.1:9/v1", "model": "m"}},
        "tasks": {"t": {"teacher": "big"}},
    }
    file = parse_as(GatewayFile, raw, "gateway.yaml")
    try:
        serve_here(file, lambda _: str, told, prepare=running.append)
    finally:
        gc.unfreeze()
    assert seen["switch"] <= before / 10
    assert seen["frozen"] > frozen + 10_000
    assert sys.getswitchinterval() == before  # this process may have other work


def test_serving_imports_no_torch() -> None:
    code = "import stillhouse.serve.server, stillhouse.cli_serve, sys"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
