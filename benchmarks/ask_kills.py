"""SIGKILL at random moments while a faulty server is asked: nothing lost, nothing paid twice.

    python benchmarks/ask_kills.py [--kills 50] [--queries 3000]

A real HTTP server on loopback, in a process of its own, answers after 50 ms and now and then sends
bursts of 429s, 500s, resets after the answer was made, answers that drip, and cut JSON. A process
asks it all queries under a budget; it is killed at a random moment, and the same command is given
again, until it has been killed so many times and then ends by itself. The server counts what it
billed. A second round has half the budget that all answers need, and ends when it is used up.
Shown: that each query is answered exactly once in the store; what the server billed beside the
least that could be billed, one answer a query; that our account is never below the server's bill,
nor either above the budget; and how much of our account no answer stands for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any, Final

from loopback_teacher import ANSWER_TOKENS, PROMPT_TOKENS
from machine_line import save

from stillhouse.core.errors import BudgetError
from stillhouse.core.recipe_teacher import Price, PricesSection, TeacherSection
from stillhouse.core.records import Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.ask import SPARE_WORKERS, ask
from stillhouse.teacher.budget import Budget
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.store import AnswerStore

HERE = Path(__file__).parent
CONCURRENCY: Final = 32
MAX_TOKENS: Final = 8
PRICES: Final = PricesSection(models={"m": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=50.0)})
ANSWER_USD: Final = (PROMPT_TOKENS * 1.0 + ANSWER_TOKENS * 50.0) / 1e6
SAMPLING: Final = Sampling(max_tokens=MAX_TOKENS)


def queries(count: int) -> list[Query]:
    """Distinct short chats."""
    return [
        Query(id=f"q{i}", messages=(Message(role="user", content=f"text {i}"),))
        for i in range(count)
    ]


async def ask_all(port: int, path: Path, count: int, budget_usd: float) -> None:
    """What the killed process does."""
    section = TeacherSection(
        model="openai-compatible:m", base_url=f"http://127.0.0.1:{port}/v1", timeout_s=2.0
    )
    completer = open_teacher(section, PRICES)
    try:
        with AnswerStore(path) as store:
            result = await ask(
                completer,
                queries(count),
                SAMPLING,
                store,
                concurrency=CONCURRENCY,
                budget_usd=budget_usd,
                prices=PRICES,
            )
    except BudgetError:
        print(json.dumps({"failures": 0}))
        return
    finally:
        await completer.aclose()
    print(json.dumps({"failures": len(result.failures)}))


def window_usd(port: int, count: int) -> float:
    """The most that is in flight at a time, at its worst."""
    section = TeacherSection(model="openai-compatible:m", base_url=f"http://127.0.0.1:{port}/v1")
    budget = Budget(None, 0.0, open_teacher(section, PRICES).info, PRICES)
    worst = budget.worst_usd(queries(count)[-1], SAMPLING)
    return worst * (CONCURRENCY + CONCURRENCY // SPARE_WORKERS)


def start(port: int, path: Path, count: int, budget_usd: float) -> subprocess.Popen[str]:
    """The same command, again."""
    numbers = [str(port), str(path), str(count), repr(budget_usd)]
    return subprocess.Popen(
        [sys.executable, __file__, "--child", *numbers], stdout=subprocess.PIPE, text=True
    )


def stats_of(port: int) -> dict[str, Any]:
    """What the server counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def account(path: Path) -> tuple[float, float]:
    """(what the store says was paid, the part of it that no answer stands for), in USD."""
    store = AnswerStore(path, read_only=True)
    window = store.window_usd
    return store.paid_usd + window, sum(store.charges_usd.values()) + window


