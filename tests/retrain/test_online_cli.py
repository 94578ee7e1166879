"""`stillhouse online` from a gateway's real log to a student's real folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gateway_stores import call_of, served_of
from mobile_student import TASK, make_student
from stillhouse import cli_online
from stillhouse.cli import app
from stillhouse.compress.onnx_export import export_onnx
from stillhouse.core.errors import UserError
from stillhouse.core.records import Message, Query
from stillhouse.models.artefact_student import open_any
from stillhouse.models.batching import Call
from stillhouse.models.completer import Sampling
from stillhouse.retrain import gateway_admin
from stillhouse.retrain.online_state import Store
from stillhouse.retrain.registry import Registry
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

SECRET = "0123456789abcdef"
TEXTS = ("boring film", "a warm moving film", "funny and dull")
ONLINE = {
    "guard": {"share": 0.3, "least": 20},
    "caps": {"user_share": 0.2},
    "steps": 150,
    "learning_rate": 0.05,
    "anchor_kl": 0.0,
    "personal": {"least_rows": 20, "harm": 0.9, "steps": 50},
}


class Site:
    """loop.yaml with a log in which the teacher calls every text by another label."""

    def __init__(self, folder: Path, online: dict[str, Any] | None = ONLINE) -> None:
        self.folder, self.loop = folder, folder / "loop.yaml"
        make_student(folder / "float")
        export_onnx(folder / "float", folder / "student", TASK, texts=["dull"])
        student = {"kind": "student", "path": "student", "task": TASK.model_dump(mode="json")}
        self.url = f"sqlite:///{folder}/gateway.db"
        files = {
            "gateway": {
                "log": {"url": self.url},
                "upstreams": {
                    "big": {"base_url": "http://127.0.0.1:9/v1", "model": "big"},
                    "small": student,
                },
                "tasks": {"films": {"teacher": "big", "student": "small"}},
            },
            "recipe": {
                "name": "films",
                "task": TASK.model_dump(mode="json"),
                "traffic": {"path": "traffic.jsonl"},
                "teacher": {"model": "embedded"},
                "student": {"head": "label", "from": "embedded-encoder"},
            },
            "loop": {
                "gateway": "gateway.yaml",
                "tasks": {"films": {"recipe": "recipe.yaml", "online": online}},
            },
        }
        for name, value in files.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
        self.says = dict(zip(TEXTS, answers(folder / "student"), strict=True))

    def other(self, text: str) -> str:
        labels = TASK.labels
        return labels[(labels.index(self.says[text]) + 1) % len(labels)]

    def fill(self, count: int) -> None:
        engine = open_database(self.url)
        log = TrafficLog(engine, redact=lambda text: text, pseudonyms=Pseudonyms(SECRET.encode()))
        for number in range(count):
            text, user = TEXTS[number % 3], f"user{number % 40}"
            message = {"role": "assistant", "content": self.other(text)}
            asked = {"model": "films", "messages": [{"role": "user", "content": text}]}
            log.offer(
                call_of(
                    1,
                    id=f"q{number}",
                    user=user,
                    request=asked,
                    response={"choices": [{"message": message}]},
                ),
                served_of(
                    1,
                    id=f"q{number}",
                    task="films",
                    arm="teacher_only",
                    at=1000.0 + number,
                    tenant="shop",
                    unit=f"u{user}",
                    user=user,
                ),
            )
        assert log.flush(20)
        log.close()
        engine.dispose()

    def run(self, *options: str, task: str = "films") -> str:
        found = CliRunner().invoke(app, ["online", str(self.loop), task, *options])
        if found.exception is not None:
            raise found.exception
        return found.output


def answers(folder: Path) -> list[str]:
    student = open_any(folder, TASK, "label", 1)
    queries = [Query(id="q", messages=(Message(role="user", content=one),)) for one in TEXTS]
    return [
        student.run_batch([Call(one, Sampling())])[0][0].text  # type: ignore[attr-defined]
        for one in queries
    ]


def test_from_the_log_to_a_student_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    site = Site(tmp_path)
    site.fill(300)
    told = json.loads(site.run("--json"))
    assert (told["swapped"], told["live"]) == (True, 1)
    root = tmp_path / "loop" / "films" / "online"
    wanted = [site.other(text) for text in TEXTS]
    assert answers(root / "versions" / "1") == wanted
    assert answers(root / "current") == wanted
    assert not json.loads(site.run("--json"))["swapped"]
    assert "version 0 is live" in site.run("--roll-back", "0")
    assert answers(root / "current") == [site.says[text] for text in TEXTS]
    assert "version 1: learned" in site.run("--status")
    with pytest.raises(UserError, match="is not kept; there are 0, 1"):
        site.run("--roll-back", "9")


def test_a_forgotten_user_is_gone_from_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    site = Site(tmp_path)
    site.fill(200)
    site.run()
    name = Pseudonyms(SECRET.encode()).of("shop", "user3")
    root = tmp_path / "loop" / "films" / "online"
    kept = [path for path in root.rglob("*.json*") if name in path.read_text()]
    assert kept
    assert "5 rows are forgotten" in site.run("--forget", "shop", "user3")
    assert not [path for path in root.rglob("*.json*") if name in path.read_text()]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    site = Site(tmp_path, online=None)
    with pytest.raises(UserError, match=r"tasks\.films\.online: is missing"):
        site.run()
    with pytest.raises(UserError, match="there are films"):
        site.run(task="other")


def test_adapters_that_nobody_is_answered_with_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    site = Site(tmp_path)
    root = tmp_path / "loop" / "films" / "online"
    assert "upstreams.small.adapters of gateway.yaml is missing: nobody is answered" in site.run()
    path = tmp_path / "gateway.yaml"
    raw = yaml.safe_load(path.read_text())
    for place, note in (("loop/films/online", False), ("elsewhere", True)):
        raw["upstreams"]["small"]["adapters"] = place
        path.write_text(yaml.safe_dump(raw))
        assert (f"write adapters: {root}" in site.run()) == note


def test_a_student_that_is_promoted_meanwhile_is_refined_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    site = Site(tmp_path)
    site.fill(60)
    registry = Registry(tmp_path / "registry")
    first = registry.add(tmp_path / "student", task="films", lineage={}, metrics={})
    # As a retraining leaves it: its small form is what the gateway serves.
    entry = make_student(tmp_path / "entry", seed=6)
    export_onnx(entry, entry / "forms" / "best", TASK, texts=["dull"])
    second = registry.add(entry, task="films", lineage={}, metrics={})
    registry.promote(first.id, reason="", by="ann")
    bases: list[str] = []

    def sleep(_: float) -> None:
        state = Store(tmp_path / "loop" / "films" / "online").read()
        assert state is not None
        bases.append(state.version(state.base).path)
        if len(bases) == 3:
            raise KeyboardInterrupt
        if len(bases) == 1:
            registry.promote(second.id, reason="better", by="ann")

    monkeypatch.setattr(cli_online.time, "sleep", sleep)
    done = CliRunner().invoke(app, ["online", str(site.loop), "films", "--follow"])
    there = registry.folder(second.id).resolve() / "forms" / "best"
    assert bases == [str(registry.folder(first.id).resolve()), str(there), str(there)]
    assert done.output.count("another student was put to work") == 1


def test_a_database_that_is_away_for_a_while_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    site = Site(tmp_path)
    site.fill(60)
    base = Path(site.url.removeprefix("sqlite:///"))
    kept = base.read_bytes()
    sleeps = 0

    def sleep(_: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 1:
            for path in tmp_path.glob("gateway.db*"):
                path.unlink()
            base.mkdir()
        if sleeps == 2:
            base.rmdir()
            base.write_bytes(kept)
        if sleeps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_online.time, "sleep", sleep)
    done = CliRunner().invoke(app, ["online", str(site.loop), "films", "--follow"])
    notes = [line for line in done.output.splitlines() if "unable to open database" in line]
    assert (sleeps, len(notes)) == (3, 1)


def test_a_roll_back_that_the_gateway_does_not_follow_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_PSEUDONYM_SECRET", SECRET)
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", "a")
    monkeypatch.setattr(gateway_admin, "PAUSE_S", 0.0)
    site = Site(tmp_path)
    site.fill(300)
    assert json.loads(site.run("--json"))["swapped"]
    path = tmp_path / "gateway.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["admin"] = {"port": 9}  # nobody is there
    path.write_text(yaml.safe_dump(raw))
    for options, said in (
        (["--roll-back", "1"], "version 1 is live"),
        (["--forget", "shop", "user3"], "rows are forgotten"),
    ):
        done = CliRunner().invoke(app, ["online", str(site.loop), "films", *options])
        assert said in done.output
        assert "refuses connections" in done.output
        assert done.exit_code == 1
