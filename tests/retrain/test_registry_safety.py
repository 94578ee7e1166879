"""A registry after a kill at any step, and after each kind of its files was changed by hand."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import data, integers, sampled_from

from registry_students import added, opened, student_folder
from stillhouse.retrain.registry import Registry, TamperedError

TESTS = Path(__file__).parents[1]


def filled(folder: Path) -> Registry:
    """Two that were live one after the other, and a third that has the alias `next`."""
    registry = opened(folder / "registry")
    a, b, c = (added(registry, name) for name in "abc")
    registry.promote(a.id, reason="first", by="ann")
    registry.promote(b.id, reason="better", by="ann")
    registry.alias("mail", "next", c.id)
    return registry


def state(registry: Registry) -> object:
    """All that a reader can see, but for times."""
    link = registry.root / "live" / "mail"
    return (
        sorted((e.id, e.stage, e.aliases, e.version) for e in registry.entries()),
        [(m.action, m.ref, m.to_stage) for m in registry.history("mail")],
        link.resolve().name if link.exists() else None,
    )


@pytest.mark.parametrize(
    "operation",
    ["promote", *(pytest.param(o, marks=pytest.mark.full) for o in ("add", "roll_back", "remove"))],
)
def test_a_kill_at_any_step_leaves_old_or_new(operation: str, tmp_path: Path) -> None:
    template = tmp_path / "template"
    filled(template)
    student_folder(template / "made" / "mail" / "new", "new")
    # Of `remove` each of its three changes is old or new.
    whole = tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, str(TESTS / "killed_registry.py"), str(template), str(whole), operation],
        capture_output=True,
        text=True,
        check=True,
    )
    killed = int(done.stdout)
    assert killed > 10
    old = state(Registry(template / "registry"))
    new = state(Registry(whole / str(killed + 1) / "registry"))
    seen = []
    for step in range(1, killed + 1):
        registry = Registry(whole / str(step) / "registry")
        assert registry.verify() == [], step
        seen.append(state(registry))
        if operation != "remove":
            assert seen[-1] in (old, new), step
    assert seen[0] == old
    changes = [s for i, s in enumerate(seen) if i == 0 or s != seen[i - 1]]
    assert len(changes) == len({repr(s) for s in changes})  # never back
    # The same command once more comes to the same end.
    if operation == "promote":
        again = Registry(whole / str(killed // 2) / "registry")
        assert state(again) == old
        again.promote("mail@next", reason="r", by="b")
        assert state(again) == new


def test_what_a_killed_add_left_is_swept(tmp_path: Path) -> None:
    registry = filled(tmp_path)
    left = registry.root / "objects" / ".adding-1-2"
    left.mkdir()
    (left / "half").write_text("half")
    os.utime(left, (0, 0))
    orphan = student_folder(registry.root / "objects" / ("0" * 64), "orphan")
    assert registry.verify() == []
    Registry(registry.root).remove({}, by="", reason="")
    assert not left.exists()
    assert not orphan.exists()
    assert len(list((registry.root / "objects").iterdir())) == 3


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file, read-only or not."""
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))


def head_file(registry: Registry) -> Path:
    return next((registry.root / "tasks" / "mail" / "heads").iterdir()) / "head.json"


def drop_line(number: int) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        lines = text.splitlines(keepends=True)
        return b"".join(lines[:number] + lines[number + 1 :])

    return change


def other_stage(text: bytes) -> bytes:
    return text.replace(b"better", b"bettor")


def forge(registry: Registry) -> None:
    """Change an entry and its own checksum with it: the log holds the checksum too."""
    from_log = registry.root / "entries" / f"{registry.get('mail@live').id}.json"
    told = json.loads(from_log.read_text())
    told["metrics"] = {"score": 1}
    checksum = told.pop("checksum")
    assert len(checksum) == 64
    text = json.dumps(told, sort_keys=True)
    own = hashlib.sha256(text.encode()).hexdigest()
    from_log.write_text(json.dumps(told | {"checksum": own}))


