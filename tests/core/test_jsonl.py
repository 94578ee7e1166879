"""JSONL: errors name the line, files are whole or untouched, appended lines survive a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import DataError, RunFolderError
from stillhouse.core.jsonl import (
    AppendOnlyFile,
    disk_errors,
    read_json,
    read_objects,
    read_records,
    write_atomic,
    write_json,
    write_records,
)
from stillhouse.core.records import Message, Query, Rejection

QUERY = Query(id="a", messages=(Message(role="user", content="héllo\nworld"),))


def test_blank_lines_are_skipped_and_lines_counted_from_one(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('\n{"a": 1}\n  \n{"a": 2}', encoding="utf-8")
    assert list(read_objects(path)) == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert [value for _, value in read_objects(path)] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    with pytest.raises(DataError) as caught:
        list(read_objects(path))
    assert f"{path} line 3" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_objects_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "f.jsonl"
    path.write_bytes(data)
    said = ""
    found: list[tuple[int, dict[str, object]]] = []
    try:
        found = list(read_objects(path))
    except DataError as error:
        said = str(error)
    assert not said or str(path) in said
    assert all(isinstance(value, dict) for _, value in found)


def test_a_missing_file_and_a_folder_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_objects(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_objects(tmp_path))


def test_a_line_that_is_no_record_names_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    good = QUERY.to_json()
    bad = json.dumps({"id": "b", "messages": [{"role": "user", "content": 3}]})
    path.write_text(f"{good}\n{bad}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read_records(path, Query))
    assert "line 2" in str(caught.value)
    assert "messages.0.content" in str(caught.value)


def test_prepare_reshapes_the_object(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"t": "x"}\n', encoding="utf-8")

    def prepare(raw: dict[str, object]) -> object:
        return {"id": "1", "messages": [{"role": "user", "content": raw["t"]}]}

    assert [q.last_user_text for q in read_records(path, Query, prepare)] == ["x"]


def test_records_written_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "f.jsonl"
    records = [QUERY, QUERY.model_copy(update={"id": "b"})]
    assert write_records(path, records) == 2
    assert list(read_records(path, Query)) == records
    assert os.listdir(path.parent) == ["f.jsonl"]


def test_json_objects_are_written_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"ü": [1, None]})
    assert read_json(tmp_path / "f.json") == {"ü": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "f.json", {"x": float("nan")})
    assert read_json(tmp_path / "f.json") == {"ü": [1, None]}


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_damaged_json_file_is_a_run_folder_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"f\.json"):
        read_json(path)


def test_a_failing_source_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, [QUERY])
    before = path.read_bytes()

    def source() -> Iterator[Query]:
        yield QUERY
        raise KeyError("source broke")

    with pytest.raises(KeyError):
        write_records(path, source())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f.jsonl"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.jsonl"
    write_records(path, [QUERY])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        write_records(path, [QUERY, QUERY])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f.jsonl"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "cannot be written"),
        (errno.EIO, "cannot be written"),
        (errno.EFBIG, "cannot be written"),
        (errno.ENAMETOOLONG, "cannot be written"),
    ],
)
def test_every_failed_write_is_one_clear_line(code: int, said: str) -> None:
    with pytest.raises(RunFolderError, match=said), disk_errors(Path("some/file")):
        raise OSError(code, os.strerror(code))


def test_a_file_where_a_folder_should_be_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "f.jsonl", lambda handle: None)


def test_a_file_size_limit_of_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    # A real failing write: the kernel refuses to let the file grow beyond RLIMIT_FSIZE.
    code = f"""
        import pathlib, resource
        from stillhouse.core.errors import RunFolderError
        from stillhouse.core.jsonl import AppendOnlyFile, write_atomic
        folder = pathlib.Path({str(tmp_path)!r})
        write_atomic(folder / "whole", lambda handle: handle.write("old"))
        lines = AppendOnlyFile(folder / "lines")
        lines.append(["first"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for attempt in (
            lambda: write_atomic(folder / "whole", lambda handle: handle.write("x" * 10_000)),
            lambda: lines.append(["y" * 3000, "z" * 3000]),
        ):
            try:
                attempt()
            except RunFolderError:
                continue
            raise SystemExit("no error")
        lines.append(["second"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)
    assert (tmp_path / "whole").read_text() == "old"
    assert (tmp_path / "lines").read_text() == "first\nsecond\n"
    assert sorted(os.listdir(tmp_path)) == ["lines", "whole"]


def test_appended_lines_are_there_at_once_and_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f.jsonl"
    file = AppendOnlyFile(path)
    file.append(["a", "b"])
    file.append([])
    assert path.read_text() == "a\nb\n"
    file.close()
    again = AppendOnlyFile(path)
    again.append(["c"])
    again.close()
    assert path.read_text() == "a\nb\nc\n"


@settings(deadline=None)
@given(st.lists(st.text("ab \té", max_size=8), max_size=5), st.binary(max_size=300))
def test_a_torn_last_line_is_cut_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], tail: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "f.jsonl"
    whole = "".join(line + "\n" for line in lines).encode()
    torn = tail.replace(b"\n", b"")
    path.write_bytes(whole + torn)
    file = AppendOnlyFile(path)
    file.append(["next"])
    file.close()
    assert path.read_bytes() == whole + b"next\n"


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 200_000])
def test_a_long_torn_line_is_cut_across_blocks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"kept\n" + b"x" * size)
    AppendOnlyFile(path).close()
    assert path.read_bytes() == b"kept\n"


def test_a_second_writer_is_an_error(tmp_path: Path) -> None:
    first = AppendOnlyFile(tmp_path / "f.jsonl")
    with pytest.raises(RunFolderError, match="another process"):
        AppendOnlyFile(tmp_path / "f.jsonl")
    first.close()
    AppendOnlyFile(tmp_path / "f.jsonl").close()


def test_a_full_disk_takes_back_a_partial_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.jsonl"
    file = AppendOnlyFile(path)
    file.append(["kept"])
    really_write = os.write
    calls = 0

    def fills_up(fd: int, data: bytes | memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return really_write(fd, bytes(data[:3]))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fills_up)
        with pytest.raises(RunFolderError, match="the disk is full"):
            file.append(["lost line", "and another"])
    assert path.read_text() == "kept\n"
    file.append(["after space was freed"])
    file.close()
    assert path.read_text() == "kept\nafter space was freed\n"


def test_a_short_write_is_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: really_write(fd, bytes(data[:2])))
    file = AppendOnlyFile(tmp_path / "f.jsonl")
    file.append(["a long line", "ü"])
    file.close()
    assert (tmp_path / "f.jsonl").read_text(encoding="utf-8") == "a long line\nü\n"


def test_lines_acknowledged_before_a_sigkill_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    code = f"""
        import pathlib, sys
        from stillhouse.core.jsonl import AppendOnlyFile
        file = AppendOnlyFile(pathlib.Path({str(path)!r}))
        number = 0
        while True:
            line = '{{"query_id": "%d", "reason": "r", "detail": "%s"}}' % (number, "d" * 5000)
            file.append([line])
            print(number, flush=True)
            number += 1
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 60:
                break
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([60, *(int(line) for line in child.stdout if line.endswith("\n"))])
    AppendOnlyFile(path).close()  # cuts a torn line, as the next start does
    ids = [int(record.query_id) for record in read_records(path, Rejection)]
    assert ids == list(range(len(ids)))
    assert len(ids) > acknowledged
