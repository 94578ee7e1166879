"""A move in the registry by hand, and the running gateway that follows it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from candidate_gateways import Stored, ask, raw, stored, student, who
from gateway_servers import ADMIN, Model, models, says
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import UserError
from stillhouse.retrain.registry import Registry
from stillhouse.serve import server, student_pool, student_process

FULL = {"stages": [{"kind": "shadow"}, {"kind": "full"}], "teacher_only": 0}


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([own, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(student_process, "MODULE", "fake_student")
    monkeypatch.setattr(student_pool, "PAUSE_S", (0.05, 0.1))
    monkeypatch.setattr(server, "REFRESH_S", 0.05)
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", ADMIN)


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Site:
    """gateway.yaml, loop.yaml and a registry with three students, of which none is live."""

    def __init__(self, folder: Path, teacher: str) -> None:
        self.folder = folder
        student(folder / "old", "fp_old")
        self.registry = Registry(folder / "registry")
        self.ids = []
        for name in ("one", "two", "three"):
            made = student(folder / "made" / name, f"fp_{name}")
            self.ids.append(self.registry.add(made, task="t", lineage={}, metrics={}).id)
        self.raw: dict[str, Any] = raw(teacher, folder)
        self.raw["admin"] = {"port": free()}
        self.raw["tasks"]["t"]["experiment"] = FULL
        self.raw["log"] = {"url": f"sqlite:///{folder}/g.db", "redact": []}
        (folder / "gateway.yaml").write_text(yaml.safe_dump(self.raw))
        loop = {"gateway": "gateway.yaml", "tasks": {"t": {"recipe": "recipe.yaml"}}}
        (folder / "loop.yaml").write_text(yaml.safe_dump(loop))

    def run(self, *options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["registry", *options, "--loop", f"{self.folder}/loop.yaml"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    def live(self) -> str | None:
        entry = self.registry.live("t")
        return None if entry is None else entry.id


def full(running: Stored) -> None:
    running.admin.act("t", "approve", "tried before")


@pytest.mark.full
def test_promote_and_roll_back_reach_the_running_gateway(tmp_path: Path) -> None:
    with models(teacher := Model(says("good"))):
        site = Site(tmp_path, teacher.url)
        one, two, three = site.ids
        with stored(site.raw, tmp_path / "g.db") as running:
            full(running)
            assert who(ask(running.url, "good", "u")) == "student"
            code, said = site.run("promote", one, "--reason", "gate passed", "--by", "ann")
            assert (code, f"the gateway answers with {one} now, small before" in said) == (0, True)
            assert who(ask(running.url, "good", "u")) == one
            # One that climbs is not asked to climb on.
            path = str(site.registry.folder(two).resolve())
            running.admin.offer("t", path, two, "retrained")
            code, said = site.run("promote", two, "--reason", "enough", "--by", "ann")
            assert (code, running.admin.state("t").candidate) == (0, None)
            assert who(ask(running.url, "good", "u")) == two
            assert running.admin.state("t").kind == "full"
            # Another that climbs goes on.
            running.admin.offer("t", str(site.registry.folder(three).resolve()), three, "")
            code, said = site.run("rollback", "t", "--reason", "complaints", "--by", "ann")
            assert (code, site.live()) == (0, one)
            state = running.admin.state("t")
            assert (state.student, state.candidate) == (one, three)
            last = state.last
            assert last is not None
            assert (last.action, last.reason) == ("reload", "complaints")
            code, said = site.run("reload", "t")
            assert (code, "already" in said) == (0, True)


@pytest.mark.full
def test_a_gateway_that_cannot_follow_is_told_of_with_what_to_do(tmp_path: Path) -> None:
    with models(teacher := Model(says("good"))):
        site = Site(tmp_path, teacher.url)
        one = site.ids[0]
        code, said = site.run("promote", one, "--by", "ann")
        assert (code, site.live()) == (1, one)
        line = said.splitlines()[-1]
        assert "refuses connections" in line
        assert "start the gateway, then run: stillhouse registry reload t --loop" in line
        elsewhere = {**site.raw, "students": {"roots": [str(tmp_path / "old")]}}
        with stored(elsewhere, tmp_path / "g.db") as running:
            full(running)
            code, said = site.run("reload", "t")
            assert (code, "let students.roots of gateway.yaml name" in said) == (1, True)
            assert who(ask(running.url, "good", "u")) == "student"
        with stored(site.raw, tmp_path / "g.db") as running:
            assert site.run("reload", "t")[0] == 0
            assert who(ask(running.url, "good", "u")) == one


def test_what_cannot_be_told_is_refused_before_anything_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="has no live student"):
        site.run("reload", "t")
    monkeypatch.delenv("STILLHOUSE_ADMIN_KEY")
    with pytest.raises(UserError, match="STILLHOUSE_ADMIN_KEY is not set"):
        site.run("promote", site.ids[0], "--by", "ann")
    del site.raw["admin"]
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(site.raw))
    with pytest.raises(UserError, match="admin: is missing"):
        site.run("promote", site.ids[0], "--by", "ann")
    site.raw["tasks"]["other"] = site.raw["tasks"].pop("t")
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(site.raw))
    with pytest.raises(UserError, match="TASK: is not in"):
        site.run("promote", site.ids[0], "--by", "ann")
    assert site.live() is None
