"""The run folder: one sub-folder a stage, written whole or not at all (DESIGN section 2).

A stage works in `NAME.partial`; when it is done its `manifest.json` is written there, last, and the
folder is renamed to `NAME`. A kill between the two loses nothing: the next start renames. A stage
whose manifest matches its key is skipped, unless a file of it was changed since. The partial
folder of a killed stage is handed back to the next try if its key is the same, else it is thrown
away. Keys are the same where all parts are, but for keys of the recipe's sections that did not
exist then and are at their default (`core.section_dump`). Knows keys and hashes, not what stages
do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors, read_json, write_json
from stillhouse.core.locks import folder_lock
from stillhouse.core.section_dump import says_the_same
from stillhouse.core.stage_files import SEEN, changed_files, hash_file

MANIFEST: Final = "manifest.json"
KEY_FILE: Final = ".key.json"
CARD: Final = "README.md"  # for people, who may edit it


@dataclass(frozen=True, slots=True)
class StageKey:
    """All that a stage's result depends on. Equal keys mean equal artifacts.

    `inputs` maps names to content hashes (of user files, or of earlier stages' outputs);
    `section` is the part of the recipe the stage reads; `versions` are of what computes it.
    """

    stage: str
    inputs: Mapping[str, str]
    section: Mapping[str, object]
    versions: Mapping[str, str]
    seed: int

    def as_json(self) -> dict[str, object]:
        """A plain object, with a fixed order of keys."""
        return {
            "stage": self.stage,
            "seed": self.seed,
            "inputs": dict(sorted(self.inputs.items())),
            "section": self.section,
            "versions": dict(sorted(self.versions.items())),
        }

    @property
    def digest(self) -> str:
        """32 hex digits."""
        text = json.dumps(self.as_json(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]

    def is_of(self, made: object) -> bool:
        """Whether something that was made under an older key, read from JSON, is of this one."""
        return says_the_same(made, self.as_json())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage hands back beside its files.

    `measured` files hold timings and the like: they are left out of the output hashes, so that
    equal runs have equal manifests but for `measured`, `seconds`, `cost_usd` and `peak_rss_mb`.
    """

    summary: Mapping[str, object] = field(default_factory=dict)
    cost_usd: float = 0.0
    measured: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says of a finished stage.

    `measured` are hashes of files that no later stage's key rests on; older manifests have none.
    """

    key: Mapping[str, object]
    digest: str
    outputs: Mapping[str, str]
    summary: Mapping[str, object]
    seconds: float
    cost_usd: float
    peak_rss_mb: float
    measured: Mapping[str, str] = field(default_factory=dict)

    @property
    def output_hash(self) -> str:
        """One hash over all outputs: the input of the stages that follow."""
        text = json.dumps(dict(sorted(self.outputs.items())))
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


class Standing(NamedTuple):
    """How a stage stands: its manifest, where it is finished under the key and its files are those
    of then; else which of them are gone or changed, where that is the reason."""

    manifest: Manifest | None
    changed: tuple[str, ...] = ()


class RunFolder:
    """A run's folder on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(self, name: str) -> Path:
        """Folder of a finished stage."""
        return self.root / name

    def partial(self, name: str) -> Path:
        """Folder of a stage at work."""
        return self.root / f"{name}.partial"

    @property
    def store(self) -> Path:
        """Paid answers; outlives every stage and is never deleted."""
        return self.root / "store"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: two runs in one folder at a time are an error.

        Raises:
            RunFolderError: another process holds it, or it cannot be written.
        """
        said = (
            "another run is at work in this folder; wait for it, or choose another with --run-dir"
        )
        with folder_lock(self.root, ".lock", said):
            yield

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a finished stage, or `None`.

        Raises:
            RunFolderError: it is there but damaged.
        """
        path = self.stage(name) / MANIFEST
        if not path.exists():
            return None
        raw = read_json(path)
        try:
            return Manifest(**raw)  # type: ignore[arg-type]
        except TypeError as error:
            raise RunFolderError(f"{path}: is damaged ({error}); delete its folder") from None

    def look(self, key: StageKey) -> Standing:
        """How the stage stands, once what a kill left between the two last steps is settled."""
        self._settle(key.stage)
        return self.standing(key)

    def standing(self, key: StageKey) -> Standing:
        """Whether the stage is finished under this key; nothing that a kill left is settled."""
        manifest = self.manifest(key.stage)
        if manifest is None or not key.is_of(manifest.key):
            return Standing(None)
        kept = {**manifest.outputs, **manifest.measured}
        changed = changed_files(self.stage(key.stage), kept)
        return Standing(None if changed else manifest, changed)

    def open_partial(self, key: StageKey) -> Path:
        """The working folder for this key: the one a killed try left, or a fresh one."""
        folder = self.partial(key.stage)
        marker = folder / KEY_FILE
        with disk_errors(folder):
            if folder.exists():
                try:
                    same = marker.exists() and key.is_of(read_json(marker).get("key"))
                except RunFolderError:
                    same = False
                if not same:
                    shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                write_json(marker, {"digest": key.digest, "key": key.as_json()})
        return folder

    def finish(
        self, key: StageKey, outcome: Outcome, seconds: float, peak_rss_mb: float
    ) -> Manifest:
        """Write the manifest of the working folder, last, and rename the folder into place."""
        partial = self.partial(key.stage)
        found = hash_folder(partial)
        for own in (MANIFEST, KEY_FILE, SEEN):
            found.pop(own, None)
        measured = {name: found.pop(name) for name in sorted(outcome.measured & found.keys())}
        manifest = Manifest(
            key=key.as_json(),
            digest=key.digest,
            outputs=found,
            summary=dict(outcome.summary),
            seconds=seconds,
            cost_usd=outcome.cost_usd,
            peak_rss_mb=peak_rss_mb,
            measured={n: digest for n, digest in measured.items() if Path(n).name != CARD},
        )
        write_json(
            partial / MANIFEST,
            {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__},
        )
        self._settle(key.stage)
        return manifest

    def _settle(self, name: str) -> None:
        """Rename a working folder that has its manifest."""
        partial, final = self.partial(name), self.stage(name)
        if not (partial / MANIFEST).exists():
            return
        with disk_errors(final):
            if final.is_symlink():  # shared with another run, which keeps it
                final.unlink()
            elif final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)


def hash_folder(folder: Path) -> dict[str, str]:
    """Relative path -> content hash, of every file below a folder."""
    return {
        str(path.relative_to(folder)): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
