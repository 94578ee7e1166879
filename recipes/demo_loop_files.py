"""gateway.yaml, loop.yaml and recipe.yaml of the demo: what a user would write, on a small scale.

Time is compressed: stages, windows and the retraining need a tenth of the usual requests, and the
margins are as wide as so few can show. Knows no process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

NAME: Final = "reviews"  # the gateway's name of the task
# What gpt-4.1 costs, USD per million tokens, so that there is something to save: this one is free.
PRICE: Final = {"input": 2, "output": 8}


class Scale(NamedTuple):
    """How much of everything; the tests take less."""

    stage: int = 60  # requests of a stage, at least
    most: int = 2400  # requests until a climb must have ended
    window: int = 200  # requests of a window of the monitor
    normal: int = 2  # such windows before the shift
    shifted: int = 4  # and after it, at most
    share: float = 0.7  # of other texts after it
    new: int = 250  # new examples of the retraining
    held_out: int = 120
    epochs: float = 2.0
    learning_rate: float | None = 5e-5  # of going on from a trained student; None: the recipe's
    canaries: int = 30
    embedder: str = "minilm"  # that inputs are compared by
    margin: float = 0.3  # that agreement with the teacher may be short of 1


class Places(NamedTuple):
    """Where everything is. `run` is a copy: retraining adds to its store."""

    root: Path
    run: Path
    teacher: str  # its /v1
    listen: int
    admin: int

    @property
    def gateway(self) -> Path:
        """gateway.yaml."""
        return self.root / "gateway.yaml"

    @property
    def loop(self) -> Path:
        """loop.yaml."""
        return self.root / "loop.yaml"

    @property
    def registry(self) -> Path:
        """Of the students."""
        return self.root / "registry"

    @property
    def kept(self) -> Path:
        """What watching and retraining keep of the task."""
        return self.root / "loop" / NAME


def copied_run(run: Path, to: Path) -> Path:
    """What of a finished run the loop reads; its tuned teacher stays where it is."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("tune", "compress", ".lock"))
    if (run / "compress" / "best").exists():
        shutil.copytree(run / "compress" / "best", to / "compress" / "best")
    return to


def student_of(run: Path) -> Path:
    """The run's student: its best compressed form where it has one."""
    best = run / "compress" / "best"
    return best if best.exists() else run / "train" / "student"


def write_files(places: Places, scale: Scale) -> None:
    """Write all three."""
    recipe: dict[str, Any] = json.loads((places.run / "recipe.json").read_text(encoding="utf-8"))
    task = {key: value for key, value in recipe["task"].items() if value is not None}
    _write(places.gateway, _gateway(places, scale, task))
    _write(places.loop, _loop(places, scale))
    _write(places.root / "recipe.yaml", _recipe(places, recipe))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _gateway(places: Places, scale: Scale, task: dict[str, Any]) -> dict[str, Any]:
    return {
        "listen": {"port": places.listen, "drain_s": 5},
        "admin": {"port": places.admin},
        "log": {"url": f"sqlite:///{places.root.resolve()}/gateway.db"},
        "students": {"roots": [str(places.registry.resolve())]},
        "upstreams": {
            "teacher": {
                "base_url": places.teacher,
                "model": "teacher",
                "price": PRICE,
                "deadlines": {"total_s": 290, "first_token_s": 290},
                "queue": {"wait_s": 290},
            },
            "student": {
                "kind": "student",
                "path": str(student_of(places.run).resolve()),
                "head": "label",
                "task": task,
            },
        },
        "tasks": {
            NAME: {
                "teacher": "teacher",
                "student": "student",
                "experiment": {
                    "stages": [
                        {"kind": "shadow", "min_requests": scale.stage},
                        {"kind": "canary", "share": 0.3, "min_requests": scale.stage},
                        {"kind": "full"},
                    ],
                    "margin": scale.margin,
                    "teacher_only": 0.2,
                    "candidate_pairs": 0.5,
                    "sticky": "request",
                    # The teacher answers out of a store: no latency that could be compared.
                    "guardrails": {"latency_ratio": None},
                    "evidence": {"source": "scorer", "task": task, "unit_hours": 0},
                },
            }
        },
    }


def _loop(places: Places, scale: Scale) -> dict[str, Any]:
    return {
        "gateway": "gateway.yaml",
        "registry": "registry",
        "folder": "loop",
        "tasks": {
            NAME: {
                "recipe": "recipe.yaml",
                "run": str(places.run.resolve()),
                "monitor": {
                    "window": {"requests": scale.window, "least": 30, "settle_s": 0},
                    "segments": {"by": ["label"]},
                    "canaries": {"count": scale.canaries, "student": False},
                    "drift": {"permutations": 499, "embedder": scale.embedder},
                },
                "retrain": {
                    "min_requests": scale.held_out,
                    "new": scale.new,
                    "replay": 0.3,
                    "held_out": scale.held_out,
                    "epochs": scale.epochs,
                    "learning_rate": scale.learning_rate,
                    "margin": scale.margin + 0.1,
                    "incumbent_margin": 0.12,
                    "max_forgetting": 0.1,
                    "gateway": True,
                },
            }
        },
    }


def _recipe(places: Places, recipe: dict[str, Any]) -> dict[str, Any]:
    """The run's recipe, with the server as its teacher: labels alone, so no beliefs to learn."""
    kept = {key: recipe[key] for key in ("name", "seed", "task", "student", "dataset")}
    return {
        **kept,
        "traffic": {"path": str((places.run / "traffic" / "queries.jsonl").resolve())},
        "teacher": {
            "model": "openai-compatible:teacher",
            "base_url": places.teacher,
            "concurrency": 16,
            "terms": {"may_train": True, "says": "the demo's own teacher", "on": "2026-11-30"},
        },
        "prices": {
            "models": {"teacher": {f"{kind}_usd_per_mtok": usd for kind, usd in PRICE.items()}}
        },
        "train": {**recipe["train"], "alpha": 0, "epochs": 2, "evals": 1},
        "evaluate": {**recipe["evaluate"], "speed_queries": 8, "speed_repeats": 1},
    }
