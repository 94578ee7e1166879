"""The registry: adding, moving, promoting, rolling back, names, garbage, and who is first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import integers, sampled_from

from registry_students import added, opened, student_folder
from stillhouse.core.errors import UserError
from stillhouse.retrain.registry import ConflictError, Registry
from stillhouse.retrain.registry_gc import DAY_S, removable
from stillhouse.retrain.registry_objects import folder_digest
from stillhouse.retrain.registry_records import ALLOWED, PROMOTED_FROM, STAGES

TESTS = Path(__file__).parents[1]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return opened(tmp_path / "registry")


def test_a_student_is_copied_read_only_under_its_digest(registry: Registry, tmp_path: Path) -> None:
    source = student_folder(tmp_path / "s", "a")
    (source / ".cache").mkdir()
    (source / ".cache" / "x").write_text("not of it")
    entry = registry.add(source, task="mail", lineage={"traffic": {"n": 3}}, metrics={"score": 0.5})
    folder = registry.folder(entry.id)
    assert folder == registry.root / "objects" / entry.digest
    assert folder_digest(source) == entry.digest
    assert entry.id == f"s-{entry.digest[:12]}"
    assert (entry.stage, entry.version, entry.lineage) == ("candidate", 1, {"traffic": {"n": 3}})
    assert not (folder / ".cache").exists()
    assert {p.stat().st_mode & 0o222 for p in [folder, *folder.rglob("*")]} == {0}
    (source / "config.json").write_text("edited later")
    assert registry.folder(entry.id) == folder


def test_the_same_files_twice_are_one_entry(registry: Registry, tmp_path: Path) -> None:
    first = added(registry, "a")
    again = registry.add(
        student_folder(tmp_path / "b", "mail/a"), task="mail", lineage={"other": 1}, metrics={}
    )
    assert again == first
    assert registry.version("mail") == 1
    with pytest.raises(UserError, match=f"registered as {first.id} of task mail"):
        registry.add(tmp_path / "b", task="other", lineage={}, metrics={})


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, (name, text) in zip(folders, [("x", "1"), ("y", "1"), ("x", "2")], strict=True):
        folder.mkdir()
        (folder / name).write_text(text)
    assert len({folder_digest(folder) for folder in folders}) == 3


def test_what_cannot_be_added_is_said(registry: Registry, tmp_path: Path) -> None:
    good = student_folder(tmp_path / "good", "g")
    empty = tmp_path / "empty"
    empty.mkdir()
    linked = student_folder(tmp_path / "linked", "l")
    (linked / "out").symlink_to(tmp_path)
    broken = student_folder(tmp_path / "broken", "b")
    (broken / "gone").symlink_to(tmp_path / "nothing")
    given: dict[str, Any] = {"lineage": {}, "metrics": {}, "task": "mail"}
    for folder, told, problem in (
        (tmp_path / "none", {}, "there is no such folder"),
        (empty, {}, "holds no file"),
        (linked, {}, "is a link to a folder"),
        (broken, {}, "is no plain file"),
        (good, {"task": "../x"}, "task: has to be"),
        (good, {"parent": "s-000000000000"}, "no such student"),
        (good, {"artefacts": {"gate": "gate.json"}}, r"artefacts.gate: is not in"),
        (good, {"artefacts": {"gate": "../empty"}}, r"artefacts.gate: is not in"),
    ):
        with pytest.raises(UserError, match=problem):
            registry.add(folder, **{**given, **told})
    assert registry.entries() == []
    entry = registry.add(good, **given, artefacts={"weights": "sub/weights.bin"})
    assert entry.artefacts == {"weights": "sub/weights.bin"}


def test_promote_retires_and_roll_back_brings_back(registry: Registry) -> None:
    a, b, c = (added(registry, name) for name in "abc")
    link = registry.root / "live" / "mail"
    assert registry.live("mail") is None
    assert not link.exists()
    for entry in (a, b, c):
        registry.promote(entry.id, reason="better", by="ann")
        assert link.resolve() == registry.folder(entry.id)
    assert registry.get("mail@previous").id == b.id
    assert registry.get(b.id).aliases == ("previous",)
    assert registry.get(b.id).stage == "retired"
    assert registry.roll_back("mail", reason="bad", by="bo").id == b.id
    assert registry.roll_back("mail", reason="bad", by="bo").id == a.id  # not back to c
    assert link.resolve() == registry.folder(a.id)
    with pytest.raises(UserError, match="no student of it was live before"):
        registry.roll_back("mail", reason="bad", by="bo")
    moves = registry.history("mail")
    assert [(m.action, m.ref, m.to_stage, m.by) for m in moves[-2:]] == [
        ("roll_back", b.id, "retired", "bo"),
        ("roll_back", a.id, "live", "bo"),
    ]
    assert registry.verify() == []


def test_a_live_one_that_was_retired_can_be_had_back(registry: Registry) -> None:
    a = added(registry, "a")
    registry.promote(a.id, reason="", by="")
    registry.move(a.id, "retired", reason="broken", by="")
    assert registry.live("mail") is None
    assert not (registry.root / "live" / "mail").exists()
    assert registry.roll_back("mail", reason="", by="").stage == "live"


@pytest.mark.parametrize("begin", STAGES)
@pytest.mark.parametrize("end", STAGES)
def test_only_the_stated_moves_are_made(registry: Registry, begin: Any, end: Any) -> None:
    name = added(registry, "a").id
    if begin != "candidate":
        registry.move(name, begin, reason="", by="")
    before = registry.version("mail")
    fine = end in ALLOWED[begin] or (end == "live" and begin in PROMOTED_FROM)
    if begin == end or fine:
        assert registry.move(name, end, reason="", by="").stage == end
        assert registry.version("mail") == before + (begin != end)
    else:
        with pytest.raises(UserError, match=f"{name} is {begin}"):
            registry.move(name, end, reason="", by="")
        assert registry.version("mail") == before


def test_refs(registry: Registry) -> None:
    a, b = added(registry, "a"), added(registry, "b", task="other")
    registry.alias("mail", "next", a.id)
    assert registry.get(a.id[:6]).id == registry.get("mail@next").id == a.id
    assert registry.get("mail@next").aliases == ("next",)
    for ref, problem in (
        ("s-", "several students begin so"),
        ("s-zz", "no such student"),
        ("", "no such student"),
        ("mail@live", "no such alias; known: mail@next"),
        ("none@live", "known: none"),
    ):
        with pytest.raises(UserError, match=problem):
            registry.get(ref)
    with pytest.raises(UserError, match="is a student of task other"):
        registry.alias("mail", "next", b.id)
    with pytest.raises(UserError, match="follows from the moves"):
        registry.alias("mail", "live", a.id)
    registry.alias("mail", "next", None)
    with pytest.raises(UserError, match="no such alias"):
        registry.get("mail@next")
    assert [entry.id for entry in registry.entries()] == [b.id, a.id]
    assert [entry.id for entry in registry.entries("mail")] == [a.id]


def test_a_version_seen_earlier_is_refused(registry: Registry) -> None:
    a, b = added(registry, "a"), added(registry, "b")
    seen = registry.version("mail")
    registry.promote(a.id, reason="", by="ann", version=seen)
    changes: list[Any] = [
        lambda: registry.promote(b.id, reason="", by="bo", version=seen),
        lambda: registry.move(b.id, "shadow", reason="", by="bo", version=seen),
        lambda: registry.roll_back("mail", reason="", by="bo", version=seen),
        lambda: registry.alias("mail", "x", b.id, version=seen),
    ]
    for change in changes:
        with pytest.raises(ConflictError, match=rf"at version 3 by now \(promote of {a.id} by ann"):
            change()
    assert registry.version("mail") == 3
    assert registry.get(b.id).stage == "candidate"


def test_of_operators_at_once_exactly_one_wins(registry: Registry, tmp_path: Path) -> None:
    names = [added(registry, name).id for name in "ab"]
    go = tmp_path / "go"
    script = str(TESTS / "racing_registry.py")
    racers = [
        subprocess.Popen(
            [sys.executable, script, str(registry.root), str(go), name],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    go.touch()
    said = [racer.communicate(timeout=30)[0].strip() for racer in racers]
    winner = said.index("won")
    assert sorted(text.split()[0] for text in said) == ["ConflictError", "won"]
    live = registry.live("mail")
    assert live is not None
    assert live.id == names[winner]
    assert registry.version("mail") == 3
    assert registry.verify() == []


def test_gc_takes_what_nothing_needs(registry: Registry) -> None:
    root = added(registry, "root")
    child = added(registry, "child", parent=root.id)
    old, named, young = (added(registry, name) for name in ("old", "named", "young"))
    for entry in (root, old, named):
        registry.move(entry.id, "retired", reason="", by="")
    registry.alias("mail", "keep", named.id)
    now = max(move.at for move in registry.history("mail")) + 2 * DAY_S
    late = Registry(registry.root, clock=lambda: now - 1)
    late.move(young.id, "retired", reason="", by="")

    def going(**more: Any) -> set[str]:
        return {one.entry.id for one in removable(registry, days=1, now=now, **more)}

    assert going() == {old.id}
    assert going(ancestors=True) == {old.id, root.id}
    with pytest.raises(UserError, match="is not retired, or has an alias"):
        registry.remove({"mail": [named.id]}, by="", reason="")
    with pytest.raises(UserError, match="--days"):
        removable(registry, days=-1, now=now)
    registry.remove({"mail": [old.id]}, by="ann", reason="old")
    assert {entry.id for entry in registry.entries()} == {root.id, child.id, named.id, young.id}
    assert not (registry.root / "objects" / old.digest).exists()
    assert registry.verify() == []
    again = added(registry, "old")  # the same files may come back
    assert (again.id, again.stage) == (old.id, "candidate")
    assert registry.verify() == []


class Moves(RuleBasedStateMachine):
    """Any moves in any order, against a model of a few lines: one live at most, the log tells all,
    and what another reader finds on disk is the same."""

    @initialize()
    def begin(self) -> None:
        number = len(os.listdir(Moves.place))
        self.registry = opened(Moves.place / str(number) / "registry")
        self.stage: dict[str, str] = {}
        self.was_live: list[str] = []

    @rule(name=sampled_from("abcd"))
    def add(self, name: str) -> None:
        self.stage.setdefault(added(self.registry, name).id, "candidate")

    @precondition(lambda self: self.stage)
    @rule(which=integers(0, 3), to=sampled_from(STAGES))
    def move(self, which: int, to: Any) -> None:
        name = sorted(self.stage)[which % len(self.stage)]
        begin = self.stage[name]
        promoting = to == "live" and begin in PROMOTED_FROM
        if begin == to:
            self.registry.move(name, to, reason="", by="")
        elif promoting or to in ALLOWED[begin]:
            self.registry.move(name, to, reason="", by="")
            if promoting:
                self._live(name)
            self.stage[name] = to
        else:
            with pytest.raises(UserError):
                self.registry.move(name, to, reason="", by="")

    @precondition(lambda self: self.stage)
    @rule()
    def roll_back(self) -> None:
        back = list(self.was_live)
        if back and self.stage[back[-1]] == "live":
            back.pop()
        if not back:
            with pytest.raises(UserError):
                self.registry.roll_back("mail", reason="", by="")
            return
        assert self.registry.roll_back("mail", reason="", by="").id == back[-1]
        if len(back) < len(self.was_live):
            self.stage[self.was_live[-1]] = "retired"
        self.was_live = back
        self.stage[back[-1]] = "live"

    def _live(self, name: str) -> None:
        for other, stage in self.stage.items():
            if stage == "live":
                self.stage[other] = "retired"
        if self.was_live[-1:] != [name]:
            self.was_live.append(name)

    @invariant()
    def reads_the_same(self) -> None:
        if not hasattr(self, "registry"):
            return
        found = Registry(self.registry.root)
        assert {entry.id: entry.stage for entry in found.entries()} == self.stage
        live = [name for name, stage in self.stage.items() if stage == "live"]
        assert len(live) <= 1
        link = found.root / "live" / "mail"
        assert link.exists() == bool(live)
        if live:
            assert link.resolve() == found.folder(live[0])
        assert found.verify() == []

    place: Path


def test_any_moves_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    Moves.place = tmp_path
    machine: Any = Moves.TestCase
    machine.settings = settings(
        max_examples=10,
        stateful_step_count=15,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