TAMPERED: dict[str, tuple[str, Callable[[Registry], object]]] = {
    "a student's weights": (
        "objects",
        lambda r: edit(r.folder("mail@live") / "sub" / "weights.bin", lambda b: b + b"x"),
    ),
    "a file added": (
        "objects",
        lambda r: (
            r.folder("mail@live").chmod(0o755),
            (r.folder("mail@live") / ".hidden").write_text("x"),
        ),
    ),
    "a student's folder gone": (
        "objects",
        lambda r: (
            r.folder("mail@live").chmod(0o755),
            r.folder("mail@live").rename(r.root / "moved"),
        ),
    ),
    "an entry's figures": (
        "entries",
        lambda r: edit(
            r.root / "entries" / f"{r.get('mail@live').id}.json",
            lambda b: b.replace(b'"metrics": {}', b'"metrics": {"score": 1}'),
        ),
    ),
    "an entry with a checksum to fit": ("entries", forge),
    "an entry gone": (
        "entries",
        lambda r: (r.root / "entries" / f"{r.get('mail@live').id}.json").unlink(),
    ),
    "a line of the log": (
        "moves.jsonl",
        lambda r: edit(r.root / "tasks" / "mail" / "moves.jsonl", other_stage),
    ),
    "a line dropped": (
        "moves.jsonl",
        lambda r: edit(r.root / "tasks" / "mail" / "moves.jsonl", drop_line(2)),
    ),
    "the last line dropped": (
        "moves.jsonl",
        lambda r: edit(r.root / "tasks" / "mail" / "moves.jsonl", drop_line(-1)),
    ),
    "the log gone": (
        "moves.jsonl",
        lambda r: (r.root / "tasks" / "mail" / "moves.jsonl").unlink(),
    ),
    "the head": (
        "head.json",
        lambda r: edit(head_file(r), lambda b: b.replace(b'"version": 6', b'"version": 5')),
    ),
    "the head gone": ("head.json", lambda r: head_file(r).unlink()),
    "the pointer gone": (
        "current",
        lambda r: (r.root / "tasks" / "mail" / "current").unlink(),
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_one_line_that_names_the_file(what: str, tmp_path: Path) -> None:
    registry = filled(tmp_path)
    named, change = TAMPERED[what]
    change(registry)
    with pytest.raises(TamperedError) as caught:
        registry.folder("mail@live")
    text = str(caught.value)
    assert named in text.partition(":")[0]
    assert text.endswith(f"; run: stillhouse registry verify --registry {registry.root}")
    assert "\n" not in text
    problems = registry.verify()
    assert len(problems) >= 1
    assert named in problems[0]
    if named in ("objects", "entries"):  # what is live is damaged: there is a way back
        with pytest.raises(TamperedError):
            registry.promote("mail@live", reason="", by="")
        registry.roll_back("mail", reason="damaged", by="")
        assert registry.folder("mail@live") == (registry.root / "live" / "mail").resolve()
    else:
        with pytest.raises(TamperedError):
            registry.roll_back("mail", reason="", by="")


def test_a_link_that_leads_elsewhere_is_found_and_mended(tmp_path: Path) -> None:
    registry = filled(tmp_path)
    link = registry.root / "live" / "mail"
    link.unlink()
    link.symlink_to(tmp_path)
    (problem,) = registry.verify()
    assert problem.startswith(f"{link}: does not lead")
    registry.promote("mail@next", reason="", by="")
    assert registry.verify() == []
    inner = registry.root / "tasks" / "mail" / "current" / "live"
    inner.unlink()
    inner.symlink_to(registry.folder("mail@previous"))
    (problem,) = registry.verify()
    assert "does not lead to the live student" in problem


def test_a_damaged_copy_is_mended_by_adding_it_again(tmp_path: Path) -> None:
    registry = filled(tmp_path)
    entry = registry.get("mail@live")
    edit(registry.folder(entry.id) / "config.json", lambda b: b"{}")
    assert len(registry.verify()) == 1
    assert added(registry, "b").id == entry.id
    assert registry.verify() == []
    assert registry.folder(entry.id).name == entry.digest


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(draw=data())
def test_any_changed_byte_is_found(draw: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("bytes")
    shutil.copytree(template(tmp_path_factory), place / "registry", symlinks=True)
    registry = Registry(place / "registry")
    files = sorted(p for p in registry.root.rglob("*") if p.is_file() and p.name != ".lock")
    files = [p for p in files if "current" not in p.parts and "live" not in p.parts]
    path = draw.draw(sampled_from(files))  # type: ignore[attr-defined]
    text = path.read_bytes()
    at = draw.draw(integers(0, len(text) - 1))  # type: ignore[attr-defined]
    bit = draw.draw(integers(0, 7))  # type: ignore[attr-defined]
    changed = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
    edit(path, lambda _: changed)
    if path.suffix == ".json" and path.parent.name != "sub" and "objects" not in path.parts:
        if _same_json(text, changed):
            return  # white space between words
    assert registry.verify() != [], (path, at, bit)


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


_MADE: list[Path] = []


def template(factory: pytest.TempPathFactory) -> Path:
    if not _MADE:
        _MADE.append(filled(factory.mktemp("template")).root)
    return _MADE[0]
