"""The run folder: a stage is there whole or not at all, and a kill loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from stillhouse.core import stage_files
from stillhouse.core.errors import RunFolderError
from stillhouse.core.runfolder import (
    KEY_FILE,
    MANIFEST,
    Manifest,
    Outcome,
    RunFolder,
    StageKey,
    hash_folder,
)
from stillhouse.core.section_dump import dump_section
from stillhouse.core.stage_files import SEEN, hash_file

KEY = StageKey("ask", {"traffic": "abc"}, {"alpha": 0.5}, {"stillhouse": "1"}, 0)


def other(**changes: object) -> StageKey:
    """The key with fields replaced."""
    fields = {name: getattr(KEY, name) for name in StageKey.__dataclass_fields__}
    return StageKey(**{**fields, **changes})  # type: ignore[arg-type]


def finished(run: RunFolder, key: StageKey = KEY, text: str = "data") -> Manifest:
    """A stage that wrote two files, one of them measured."""
    work = run.open_partial(key)
    (work / "sub").mkdir(exist_ok=True)
    (work / "sub" / "out.txt").write_text(text)
    (work / "timings.json").write_text("{}")
    outcome = Outcome({"queries": 3}, cost_usd=0.5, measured=frozenset({"timings.json"}))
    return run.finish(key, outcome, seconds=1.5, peak_rss_mb=10.0)


def test_a_finished_stage_is_found_again_as_it_was_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    written = finished(run)
    assert run.look(KEY).manifest == written == RunFolder(tmp_path / "run").manifest("ask")
    assert written.outputs == {"sub/out.txt": hash_file(run.stage("ask") / "sub" / "out.txt")}
    assert (written.summary, written.cost_usd, written.seconds) == ({"queries": 3}, 0.5, 1.5)
    assert not run.partial("ask").exists()
    assert sorted(hash_folder(run.stage("ask"))) == sorted(
        [KEY_FILE, MANIFEST, SEEN, "sub/out.txt", "timings.json"]
    )


@pytest.mark.parametrize(
    "key",
    [
        other(seed=1),
        other(inputs={"traffic": "abd"}),
        other(inputs={"traffic": "abc", "golden": "x"}),
        other(section={"alpha": 0.25}),
        other(versions={"stillhouse": "2"}),
    ],
)
def test_a_stage_under_another_key_is_not_current(tmp_path: Path, key: StageKey) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    assert run.look(key).manifest is None
    assert run.look(KEY).manifest is not None


def test_a_stage_whose_file_is_gone_is_not_current(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    (run.stage("ask") / "sub" / "out.txt").unlink()
    assert run.look(KEY).manifest is None


@pytest.mark.parametrize("name", ["sub/out.txt", "timings.json"])
@pytest.mark.parametrize("text", ["DATA", "da", ""], ids=["edited", "cut off", "emptied"])
def test_a_stage_whose_file_was_changed_is_not_current(
    tmp_path: Path, name: str, text: str
) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    assert run.look(KEY).manifest is not None
    path = run.stage("ask") / name
    held, times = path.read_text(), path.stat()
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been written
    assert run.look(KEY).manifest is None
    assert run.standing(KEY) == (None, (name,))
    path.write_text(held)
    assert run.look(KEY).manifest is not None


def test_a_settled_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    read: list[str] = []

    def hashed(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(stage_files, "hash_file", hashed)
    monkeypatch.setattr(stage_files, "SETTLED_NS", -1)  # the files are as good as old
    assert run.look(KEY).manifest is not None
    assert sorted(read) == ["out.txt", "timings.json"]
    assert run.look(KEY).manifest is not None
    assert len(read) == 2
    out = run.stage("ask") / "sub" / "out.txt"
    times = out.stat()
    out.write_text("DATA")  # the same size and, in a moment, the same modification time
    os.utime(out, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run.look(KEY).manifest is None
    assert read[2:] == ["out.txt"]


def test_a_file_as_young_as_the_last_look_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    assert run.look(KEY).manifest is not None
    read: list[Path] = []
    monkeypatch.setattr(stage_files, "hash_file", lambda path: (read.append(path), "x")[1])
    assert run.look(KEY).manifest is None
    assert len(read) == 2


def test_a_file_as_young_as_the_beginning_of_a_long_look_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    read: list[str] = []

    def slow(path: Path) -> str:
        time.sleep(0.05)
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(stage_files, "hash_file", slow)
    assert run.look(KEY).manifest is not None
    out, seen = run.stage("ask") / "sub" / "out.txt", run.stage("ask") / SEEN
    # It is old enough by when the look was written down, and not by when its bytes were read.
    age = seen.stat().st_ctime_ns - out.stat().st_ctime_ns
    monkeypatch.setattr(stage_files, "SETTLED_NS", age - 1)
    read.clear()
    assert run.look(KEY).manifest is not None
    assert "out.txt" in read


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_file_that_cannot_be_read_is_an_error_and_makes_nothing_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    run = RunFolder(tmp_path)
    finished(run)

    def broken(path: Path) -> str:
        raise OSError(error, os.strerror(error), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(stage_files, "hash_file", broken)
        with pytest.raises(RunFolderError, match=r"out\.txt: cannot be read"):
            run.look(KEY)
    assert run.look(KEY).manifest is not None


def test_a_folder_in_a_files_place_is_a_change(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    out = run.stage("ask") / "sub" / "out.txt"
    out.unlink()
    out.mkdir()
    assert run.standing(KEY).changed == ("sub/out.txt",)
    out.rmdir()
    out.parent.rmdir()
    out.parent.write_text("")
    assert run.standing(KEY).changed == ("sub/out.txt",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"files": 3}',
        '{"files": {"sub/out.txt": [1]}}',
        '{"began": 9e99, "files": {"sub/out.txt": [1]}}',
        '{"began": 99999999999999999999, "files": {"sub/out.txt": [1]}}',
    ],
)
def test_a_damaged_last_look_is_no_look(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    (run.stage("ask") / SEEN).write_text(text)
    assert run.look(KEY).manifest is not None


def test_a_folder_that_cannot_be_written_is_read_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    finished(run)

    def full(*_: object) -> None:
        raise RunFolderError("read-only file system")

    monkeypatch.setattr(stage_files, "write_json", full)
    read: list[str] = []
    monkeypatch.setattr(stage_files, "hash_file", lambda p: (read.append(p.name), hash_file(p))[1])
    assert run.look(KEY).manifest is not None
    assert run.look(KEY).manifest is not None
    assert len(read) == 4


def test_a_card_is_the_users_to_edit(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    work = run.open_partial(KEY)
    (work / "README.md").write_text("# Model\n")
    run.finish(KEY, Outcome(measured=frozenset({"README.md", "none.json"})), 1.0, 1.0)
    (run.stage("ask") / "README.md").write_text("# My model\n")
    assert run.look(KEY).manifest is not None


def test_an_older_manifest_without_measured_files_is_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    path = run.stage("ask") / MANIFEST
    raw = json.loads(path.read_text())
    del raw["measured"]
    path.write_text(json.dumps(raw))
    assert run.look(KEY).manifest is not None


class Section(BaseModel):
    alpha: float = 0.5
    keep_head: bool = False


def test_a_key_of_the_recipe_that_is_new_and_at_its_default_makes_nothing_stale(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)
    old = finished(run, other(section={"student": {"alpha": 0.5}}))
    key = other(section={"student": dump_section(Section())})
    assert key.digest != old.digest
    assert run.look(key).manifest == old
    for changed in (Section(keep_head=True), Section(alpha=0.25)):
        assert run.look(other(section={"student": dump_section(changed)})).manifest is None
    work = run.open_partial(other(section={"student": {"alpha": 0.5}}))
    (work / "half.txt").write_text("half")
    assert (run.open_partial(key) / "half.txt").exists()


def test_a_linked_stage_is_replaced_and_what_it_links_to_stays(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "1"), RunFolder(tmp_path / "2")
    finished(first)
    second.root.mkdir()
    second.stage("ask").symlink_to(first.stage("ask"), target_is_directory=True)
    assert second.look(KEY).manifest is not None
    finished(second, other(seed=1), text="new")
    assert (second.stage("ask") / "sub" / "out.txt").read_text() == "new"
    assert (first.stage("ask") / "sub" / "out.txt").read_text() == "data"


def test_the_order_of_a_keys_parts_does_not_matter() -> None:
    one = other(inputs={"a": "1", "b": "2"}, section={"x": (1, 2), "y": None})
    two = other(inputs={"b": "2", "a": "1"}, section={"y": None, "x": [1, 2]})
    assert one.digest == two.digest


def test_equal_outputs_have_equal_hashes_whatever_was_measured(tmp_path: Path) -> None:
    one = finished(RunFolder(tmp_path / "1"))
    two = finished(RunFolder(tmp_path / "2"))
    three = finished(RunFolder(tmp_path / "3"), text="other data")
    assert one.output_hash == two.output_hash != three.output_hash


def test_the_working_folder_of_a_killed_try_is_handed_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (run.open_partial(KEY) / "half.txt").write_text("half")
    assert (run.open_partial(KEY) / "half.txt").read_text() == "half"


@pytest.mark.parametrize("damage", ["other key", "no marker", "bad marker"])
def test_a_working_folder_of_unknown_or_other_key_is_thrown_away(
    tmp_path: Path, damage: str
) -> None:
    run = RunFolder(tmp_path)
    work = run.open_partial(KEY)
    (work / "half.txt").write_text("half")
    if damage == "no marker":
        (work / KEY_FILE).unlink()
    elif damage == "bad marker":
        (work / KEY_FILE).write_text("{")
    key = other(seed=1) if damage == "other key" else KEY
    assert sorted(p.name for p in run.open_partial(key).iterdir()) == [KEY_FILE]


def test_the_old_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run, text="old")
    run.open_partial(other(seed=1))
    assert (run.stage("ask") / "sub" / "out.txt").read_text() == "old"
    finished(run, other(seed=1), text="new")
    assert (run.stage("ask") / "sub" / "out.txt").read_text() == "new"


KILL_POINTS = ("before_manifest", "before_settle", "while_removing_old", "before_rename")


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_sigkill_while_finishing_loses_nothing(tmp_path: Path, point: str) -> None:
    run = RunFolder(tmp_path)
    finished(run, text="old")
    code = f"""
        import os, pathlib, shutil, signal
        from stillhouse.core import runfolder
        from stillhouse.core.runfolder import Outcome, RunFolder, StageKey

        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)

        run = RunFolder(pathlib.Path({str(tmp_path)!r}))
        key = StageKey("ask", {{"traffic": "abc"}}, {{"alpha": 0.5}}, {{"stillhouse": "1"}}, 1)
        (run.open_partial(key) / "new.txt").write_text("new")
        remove = shutil.rmtree
        def half(folder):
            remove(folder / "sub")
            die()
        if {point!r} == "before_manifest":
            runfolder.write_json = die
        elif {point!r} == "before_settle":
            run._settle = die
        elif {point!r} == "while_removing_old":
            shutil.rmtree = half
        else:
            shutil.rmtree = lambda folder: (remove(folder), die())
        run.finish(key, Outcome({{"n": 1}}), 1.0, 1.0)
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL

    key = other(seed=1)
    manifest = run.look(key).manifest
    if point == "before_manifest":  # not finished: the work is handed back, the old is untouched
        assert manifest is None
        assert (run.open_partial(key) / "new.txt").read_text() == "new"
        assert (run.stage("ask") / "sub" / "out.txt").read_text() == "old"
        manifest = run.finish(key, Outcome({"n": 1}), 1.0, 1.0)
    assert manifest is not None
    assert (run.stage("ask") / "new.txt").read_text() == "new"
    assert list(manifest.outputs) == ["new.txt"]
    assert not run.partial("ask").exists()
    assert run.look(key).manifest == manifest


