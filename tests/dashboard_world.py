"""A loop with a history for the dashboard: a log, windows, alerts, runs, students."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
import yaml

from gateway_stores import call_of, served_of
from stillhouse.core.loop_file import load_loop
from stillhouse.dashboard import OpenDashboard, opened
from stillhouse.retrain.online_personal import AdapterNote
from stillhouse.retrain.online_state import OnlineState, Store, Version
from stillhouse.retrain.registry import Registry
from stillhouse.serve.courses import CoursePoint, StoredCourses
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.numbers import StageNumbers
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Decision, ExperimentState, Outcome
from stillhouse.serve.states import StoredStates
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

KEY = "admin-0123456789"
TASK = "reviews"
HOSTILE = (
    '<script>window.hacked=1</script><img src=x onerror="window.hacked=2">'
    "</pre></article><style>body{display:none}</style>\"'><svg onload=window.hacked=3>"
    '{{ 7*7 }} <a href="javascript:window.hacked=4">here</a>'
)
SHOWN = "fresh"


class World(NamedTuple):
    """Where it lies."""

    folder: Path
    url: str
    now: float

    @property
    def loop(self) -> Path:
        return self.folder / "loop.yaml"


def answer(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def numbers(requests: int) -> StageNumbers:
    width = 0.4 / requests**0.5
    return StageNumbers(
        design="pairs",
        requests=requests,
        students=requests,
        teachers=requests,
        open_units=3,
        values=requests,
        student=0.91,
        teacher=0.9,
        bare=0.88,
        slack=0.055,
        equal=0.045,
        low=0.055 - width,
        high=0.055 + width,
        better=requests > 300,
        worse=False,
        p_better=0.01,
        p_worse=0.9,
        alpha=0.05,
        alpha_worse=0.05,
        needed="better",
        needed_requests=100,
    )


def fill_log(url: str, now: float) -> None:
    """60 requests: answered by the teacher with shadow answers beside, some of which differ; the
    newest ones by the student; one answer is hostile."""
    engine = open_database(url)
    log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None)
    for n in range(60):
        at = now - 3600 * 2 + n
        own = {"at": at, "cost_usd": 0.01, "teacher_cost_usd": 0.01, "user": f"user{n % 5}"}
        if n >= 40:
            own |= {
                "variant": "student",
                "arm": "treatment",
                "stage": 1,
                "cost_usd": 0.0001,
                "confidence": 0.97,
                "upstream": "small",
            }
        text = HOSTILE if n == 59 else SHOWN
        call = call_of(n, user=f"user{n % 5}", response=answer(text))
        log.offer(call, served_of(n, **own))
        if n < 20:
            said = "rotten" if n % 4 == 0 else SHOWN
            shadow = {
                "variant": "student",
                "arm": "shadow",
                "shadow_of": f"r{n}",
                "confidence": 0.4 if n % 4 == 0 else 0.9,
                "cost_usd": 0.0001,
                "upstream": "small",
            }
            beside = call_of(n, id=f"s{n}", response=answer(said))
            log.offer(beside, served_of(n, **{**own, **shadow, "id": f"s{n}"}))
    log.flush(10)
    log.outcome(Outcome(request="s0", kind="corrected", score=0, at=now, corrected="fresh"))
    log.close()
    states, courses = StoredStates(engine), StoredCourses(engine)
    begun, since = now - 3 * 3600, now - 2 * 3600
    kinds = (("shadow", 0.0, begun), ("canary", 0.05, since))
    for stage, (kind, share, at) in enumerate(kinds):
        state = ExperimentState(
            task=TASK,
            version=stage + 1,
            stage=stage,
            kind=kind,
            share=share,
            since=at,
            student="small:s1",
        )
        decision = Decision(
            at=at,
            task=TASK,
            action="advance" if stage else "hold",
            from_stage=0,
            to_stage=stage,
            reason="good enough" if stage else "the experiment begins",
        )
        assert states.swap(stage, state, decision)
        for k in range(1, 30):
            point = CoursePoint(
                at=at + 60 * k,
                stage=stage,
                since=at,
                words="student 91.0%, teacher 90.0%",
                numbers=numbers(20 * k),
            )
            courses.add(TASK, point)
    engine.dispose()


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def window(number: int, now: float) -> dict[str, Any]:
    agreement = 0.95 - 0.02 * number
    share = {"estimate": agreement, "low": agreement - 0.03, "high": agreement + 0.03, "n": 300}
    test = {
        "name": "mmd",
        "family": "input",
        "measure": "MMD^2",
        "statistic": 1.0,
        "p": 0.001,
        "p_corrected": 0.004,
        "effect": 0.02 * number,
        "low": 0.01,
        "high": 0.2,
        "least": 0.05,
        "n_reference": 500,
        "n_window": 500,
        "signal": number > 2,
        "persists": number > 3,
    }
    cause = {
        "cause": "input_shift",
        "strength": 2.0,
        "tests": ["mmd"],
        "summary": "inputs are of another topic",
        "action": "retrain on the newest window",
        "examples": [{"id": "r3", "text": HOSTILE, "score": 0.9}],
    }
    return {
        "task": TASK,
        "number": number,
        "since": now - 3600 * (6 - number),
        "until": now - 3600 * (5 - number),
        "judged_at": now,
        "requests": 500,
        "pairs": 60,
        "outcomes": 3,
        "student": "small",
        "figures": [
            {"name": "agreement", "population": "random", "interval": share, "n": 300},
            {
                "name": "latency_p95_ms",
                "population": "student",
                "unit": "ms",
                "n": 500,
                "interval": {"estimate": 40, "low": 35, "high": 60, "n": 500},
            },
        ],
        "findings": [
            {
                "key": "fidelity:agreement",
                "kind": "fidelity",
                "cause": "agreement",
                "flagged": number > 3,
                "summary": "agreement fell",
                "effect": 0.07,
                "bound": 0.05,
                "p_adjusted": 0.004,
                "action": "see drift",
            }
        ],
        "drift": {
            "alarm": number > 3,
            "cause": "input_shift" if number > 3 else "none",
            "summary": "inputs are of another topic" if number > 3 else "nothing lasts",
            "action": "retrain" if number > 3 else "",
            "evidence": {},
            "tests": [test],
            "causes": [cause] if number > 3 else [],
        },
    }


def alert(now: float, severity: str = "critical") -> dict[str, Any]:
    return {
        "id": "a-0123456789ab",
        "at": now - 60,
        "task": TASK,
        "kind": "input_shift",
        "cause": "input_shift",
        "severity": severity,
        "summary": f"inputs moved {HOSTILE}",
        "evidence": {"effect": 0.08, "p": 0.004},
        "action": "stillhouse retrain loop.yaml",
        "examples": [{"id": "r3", "text": HOSTILE}],
        "window": [now - 3600 * 2, now - 3600],
        "key": "drift:input_shift",
    }


def fill_run(folder: Path) -> None:
    def interval(x: float) -> dict[str, Any]:
        return {"estimate": x, "low": x - 0.02, "high": x + 0.02, "n": 1200}

    report = {
        "format": 1,
        "created": "2026-11-30T06:59:16+00:00",
        "metric": "accuracy",
        "n": 1200,
        "teacher": {"score": interval(0.81)},
        "student": {"score": interval(0.79)},
        "retention": interval(0.975),
        "fidelity": {"agreement": interval(0.82)},
        "gate": {"verdict": "pass", "reasons": ["student minus teacher is -2.0 points"]},
    }
    history = [
        {
            "step": 6 * k,
            "epoch": 0.1 * k,
            "loss": 0.7 / k,
            "held_out_divergence": 0.3 / k,
            "held_out_cross_entropy": None,
            "held_out_agreement": 0.7 + 0.01 * k,
        }
        for k in range(1, 12)
    ]
    convergence = {
        "verdict": {
            "state": "not_finished",
            "sentence": "It still learns.",
            "actions": ["train on"],
        },
        "findings": [{"name": "too_little_data", "found": True, "seen": "15 points apart"}],
        "looks": [{"step": 66, "agreement": 0.7, "accuracy": 0.72}],
    }
    (folder / "train").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (folder / "train" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    (folder / "train" / "convergence.json").write_text(json.dumps(convergence), encoding="utf-8")
    fallback = {
        "format": 1,
        "metric": "accuracy",
        "n": 1200,
        "unit": "usd",
        "teacher": interval(0.81),
        "points": [],
    }
    (folder / "calibrate").mkdir()
    (folder / "calibrate" / "frontier.json").write_text(json.dumps(fallback), encoding="utf-8")
    study = {
        "name": "reviews",
        "task": TASK,
        "kind": "classification",
        "created": "2026",
        "metric": "accuracy",
        "reference": "golden",
        "n": 1200,
        "confidence": 0.95,
        "margin": 0.05,
        "teacher": interval(0.81),
        "teacher_name": "big",
        "versions": {},
        "teacher_parameters": 134_000_000,
        "teacher_qps": 15.9,
        "teacher_usd_per_1k": 1.0,
        "answers_usd": 2.0,
        "machine_usd_per_hour": 0.2,
        "steps": [],
        "chosen": "13M",
        "firm": True,
        "verdict": ["13M is the cheapest that passes."],
        "students": [
            {
                "name": f"{m}M",
                "folder": f"{m}",
                "parameters": m * 1_000_000,
                "share": 0.1,
                "size_bytes": 5,
                "score": interval(0.75 + m / 1000),
                "retention": None,
                "agreement": interval(0.8),
                "verdict": "pass",
                "difference": interval(-0.02),
                "corrected_low": -0.04,
                "passes_corrected": True,
                "qps": 100.0,
                "speedup": 10.0,
                "latency_p50_ms": 5.0,
                "latency_p95_ms": 8.0,
                "usd_per_1k": m / 1000,
                "train_seconds": 10.0,
                "train_usd": 0.1,
                "break_even_queries": 1,
                "efficient": True,
            }
            for m in (50, 13, 5)
        ],
    }
    (folder / "frontier").mkdir()
    (folder / "frontier" / "frontier.json").write_text(json.dumps(study), encoding="utf-8")


def fill_online(root: Path, now: float) -> None:
    """Three versions, of which the second is live again, and two adapters."""
    figures: dict[str, Any] = {
        "answer": "accept",
        "live": 0.9,
        "new": 0.93,
        "difference": {"estimate": 0.03, "low": 0.01, "high": 0.05, "n": 200},
    }

    def version(number: int, **more: Any) -> Version:
        path = str(root / "versions" / str(number))
        at = now - 900 + number
        return Version(number=number, head="a", student="b", path=path, made_at=at, **more)

    def adapter(owner: str, refused: str | None) -> AdapterNote:
        return AdapterNote(
            owner=owner,
            delta=owner,
            student="b",
            shared="a",
            rows="r",
            count=40,
            made_at=now - 60,
            won=9,
            lost=2,
            harm=0.2,
            refused=refused,
        )

    state = OnlineState(
        base=0,
        live=2,
        handed=1,
        at=now,
        versions=(
            version(0, kind="base"),
            version(1, kind="learned", parent=0, guard=figures),
            version(2, kind="learned", parent=1, guard=figures),
        ),
        adapters=(
            adapter("shop\n0123abcd4567", None),
            adapter("<script>x</script>", "costs 20.0% of the guard set, 15.0% are allowed"),
        ),
        quarantined=("<b>evil",),
        counts={"steps: accept": 2, "roll backs": 1},
    )
    for what, shown in (("accept", figures), ("swap", figures), ("refuse", figures)):
        state = state.happened(now - 500, what, shown)  # type: ignore[arg-type]
    state = state.happened(now - 400, "roll_back", {}, "a bad batch")
    state = state.happened(now - 300, "forget", {"rows": 12})
    store = Store(root)
    with store.locked():
        store.commit(state)


def fill_registry(root: Path, base: Path) -> list[str]:
    """Two live ones after each other, and a candidate."""
    registry = Registry(root)
    ids = []
    for number in range(3):
        folder = base / f"student{number}"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(bytes([number]) * 64)
        entry = registry.add(
            folder,
            task=TASK,
            lineage={"teacher": "big", "traffic": HOSTILE},
            metrics={"accuracy": 0.79 + number / 100},
            parent=ids[-1] if ids else None,
        )
        ids.append(entry.id)
        if number < 2:
            registry.promote(entry.id, reason="the demo", by="test")
    return ids


def build(folder: Path, url: str | None = None) -> World:
    """All of it, in a folder."""
    now = time.time()
    url = url or f"sqlite:///{folder}/gateway.db"
    gateway = {
        "admin": {"port": 0, "loop": "loop.yaml"},
        "upstreams": {
            "big": {
                "base_url": "http://127.0.0.1:9/v1",
                "model": "big",
                "price": {"input": 1, "output": 1},
            },
            "small": {"base_url": "http://127.0.0.1:9/v1", "model": "s1"},
        },
        "tasks": {TASK: {"teacher": "big", "student": "small"}, "spare": {"teacher": "big"}},
        "log": {"url": url},
    }
    (folder / "gateway.yaml").write_text(yaml.safe_dump(gateway), encoding="utf-8")
    loop = {"gateway": "gateway.yaml", "tasks": {TASK: {"recipe": "recipe.yaml", "run": "run"}}}
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")
    fill_log(url, now)
    write_lines(folder / "loop" / TASK / "windows.jsonl", [window(n, now) for n in range(1, 6)])
    write_lines(folder / "loop" / TASK / "alerts.jsonl", [alert(now)])
    fill_run(folder / "run")
    fill_online(folder / "loop" / TASK / "online", now)
    fill_registry(folder / "registry", folder)
    return World(folder, url, now)


def copy_of(world: World, folder: Path) -> World:
    """The same in another folder, to be changed."""
    for one in world.folder.iterdir():
        if one.is_dir():
            shutil.copytree(one, folder / one.name, symlinks=True)
        else:
            shutil.copy(one, folder / one.name)
    url = f"sqlite:///{folder}/gateway.db"
    path = folder / "gateway.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(world.url, url), encoding="utf-8")
    return World(folder, url, world.now)


def dashboard_of(world: World, key: str | None = KEY) -> OpenDashboard:
    return opened(load_gateway(world.folder / "gateway.yaml"), load_loop(world.loop), key)


@contextlib.contextmanager
def served(app: OpenDashboard) -> Iterator[str]:
    """A real server on loopback; its address."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=3
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [port]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port.getsockname()[1]}"
        finally:
            app.stop()
            server.should_exit = True
            thread.join(10)
            app.close()
