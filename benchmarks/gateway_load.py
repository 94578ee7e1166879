"""What the gateway adds to a request, how many it passes on, and whether its memory stays flat.

    python benchmarks/gateway_load.py [--rounds 5] [--seconds 10] [--requests 100000]

The upstream is an echo server that answers after 50 ms (`echo_server`), the load comes from
`load_generator`; each is a process of its own, and so is each contestant. The gateway has its
traffic log (SQLite, redacted) and an experiment (a quarter of the users to the student) on.

- added latency: 200 requests a second, in an open loop, straight at the echo server and through the
  gateway, in turns. Added is the quantile through the gateway less the quantile without it.
- throughput: 64 connections in a closed loop, in turns: straight, through a pass-through over
  aiohttp that does nothing else (`bare_proxy`), through the gateway, and through LiteLLM's proxy in
  an environment of its own, without a database or log. One process each, unless `--workers`.
- memory: the resident set of a fresh gateway while it passes on 100,000 requests.

Requests are all different, so that nothing is answered out of a memory of texts. Both gateways ask
for a client's key.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from contenders import peer_python
from machine_line import save

HERE = Path(__file__).parent
LITELLM = "litellm[proxy]==1.105.7"
RATE, CONNECTIONS, LATENCY_MS = 200, 64, 50.0
WANTED_P50_MS, WANTED_P99_MS, WANTED_RATIO, WANTED_GROWTH = 3.0, 15.0, 8.0, 0.05
SERVE = "import sys, pathlib, stillhouse.cli_serve as c; c.serve(pathlib.Path(sys.argv[1]))"
START_S = 180
KEY = f"sk-{secrets.token_hex(32)}"


@contextlib.contextmanager
def process(
    command: Sequence[str], ready: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and the line that it says once it is ready."""
    env = {**os.environ, **environment}
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, text=True, env=env
        ) as running,
    ):
        try:
            yield running, _line(running, told, ready)
        finally:
            running.terminate()
            try:
                running.wait(60)
            except subprocess.TimeoutExpired:
                running.kill()


def _line(running: subprocess.Popen[str], told: Any, ready: str) -> str:
    ends = time.monotonic() + START_S
    text = ""
    while time.monotonic() < ends and running.poll() is None:
        told.seek(0)
        text = str(told.read())
        found = [line for line in text.splitlines() if ready in line]
        if found:
            return found[0]
        time.sleep(0.1)
    raise SystemExit(f"{running.args!r} is not ready:\n{text[-2000:]}")


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """The upstream's address."""
    command = [sys.executable, "-u", str(HERE / "echo_server.py"), "--latency-ms", str(LATENCY_MS)]
    with process(command, "") as (_, line):
        yield f"http://127.0.0.1:{line}"


