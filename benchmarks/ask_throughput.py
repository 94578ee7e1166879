"""How fast a teacher behind HTTP is asked, and in how much memory.

    python benchmarks/ask_throughput.py [--peer-python .cache/curator/bin/python] [--repeats 3]

Against a real HTTP server on loopback, in a process of its own, that answers after 200 ms:
- 10,000 queries at concurrency 64, where the ideal is 320 queries/s
- 10,000 queries at concurrency 512, in turns with bespokelabs-curator 0.1.31 and with the plain
  openai client over aiohttp, which keeps nothing
- 100,000 queries at concurrency 512 through the pipeline's ask stage, with the resident memory of
  the process sampled

Each run is a process of its own against a fresh server. `queries per second` is from the first
request to the last answer as the server saw it; `end to end` is the whole call, with every answer
on the disk. The peer needs its own environment:

    python -m venv .cache/curator && .cache/curator/bin/pip install bespokelabs-curator==0.1.31
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import psutil
from machine_line import save

from stillhouse.core.jsonl import write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.ask import ask
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.stage import run_ask
from stillhouse.teacher.store import AnswerStore

HERE = Path(__file__).parent
LATENCY_MS = 200.0
IDEAL = 320.0  # at concurrency 64
PEER = "bespokelabs-curator 0.1.31"
WANTED_SHARE, WANTED_RATIO, WANTED_RSS_MB = 0.95, 1.4, 600.0


def queries(count: int) -> Iterator[Query]:
    """Short reviews, as a classifier is asked about."""
    for i in range(count):
        text = f"Is this review good or bad? Text number {i}"
        yield Query(id=f"q{i}", messages=(Message(role="user", content=text),))


# --- the contestants, each in a process of its own --------------------------------------------


async def stillhouse(port: int, count: int, concurrency: int) -> float:
    """Seconds of one `ask`, with its store on disk."""
    url = f"http://127.0.0.1:{port}/v1"
    section = TeacherSection(model="openai-compatible:m", base_url=url)
    completer = open_teacher(section, PricesSection())
    asked = list(queries(count))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        started = time.perf_counter()
        with AnswerStore(Path(folder) / "answers.jsonl") as store:
            result = await ask(
                completer, asked, Sampling(max_tokens=16), store, concurrency=concurrency
            )
        seconds = time.perf_counter() - started
        assert len(result.completions_by_query) == count
    await completer.aclose()
    return seconds


async def openai_client(port: int, count: int, concurrency: int) -> float:
    """Seconds of the official client over aiohttp, which keeps no answer."""
    client = openai.AsyncOpenAI(
        api_key="none",
        base_url=f"http://127.0.0.1:{port}/v1",
        max_retries=0,
        http_client=openai.DefaultAioHttpClient(),
    )
    waiting = queries(count)

    async def worker() -> None:
        for query in waiting:
            await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": query.last_user_text}],
                max_tokens=16,
                temperature=0.0,
            )

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    await client.close()
    return seconds


def stage(port: int, count: int, concurrency: int) -> float:
    """Seconds of the pipeline's ask stage."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        recipe = Recipe.model_validate(
            {
                "name": "throughput",
                "task": {"kind": "generation"},
                "traffic": {"path": "t.jsonl"},
                "teacher": {
                    "model": "openai-compatible:m",
                    "base_url": f"http://127.0.0.1:{port}/v1",
                    "concurrency": concurrency,
                },
                "student": {"head": "text", "from": "hf:none"},
            }
        )
        for one in ("traffic", "work"):
            (folder / one).mkdir()
        write_records(folder / "traffic" / "queries.jsonl", queries(count))
        started = time.perf_counter()
        run_ask(recipe, folder / "traffic", None, folder / "store", folder / "work", Silent())
        return time.perf_counter() - started


def child(name: str, port: int, count: int, concurrency: int) -> None:
    """Run one contestant and print what it took."""
    before = time.process_time()
    if name == "stage":
        seconds = stage(port, count, concurrency)
    else:
        contestant = stillhouse if name == "stillhouse" else openai_client
        seconds = asyncio.run(contestant(port, count, concurrency))
    print(json.dumps({"seconds": seconds, "cpu_s": time.process_time() - before}))


# --- the parent -------------------------------------------------------------------------------