def test_a_full_disk_while_finishing_keeps_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    (run.open_partial(KEY) / "new.txt").write_text("new")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match="the disk is full"):
            run.finish(KEY, Outcome(), 1.0, 1.0)
    assert run.look(KEY).manifest is None
    assert (run.open_partial(KEY) / "new.txt").read_text() == "new"
    run.finish(KEY, Outcome(), 1.0, 1.0)
    assert run.look(KEY).manifest is not None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "x"}', '{"surplus": 1}'])
def test_a_damaged_manifest_says_which_file(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    (run.stage("ask") / MANIFEST).write_text(text)
    with pytest.raises(RunFolderError, match=MANIFEST):
        run.look(KEY)


def test_a_stage_never_run_has_no_manifest(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).manifest("ask") is None
    assert RunFolder(tmp_path).look(KEY).manifest is None


def test_two_runs_in_one_folder_are_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    other_run = RunFolder(run.root)
    with run.locked(), pytest.raises(RunFolderError, match="another run"), other_run.locked():
        pass
    with run.locked():
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
        import os, pathlib, signal
        from stillhouse.core.runfolder import RunFolder
        with RunFolder(pathlib.Path({str(tmp_path)!r})).locked():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    with RunFolder(tmp_path).locked():
        pass


def test_a_run_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    run = RunFolder(tmp_path / "file")
    with pytest.raises(RunFolderError, match="cannot be written"), run.locked():
        pass


@settings(deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=20), max_size=4))
def test_folder_hashes_name_content_and_place(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("hash")
    for name, data in files.items():
        (folder / f"d{name}").mkdir()
        (folder / f"d{name}" / name).write_bytes(data)
    hashes = hash_folder(folder)
    assert set(hashes) == {f"d{name}/{name}" for name in files}
    copy = tmp_path_factory.mktemp("copy") / "c"
    shutil.copytree(folder, copy)
    assert hash_folder(copy) == hashes
    for name, data in files.items():
        (copy / f"d{name}" / name).write_bytes(data + b"!")
        assert hash_folder(copy) != hashes


def test_the_manifest_on_disk_has_the_documented_keys(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    raw = json.loads((run.stage("ask") / MANIFEST).read_text())
    assert set(raw) == {
        "key",
        "digest",
        "outputs",
        "summary",
        "seconds",
        "cost_usd",
        "peak_rss_mb",
        "measured",
    }
    assert raw["key"] == KEY.as_json()
    assert raw["digest"] == KEY.digest


def test_a_look_makes_no_folder_where_the_stage_went_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    finished(run)
    manifest = run.manifest("ask")
    assert manifest is not None
    shutil.rmtree(run.stage("ask"))
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat(tmp_path))  # as a moment before
    changed = stage_files.changed_files(run.stage("ask"), manifest.outputs)
    assert changed == tuple(manifest.outputs)
    assert not os.path.lexists(run.stage("ask"))
