"""`stillhouse serve` with two workers and students of onnxruntime: offered, promoted, renewed."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from candidate_gateways import ask, until, who
from gateway_servers import Model, models, says
from test_workers import serving
from tiny_students import TASK, label_folder

from stillhouse.retrain.gateway_admin import GatewayAdmin

STAGES = [{"kind": "shadow"}, {"kind": "canary", "share": 0.5}, {"kind": "full"}]


def retold(folder: Path, to: Path) -> Path:
    """The same student under another fingerprint: as after a small step of training."""
    shutil.copytree(folder, to)
    artefact = to / "artefact.json"
    raw: dict[str, Any] = json.loads(artefact.read_text())
    artefact.write_text(json.dumps(raw, indent=3))
    return to


@pytest.mark.full
def test_workers_switch_alike_and_a_reload_under_load_loses_no_request(tmp_path: Path) -> None:
    made = label_folder(tmp_path / "made") / "onnx"
    registry = tmp_path / "registry"
    registry.mkdir()
    folders = {name: retold(made, registry / name) for name in ("s-1", "s-2", "s-3")}
    teacher = Model(says("good"))
    with models(teacher):
        raw: dict[str, Any] = {
            "upstreams": {
                "big": {"base_url": teacher.url, "model": "big-1"},
                "small": {"kind": "student", "path": str(made)},
            },
            "tasks": {
                "t": {
                    "teacher": "big",
                    "student": "small",
                    "experiment": {"stages": STAGES, "teacher_only": 0, "candidate_pairs": 0.3},
                }
            },
            "students": {"roots": ["registry"]},
        }
        assert TASK.labels
        with serving(tmp_path, raw) as gateway:
            admin = GatewayAdmin(f"http://127.0.0.1:{gateway.admin}", "a")
            url = f"http://127.0.0.1:{gateway.port}"
            kinds: Counter[str] = Counter()

            def everywhere(student: str | None, candidate: str | None, kind: str) -> bool:
                found = {
                    (one.student, one.candidate, one.kind, one.problems)
                    for one in (admin.state("t") for _ in range(8))
                }
                return found == {(student, candidate, kind, ())}

            for kind in ("canary", "full"):
                admin.act("t", "approve", "")
                until(lambda kind=kind: everywhere("small", None, kind))  # type: ignore[misc]
            admin.offer("t", str(folders["s-1"]), "s-1", "retrained")
            until(lambda: everywhere("small", "s-1", "shadow"))
            admin.act("t", "approve", "")
            until(lambda: everywhere("small", "s-1", "canary"))
            for number in range(60):
                kinds[who(ask(url, "x", f"u{number}"))] += 1
            assert set(kinds) == {"student", "s-1", "model-there"}
            admin.act("t", "approve", "")
            until(lambda: everywhere("s-1", None, "full"))
            found: Counter[tuple[int, str, str]] = Counter()
            stop = threading.Event()

            def load() -> None:
                while not stop.is_set():
                    got = ask(url, "x")
                    found[got.status, who(got), got.headers["x-stillhouse-variant"]] += 1

            threads = [threading.Thread(target=load) for _ in range(4)]
            for one in threads:
                one.start()
            for name in ("s-2", "s-3"):
                admin.reload("t", str(folders[name]), name, "refined")
                until(lambda name=name: everywhere(name, None, "full"))  # type: ignore[misc]
                until(lambda name=name: found[200, name, "student"] > 20)  # type: ignore[misc]
            stop.set()
            for one in threads:
                one.join()
            assert {(status, variant) for status, _, variant in found} == {(200, "student")}
            assert {"s-2", "s-3"} <= {name for _, name, _ in found} <= set(folders)