def run_one(command: Sequence[str], count: int, concurrency: int) -> dict[str, Any]:
    """One contestant against a fresh server; `command` gets port, queries, concurrency."""
    serving = [sys.executable, str(HERE / "loopback_teacher.py"), "--latency-ms", str(LATENCY_MS)]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            with tempfile.TemporaryDirectory() as work:
                found = _timed([*command, str(port), str(count), str(concurrency)], work)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
                stats = json.loads(answer.read())
        finally:
            server.kill()
    assert stats["chats billed"] == count, stats
    return {
        "queries per second": round(count / stats["seconds"], 1),
        "end to end": round(count / found["seconds"], 1),
        "asked": stats["requests"],
        "most in flight": stats["most in flight"],
        **{k: v for k, v in found.items() if k != "seconds"},
    }


def _timed(command: Sequence[str], work: str) -> dict[str, Any]:
    """Run a child, sample its memory, read the line it prints last."""
    child_env = os.environ | {
        "CURATOR_CACHE_DIR": work,
        "CURATOR_DISABLE_CACHE": "1",
        "TELEMETRY_ENABLED": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
    }
    if "peer_curator" in command[1]:
        child_env.pop("PYTHONPATH", None)
        found = Path(command[0]).parents[1].glob("lib/*/site-packages/litellm/*/tokenizers")
        child_env["TIKTOKEN_CACHE_DIR"] = str(next(found))
    rss_mb: list[float] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=child_env
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                rss_mb.append(watched.memory_info().rss / 1e6)
            except psutil.Error:
                break
            time.sleep(0.25)
        assert process.stdout is not None
        lines = process.stdout.read().strip().splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    result["peak_rss_mb"] = round(max(rss_mb), 1)
    result["rss_mb"] = [round(rss_mb[i * (len(rss_mb) - 1) // 20], 1) for i in range(21)]
    return result


def middle(runs: Sequence[dict[str, Any]], key: str) -> float:
    """The median over repeats."""
    return float(statistics.median(run[key] for run in runs))


def main() -> None:
    """Run all, interleaved, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", type=Path, default=Path(".cache/curator/bin/python"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--child", nargs=4, metavar=("NAME", "PORT", "QUERIES", "CONCURRENCY"))
    arguments = parser.parse_args()
    if arguments.child:
        name, *numbers = arguments.child
        child(name, *map(int, numbers))
        return
    count = arguments.queries
    me = [sys.executable, __file__, "--child"]
    contestants = {
        "stillhouse": [*me, "stillhouse"],
        "openai client over aiohttp": [*me, "openai"],
        PEER: [str(arguments.peer_python), str(HERE / "peer_curator.py")],
    }
    load = os.getloadavg()[0]
    at_64: list[dict[str, Any]] = []
    at_512: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(arguments.repeats):
        at_64.append(run_one(contestants["stillhouse"], count, 64))
        for name, command in contestants.items():
            at_512[name].append(run_one(command, count, 512))
    many = run_one([*me, "stage"], arguments.many, 512)
    for run in [*at_64, *(run for runs in at_512.values() for run in runs)]:
        del run["rss_mb"]
    share = middle(at_64, "end to end") / IDEAL
    ratio = middle(at_512["stillhouse"], "queries per second") / middle(
        at_512[PEER], "queries per second"
    )
    save(
        "ask_throughput",
        f"python benchmarks/ask_throughput.py --repeats {arguments.repeats}",
        {
            "load average before": round(load, 2),
            "queries": count,
            "concurrency 64": {
                "ideal": IDEAL,
                "share of ideal, end to end (median)": round(share, 4),
                "reached": share >= WANTED_SHARE,
                "runs": at_64,
            },
            "concurrency 512": {
                "queries per second (medians)": {
                    name: middle(runs, "queries per second") for name, runs in at_512.items()
                },
                "end to end (medians)": {
                    name: middle(runs, "end to end") for name, runs in at_512.items()
                },
                "stillhouse over curator": round(ratio, 2),
                "reached": ratio >= WANTED_RATIO,
                "runs": at_512,
            },
            "100,000 through the ask stage": {
                **many,
                "reached": many["peak_rss_mb"] <= WANTED_RSS_MB,
            },
        },
    )


if __name__ == "__main__":
    main()