@contextlib.contextmanager
def gateway(
    folder: Path, upstream: str, port: int, workers: int
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The gateway with log and experiment."""
    file = folder / "gateway.yaml"
    price = {"input": 2, "output": 8}
    raw = {
        "listen": {"port": port, "workers": workers},
        "clients": [{"tenant": "shop", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}],
        "upstreams": {
            "big": {"base_url": f"{upstream}/v1", "model": "big", "price": price},
            "small": {"base_url": f"{upstream}/v1", "model": "small"},
        },
        "tasks": {
            "reviews": {
                "teacher": "big",
                "student": "small",
                "experiment": {"stages": [{"kind": "canary", "share": 0.25}, {"kind": "full"}]},
            }
        },
        "log": {"url": f"sqlite:///{folder / 'gateway.db'}"},
    }
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    command = [sys.executable, "-u", "-c", SERVE, str(file)]
    secret = {"STILLHOUSE_PSEUDONYM_SECRET": "0123456789abcdef"}
    with process(command, "serving", **secret) as (running, _):
        yield running, f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def bare(upstream: str, port: int) -> Iterator[str]:
    """The pass-through over aiohttp."""
    command = [sys.executable, "-u", str(HERE / "bare_proxy.py"), upstream, str(port)]
    with process(command, "serving"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def litellm(folder: Path, upstream: str, port: int, workers: int) -> Iterator[str]:
    """LiteLLM's proxy, as its documentation starts it."""
    file = folder / "litellm.yaml"
    params = {"model": "openai/echo", "api_base": f"{upstream}/v1", "api_key": "none"}
    raw = {
        "model_list": [{"model_name": "reviews", "litellm_params": params}],
        "litellm_settings": {"telemetry": False},
        "general_settings": {"master_key": KEY},
    }
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    python = peer_python("litellm", LITELLM)
    command = [str(python.parent / "litellm"), "--config", str(file), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", str(workers), "--telemetry", "False"]
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PYTHONPATH": ""}
    with process(command, "Set models", **quiet):
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"


def load(url: str, *options: object) -> dict[str, Any]:
    """One run of the load generator, in a process of its own."""
    command = [sys.executable, str(HERE / "load_generator.py"), f"{url}/v1/chat/completions"]
    done = subprocess.run(
        [*command, "--key", KEY, *map(str, options)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failed"] or set(found["statuses"]) != {"200"}:
        raise SystemExit(f"{url}: not every request was answered: {found}")
    return found


def added_latency(direct: str, through: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Quantiles with and without the gateway at a fixed rate, and their differences."""
    runs: list[dict[str, Any]] = []
    for _ in range(rounds):
        asked = ("--rate", RATE, "--seconds", seconds, "--connections", CONNECTIONS, "--ramp", 50)
        straight, gate = load(direct, *asked), load(through, *asked)
        runs.append(
            {
                name: {
                    "direct_ms": straight[f"{name}_ms"],
                    "gateway_ms": gate[f"{name}_ms"],
                    "added_ms": round(gate[f"{name}_ms"] - straight[f"{name}_ms"], 2),
                }
                for name in ("p50", "p99")
            }
        )
    p50, p99 = (statistics.median(run[name]["added_ms"] for run in runs) for name in ("p50", "p99"))
    return {
        "requests a second": RATE,
        "added p50, median of rounds, ms": p50,
        "added p99, median of rounds, ms": p99,
        "reached": p50 <= WANTED_P50_MS and p99 <= WANTED_P99_MS,
        "rounds": runs,
    }


def throughput(urls: Mapping[str, str], rounds: int, seconds: float) -> dict[str, Any]:
    """Requests a second of each, in turns; one warm-up that is not counted."""
    runs: dict[str, list[float]] = {name: [] for name in urls}
    names = list(urls)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            asked = ("--connections", CONNECTIONS, "--seconds", seconds, "--ramp", CONNECTIONS)
            found = load(urls[name], *asked)
            if number:
                runs[name].append(found["requests_per_second"])
    ratios = {
        name: [round(a / b, 2) for a, b in zip(runs["stillhouse"], runs[name], strict=True)]
        for name in urls
        if name != "stillhouse"
    }
    over_litellm = statistics.median(ratios["litellm"]) if "litellm" in ratios else None
    return {
        "connections": CONNECTIONS,
        "ideal": CONNECTIONS / (LATENCY_MS / 1e3),
        "requests a second (medians)": {
            name: statistics.median(found) for name, found in runs.items()
        },
        "stillhouse over each, by round": ratios,
        "stillhouse over litellm (median)": over_litellm,
        "reached": None if over_litellm is None else over_litellm >= WANTED_RATIO,
        "runs": runs,
    }


def memory(running: subprocess.Popen[str], url: str, requests: int) -> dict[str, Any]:
    """Resident memory at each twentieth of the requests: flat from the first fifth on."""
    watched = psutil.Process(running.pid)
    course: list[float] = []
    steps = 20
    for _ in range(steps):
        load(url, "--connections", CONNECTIONS, "--requests", requests // steps)
        family = [watched, *watched.children(recursive=True)]
        course.append(round(sum(one.memory_info().rss for one in family) / 2**20, 1))
    growth = course[-1] / course[steps // 5 - 1] - 1
    return {
        "requests": requests,
        "resident MiB at each twentieth": course,
        "growth from a fifth to the end": round(growth, 4),
        "reached": growth <= WANTED_GROWTH,
    }


def main() -> None:
    """Run all, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=("latency", "throughput", "memory"))
    parser.add_argument("--no-peer", action="store_true", help="without LiteLLM")
    parser.add_argument("--no-save", action="store_true", help="print alone")
    asked = parser.parse_args()
    result: dict[str, Any] = {
        "load average before": round(os.getloadavg()[0], 2),
        "workers": asked.workers,
        "peer": LITELLM,
    }

    @contextlib.contextmanager
    def fresh() -> Iterator[tuple[Path, str, subprocess.Popen[str], str]]:
        with (
            tempfile.TemporaryDirectory() as name,
            echo() as upstream,
            gateway(Path(name), upstream, 8090, asked.workers) as (running, through),
        ):
            yield Path(name), upstream, running, through

    if asked.only != "memory":
        with fresh() as (folder, upstream, _, through):
            if asked.only != "throughput":
                found = added_latency(upstream, through, asked.rounds, asked.seconds)
                result["added latency"] = found
            if asked.only != "latency":
                with contextlib.ExitStack() as turns:
                    urls = {"direct": upstream, "stillhouse": through}
                    urls["bare aiohttp"] = turns.enter_context(bare(upstream, 8092))
                    if not asked.no_peer:
                        peer = litellm(folder, upstream, 8093, asked.workers)
                        urls["litellm"] = turns.enter_context(peer)
                    result["throughput"] = throughput(urls, asked.rounds, asked.seconds)
    if asked.only in (None, "memory"):
        with fresh() as (_, _, running, through):
            result["memory"] = memory(running, through, asked.requests)
    if asked.no_save:
        print(json.dumps(result, indent=2))
    else:
        command = f"python benchmarks/gateway_load.py --rounds {asked.rounds}"
        command += f" --seconds {asked.seconds:g} --requests {asked.requests}"
        save("gateway_load", command, result)


if __name__ == "__main__":
    main()
