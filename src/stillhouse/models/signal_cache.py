"""Read a signal cache: memory-mapped, checked before the first row, and never a wrong row.

Only the index (digests and offsets) is in memory; the rows of a batch are read when they are asked
for, from shards that stay on disk. Everything the rows depend on is compared, and what does not
agree is one error. Knows files and layouts; no example and no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.stage_files import hash_file
from stillhouse.models.head import Head
from stillhouse.models.signal_codec import ENTRY_ARRAYS, Stored, decode, joined
from stillhouse.models.signal_layout import Layout, read_cache_manifest
from stillhouse.models.signal_writer import shard_errors

FIELD: Final = "train.signals"
_INDEX: Final = frozenset({"example", "tokens", "first_row", "first_entry"})
_SAYS: Final = {
    "teacher": "another teacher",
    "teacher_revision": "another revision of the teacher",
    "tokenizer": "another tokenizer",
    "chat_template": "another chat template",
    "max_tokens": "inputs cut at another length (student.max_tokens)",
    "precision": "a teacher in another precision",
    "read_from": "another source",
}


class SignalCache:
    """An open cache.

    Args:
        folder: holds signals.json and the shards.
        check: compare every shard's checksum now: one reading of the files. Several ranks may
            share that work: give `part` of `parts`.

    Raises:
        RunFolderError: missing, damaged, or a checksum that does not agree.
    """

    def __init__(self, folder: Path, *, check: bool = True, part: int = 0, parts: int = 1) -> None:
        self.folder = folder
        self.manifest = read_cache_manifest(folder)
        self._files: list[Any] = []
        index: dict[str, list[np.ndarray]] = {name: [] for name in _INDEX}
        first = 0
        self._first_example: list[int] = []
        for number, shard in enumerate(self.manifest.shards):
            path = folder / shard.file
            _check_size(path, shard.size_bytes)
            if check and number % parts == part and hash_file(path) != shard.sha256:
                raise _damaged(path)
            with shard_errors(path):
                file: Any = safe_open(path, framework="pt")
            self._files.append(file)
            for name in _INDEX & set(file.keys()):
                index[name].append(file.get_tensor(name).numpy())
            self._first_example.append(first)
            first += shard.examples
        self._offsets = index["first_row"]
        self._entry_offsets = index["first_entry"]
        self._tokens = np.concatenate(index["tokens"])
        self._names = [name for name in list(self._files[0].keys()) if name not in _INDEX]
        ids = [row.tobytes() for row in np.concatenate(index["example"])]
        self._at = {example: number for number, example in enumerate(ids)}
        if len(self._at) != self.manifest.examples:
            raise _damaged(folder)

    @property
    def layout(self) -> Layout:
        """How rows are encoded."""
        return self.manifest.layout

    def __len__(self) -> int:
        return self.manifest.examples

    def require(self, **wanted: object) -> None:
        """Compare the key with what a run has at hand; `None` is not known and not compared.

        Raises:
            UserError: the cache belongs to something else; names what.
        """
        for name, value in wanted.items():
            held = getattr(self.manifest.key, name)
            if value is not None and held != value:
                raise UserError(
                    FIELD,
                    f"{self.folder} was captured with {_SAYS[name]}: it holds {held!r}, this run "
                    f"has {value!r}",
                    action="remove that folder and run: stillhouse capture RECIPE",
                )

    def find(self, example: bytes, tokens: bytes, rows: int, name: str) -> int:
        """The number of an example, by the digests of its id and of its tokens.

        Raises:
            UserError: it is not there, or is there with other tokens; `name` says which.
        """
        number = self._at.get(example)
        if number is None:
            problem = f"{self.folder} holds nothing of example {name}"
        elif self._tokens[number].tobytes() != tokens or self.rows_of(number) != rows:
            problem = f"{self.folder} holds example {name} with other tokens"
        else:
            return number
        raise UserError(
            FIELD, problem, action="remove that folder and run: stillhouse capture RECIPE"
        )

    def rows_of(self, number: int) -> int:
        """Rows of one example."""
        shard, at = self._place(number)
        offsets = self._offsets[shard]
        return int(offsets[at + 1] - offsets[at])

    def read(self, numbers: Sequence[int], head: Head | None = None) -> Stored:
        """The signals of some examples, one after the other; touches their rows alone.

        Neighbours are read in one piece.
        """
        places = [self._place(number) for number in numbers]
        parts: list[dict[str, torch.Tensor]] = []
        for _, run in groupby(enumerate(places), key=lambda p: (p[1][0], p[1][1] - p[0])):
            inside = [place for _, place in run]
            parts.append(self._slice(inside[0][0], inside[0][1], inside[-1][1] + 1))
        return decode(self.layout, joined(parts), head)

    def _place(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_example, number, side="right")) - 1
        return shard, number - self._first_example[shard]

    def _slice(self, shard: int, start: int, end: int) -> dict[str, torch.Tensor]:
        rows = self._offsets[shard]
        found: dict[str, torch.Tensor] = {}
        for name in self._names:
            offsets = self._entry_offsets[shard] if name in ENTRY_ARRAYS else rows
            found[name] = self._files[shard].get_slice(name)[
                int(offsets[start]) : int(offsets[end])
            ]
        return found


def _check_size(path: Path, size: int) -> None:
    if not path.exists() or path.stat().st_size != size:
        raise _damaged(path)


def _damaged(path: Path) -> RunFolderError:
    return RunFolderError(
        f"{path}: is not what was captured (missing, cut or changed); remove its folder and run: "
        "stillhouse capture"
    )
