"""Kill asking by batch at random moments, with a server that fails in every way it can.

The server on loopback speaks the batch protocols of OpenAI and Anthropic. It answers 429 and 500,
drops connections, breaks off and drips downloads, sends JSON that ends too early, takes batches and
loses the answer, lets batches expire half done, and gives results in any order. Claim: every query
is answered once in the store, no batch answer is billed twice, and a budget is not crossed.

    python benchmarks/batch_kills.py            two minutes or three
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from aiohttp import web  # noqa: E402
from machine_line import save  # noqa: E402

import killed_batches  # noqa: E402
from batch_servers import RESET, BatchServer, Faults, serve_batches  # noqa: E402
from stillhouse.teacher.build import open_teacher  # noqa: E402
from stillhouse.teacher.store import AnswerStore, answer_key  # noqa: E402
from teacher_servers import KEY, error  # noqa: E402

QUERIES = 600
A_BATCH = 60
LIST_USD = (100 * 1.0 + 20 * 10.0) / 1e6  # of a query, at the prices of killed_batches
BATCH_USD = LIST_USD / 2
STARTS = 14  # a life; the last runs to its end
# A budget that ends two thirds of the way through.
TIGHT_USD = QUERIES * BATCH_USD * 2 / 3


def stumbling(rng: random.Random) -> Faults:
    """Faults at random, the same for one seed and order of requests."""
    faults = Faults(hidden_s=0.05, drip_s=0.03)

    def request(method: str, path: str, number: int) -> web.StreamResponse | None:
        draw = rng.random()
        if draw < 0.06:  # a burst: the next ones are likely to see it too
            return error(429, headers={"retry-after-ms": "20"})
        if draw < 0.09:
            return error(500)
        if draw < 0.12:
            return RESET
        if draw < 0.14:
            return web.Response(text='{"id": "batch_00', content_type="application/json")
        if draw < 0.20:
            faults.cut_downloads = 1
        if draw > 0.97:
            faults.lose_creates = 1
        return None

    faults.request = request
    faults.batch = lambda number: "expired" if rng.random() < 0.2 else "completed"
    return faults


def one_life(provider: str, rng: random.Random, budget: float | None) -> dict[str, Any]:
    """Start, kill, start again, to the end; what the server billed and the store holds."""
    batch = {"poll_s": 0.05, "pilot": 1, "max_requests": A_BATCH, "in_flight": 4}
    options = {"batch": batch, "budget_usd": budget}
    points = [f"{rng.uniform(0.1, 1.6):.3f}" for _ in range(STARTS - 1)]
    with (
        tempfile.TemporaryDirectory() as name,
        serve_batches(stumbling(rng), runs_s=0.25, delay_s=0.01) as server,
    ):
        folder = Path(name)
        command = [sys.executable, killed_batches.__file__, server.url, name, provider]
        done = subprocess.run(
            [*command, str(QUERIES), json.dumps(options), *points, "none"],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        ended = [int(line.rsplit(": ", 1)[1]) for line in done.stdout.splitlines()]
        errors = Counter(line.partition(":")[0] for line in done.stderr.splitlines())
        store = stored(server, folder, provider)
        billed = server.billed.total() * BATCH_USD + server.live.total() * LIST_USD
        return {
            "killed": sum(status == -signal.SIGKILL for status in ended),
            "last start": ended[-1],
            "errors of starts": dict(errors),
            "batches made": len(server.batches),
            "stored once": store["once"],
            "stored wrongly": store["wrong"],
            "lines in the store": store["lines"],
            "batch answers billed": server.billed.total(),
            "batch answers billed twice": sum(n - 1 for n in server.billed.values()),
            "live answers billed": server.live.total(),
            "answers billed and not stored": server.billed.total()
            + server.live.total()
            - store["once"],
            "billed usd": round(billed, 6),
            "paid by the store usd": round(store["usd"], 6),
            "budget usd": budget,
        }


def stored(server: BatchServer, folder: Path, provider: str) -> dict[str, Any]:
    """What the store holds of each query."""
    info = open_teacher(killed_batches.section_of(server.url, provider), killed_batches.PRICES).info
    once = wrong = 0
    with AnswerStore(folder / "answers.jsonl") as store:
        for query in killed_batches.queries(QUERIES):
            found = store.get(answer_key(info, query, killed_batches.SAMPLING))
            right = [c.text for c in found] == [f"answer to {query.last_user_text}"]
            once += right
            wrong += bool(found) and not right
        usd = store.paid_usd
    stored = (folder / "answers.jsonl").read_bytes().splitlines()
    lines = sum(b'"completions":[' in line for line in stored)  # the others are the ledger
    return {"once": once, "wrong": wrong, "lines": lines, "usd": usd}


def main() -> None:
    """Live until there were enough kills, by turns without a budget and with a short one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="for each provider")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = os.environ["ANTHROPIC_API_KEY"] = KEY
    result: dict[str, Any] = {}
    good = True
    for provider in ("openai", "anthropic"):
        rng = random.Random(f"{arguments.seed} {provider}")
        lives: list[dict[str, Any]] = []
        while sum(life["killed"] for life in lives) < arguments.kills or len(lives) % 2:
            lives.append(one_life(provider, rng, TIGHT_USD if len(lives) % 2 else None))
            print(provider, lives[-1], file=sys.stderr, flush=True)
        for life in lives:
            whole = life["budget usd"] is None
            good = good and life["batch answers billed twice"] == 0 and life["stored wrongly"] == 0
            good = good and (not whole or (life["stored once"], life["last start"]) == (QUERIES, 0))
            good = good and (whole or life["billed usd"] <= life["budget usd"])
            good = good and life["lines in the store"] == life["stored once"]
        result[provider] = {
            "kills": sum(life["killed"] for life in lives),
            "batch answers billed": sum(life["batch answers billed"] for life in lives),
            "batch answers billed twice": sum(life["batch answers billed twice"] for life in lives),
            "live answers billed": sum(life["live answers billed"] for life in lives),
            "answers billed and not stored": sum(
                life["answers billed and not stored"] for life in lives
            ),
            "lives": lives,
        }
    save(
        "batch_kills",
        "python benchmarks/batch_kills.py",
        {"queries a life": QUERIES, "requests a batch": A_BATCH, "all claims hold": good, **result},
    )
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
