"""Take a user's records out of the files of a run folder, and keep its manifests true.

Every file is rewritten whole under a temporary name. What a killed stage left half done is thrown
away, as are tables of numbers that have a row a query: `run` makes both again. Weights are left:
they are named, not mended. Knows files by their endings, not what stages mean by them.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors, read_json, void, write_atomic, write_json
from stillhouse.core.runfolder import MANIFEST, RunFolder
from stillhouse.core.stage_files import hash_file
from stillhouse.core.traces import Traces, line_of

# Tables of numbers by query: rows cannot be told apart without what made them.
ROWS: Final = frozenset({".npy", ".npz", ".parquet", ".arrow", ".safetensors"})
LINES: Final = frozenset({".csv", ".tsv", ".txt", ".log"})
# A folder that holds one of these holds a model: its vocabulary is no record of anybody.
OF_A_MODEL: Final = (
    "config.json",
    "tokenizer.json",
    "adapter_config.json",
    "model.safetensors",
    "adapter_model.safetensors",
)


def artifacts(root: Path, skip: frozenset[str]) -> Iterator[Path]:
    """The files of a run folder that may hold records, but for manifests, models and `skip`.

    `skip` are paths relative to the root.
    """
    models = {path.parent for name in OF_A_MODEL for path in root.rglob(name)}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.is_symlink() or path.name == MANIFEST:
            continue
        if str(path.relative_to(root)) in skip or models.intersection(path.parents):
            continue
        yield path


def throw_away_half_done(root: Path, *, dry_run: bool) -> list[str]:
    """Remove the working folders of killed stages, and files of killed writes. Says which."""
    found = [path for path in sorted(root.rglob("*.partial")) if path.is_dir()]
    found += [path for path in sorted(root.rglob("*.tmp")) if path.is_file()]
    names = [str(path.relative_to(root)) for path in found]
    if not dry_run:
        with disk_errors(root):
            for path in found:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    return names


def clean_file(path: Path, traces: Traces, *, dry_run: bool) -> int:
    """Take a user's records out of one file. Returns how many records or places it changed.

    A JSONL line that is no JSON is nobody's to read, so it goes when the file is rewritten.
    """
    if path.suffix == ".jsonl":
        return _clean_lines(path, traces, dry_run)
    if path.suffix == ".json":
        return _clean_json(path, traces, dry_run)
    if path.suffix in LINES:
        return _clean_text(path, lambda line: traces.without(line) == line, dry_run)
    if path.suffix == ".html":
        return _drop_if(path, lambda: _speaks_of(path, traces), dry_run)
    return _drop_if(path, lambda: path.suffix in ROWS, dry_run)


def _clean_lines(path: Path, traces: Traces, dry_run: bool) -> int:
    removed = changed = 0

    def lines() -> Iterator[str]:
        nonlocal removed, changed
        with path.open("rb") as handle:
            for raw in handle:
                try:
                    text = raw.decode("utf-8")
                    value = json.loads(text)
                except (ValueError, RecursionError):
                    removed += bool(raw.strip())
                    continue
                if traces.owns(value):
                    removed += 1
                    continue
                mended = traces.scrubbed(value)
                if mended != value:
                    changed += 1
                    text = line_of(mended) + "\n"
                yield text

    for _ in lines():
        pass
    found = removed + changed
    if found and not dry_run:
        removed = changed = 0

        write_atomic(path, lambda handle: handle.writelines(lines()))
    return found


def _clean_json(path: Path, traces: Traces, dry_run: bool) -> int:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: cannot be read as JSON ({error})") from None
    if traces.owns(value):
        return _drop_if(path, lambda: True, dry_run)
    mended = traces.scrubbed(value)
    if mended == value:
        return 0
    if not dry_run:
        text = json.dumps(mended, indent=2, ensure_ascii=False) + "\n"
        write_atomic(path, lambda handle: void(handle.write(text)))
    return 1


def _clean_text(path: Path, keep: Callable[[str], bool], dry_run: bool) -> int:
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(keepends=True)
    kept = [line for line in lines if keep(line)]
    if len(kept) < len(lines) and not dry_run:
        whole = "".join(kept).encode("utf-8", "replace").decode("utf-8")
        write_atomic(path, lambda handle: void(handle.write(whole)))
    return len(lines) - len(kept)


def _drop_if(path: Path, drop: Callable[[], bool], dry_run: bool) -> int:
    if not drop():
        return 0
    if not dry_run:
        with disk_errors(path):
            path.unlink(missing_ok=True)
    return 1


def _speaks_of(path: Path, traces: Traces) -> bool:
    said = html.unescape(path.read_text(encoding="utf-8", errors="replace"))
    return any(traces.without(line) != line for line in said.replace(">", "> ").splitlines())


def mend_manifest(
    run: RunFolder, stage: str, traces: Traces, changed: Collection[str] | None
) -> None:
    """Make a stage's manifest say what its files hold now.

    Its key stays: what was made from these files no longer fits their hashes, and is made again.
    `changed` are the files to hash anew, relative to the stage's folder; `None`: all.
    """
    folder = run.stage(stage)
    path = folder / MANIFEST
    if not path.exists():
        return
    raw = read_json(path)

    def again(kind: str) -> dict[str, object]:
        hashes = raw.get(kind, {})
        if not isinstance(hashes, dict):
            raise RunFolderError(f"{path}: is damaged ({kind}); delete its folder")
        return {
            name: hash_file(folder / name)
            if (changed is None or name in changed) and (folder / name).exists()
            else digest
            for name, digest in hashes.items()
        }

    now = {**raw, "outputs": again("outputs"), "summary": traces.scrubbed(raw.get("summary"))}
    if "measured" in raw:
        now["measured"] = again("measured")
    if now != raw:
        write_json(path, now)