def kill_again_and_again(
    port: int, path: Path, count: int, kills: int, *, seed: int, share: float | None
) -> dict[str, Any]:
    """Kill, check, start again, until all is answered or the budget is used up.

    `share` is the budget's, of what all answers cost; `None` for room for all kills.
    """
    draw = random.Random(seed)
    window = window_usd(port, count)
    least = count * ANSWER_USD
    budget_usd = least + (kills + 20) * window if share is None else share * least
    below = over = killed = 0
    in_flight: list[int] = []
    ended: dict[str, Any] = {}
    while True:
        process = start(port, path, count, budget_usd)
        if killed < kills:
            before = stats_of(port)["requests"]
            deadline = time.monotonic() + 60
            # From its first request on, anywhere in the next part of the work.
            while process.poll() is None and time.monotonic() < deadline:
                if stats_of(port)["requests"] > before:
                    break
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.35))
            flying = stats_of(port)["in flight"]
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
                in_flight.append(flying)
        out, _ = process.communicate(timeout=600)
        billed_usd = stats_of(port)["answers billed"] * ANSWER_USD
        paid, unsure = account(path)
        below += paid < billed_usd - 1e-9
        over += max(paid, billed_usd) > budget_usd + 1e-9
        if process.returncode == 0:
            ended = json.loads(out.splitlines()[-1])
            break
    with AnswerStore(path, read_only=True) as store:
        answered = len(store)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    kept = Counter(row["chat"] for row in lines if "chat" in row)
    time.sleep(1.0)  # what was in flight at the last kill is billed by now
    stats = stats_of(port)
    billed = stats["answers billed"] * ANSWER_USD
    over += billed > budget_usd + 1e-9
    faulty = sum(stats["faults"].get(name, 0) for name in ("reset", "drip", "truncated"))
    lost_to_kills = stats["answers billed"] - answered - faulty
    return {
        "kills": killed,
        "kills with requests in flight": sum(n > 0 for n in in_flight),
        "queries": count,
        "budget for all": share is None,
        "answered in the store": answered,
        "kept more than once": sum(n > 1 for n in kept.values()),
        "failures of the last start": ended["failures"],
        "server": stats,
        "usd": {
            "least, one answer a query": round(least, 6),
            "billed by the server": round(billed, 6),
            "counted by us": round(paid, 6),
            "of it without an answer": round(unsure, 6),
            "budget": round(budget_usd, 6),
            "one window in flight, at its worst": round(window, 6),
        },
        "answers billed but lost": {
            "to the server's faults": faulty,
            "to kills": lost_to_kills,
            "a kill": round(lost_to_kills / max(1, killed), 2),
            "most in flight": stats["most in flight"],
        },
        "starts where our account was below the bill": below,
        "starts where either was above the budget": over,
    }


def reached(found: dict[str, Any]) -> bool:
    """Whether every claim of the module holds."""
    usd, lost = found["usd"], found["answers billed but lost"]
    faults = lost["to the server's faults"] + found["server"]["faults"].get("429", 0)
    window = usd["one window in flight, at its worst"]
    return (
        (found["answered in the store"] == found["queries"]) == found["budget for all"]
        and found["kept more than once"] == 0
        and found["failures of the last start"] == 0
        and found["starts where our account was below the bill"] == 0
        and found["starts where either was above the budget"] == 0
        and lost["to kills"] <= found["kills"] * CONCURRENCY
        and usd["of it without an answer"]
        <= (found["kills"] * window) + faults * window / CONCURRENCY
    )


def run(count: int, kills: int, seed: int, share: float | None) -> dict[str, Any]:
    """All kills against one server and one store."""
    serving = [sys.executable, str(HERE / "loopback_teacher.py"), "--latency-ms", "50", "--faults"]
    with (
        subprocess.Popen(
            [*serving, "--seed", str(seed)], stdout=subprocess.PIPE, text=True
        ) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        try:
            assert server.stdout is not None
            found = kill_again_and_again(
                int(server.stdout.readline()),
                Path(folder) / "answers.jsonl",
                count,
                kills,
                seed=seed,
                share=share,
            )
        finally:
            server.kill()
    return found


def main() -> None:
    """Kill so many times, then save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--queries", type=int, default=15_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--print-only", action="store_true", help="Save nothing.")
    parser.add_argument("--child", nargs=4, metavar=("PORT", "STORE", "QUERIES", "USD"))
    arguments = parser.parse_args()
    if arguments.child:
        port, path, count, budget_usd = arguments.child
        asyncio.run(ask_all(int(port), Path(path), int(count), float(budget_usd)))
        return
    kills, count = arguments.kills, arguments.queries
    found = {
        "budget for all": run(count, kills, arguments.seed, None),
        "half the budget": run(count // 2, kills // 5, arguments.seed + 1, 0.5),
    }
    for part in found.values():
        part["reached"] = reached(part)
    if arguments.print_only:
        print(json.dumps(found))
    else:
        command = f"python benchmarks/ask_kills.py --kills {kills} --queries {count}"
        save("ask_kills", command, found)
    if not all(part["reached"] for part in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
