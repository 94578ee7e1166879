"""Write a signal cache: shard by shard, each whole or not at all, the manifest last.

A shard is written under a temporary name and renamed; its facts, with the checksum, follow in a
file beside it. A killed capture keeps the shards whose facts are there and whose bytes agree, and
writes the others again with the same bytes. Knows arrays and files; no model and no example.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors, read_json, write_json
from stillhouse.core.stage_files import hash_file
from stillhouse.models.signal_codec import Arrays, joined
from stillhouse.models.signal_layout import (
    DIGEST_BYTES,
    SIGNALS,
    CacheKey,
    CacheManifest,
    Layout,
    Shard,
)

_INDEX_BYTES: Final = 2 * DIGEST_BYTES + 16


class Named(NamedTuple):
    """One example as a cache knows it: digests of its id and of what its rows belong to."""

    example: bytes
    tokens: bytes
    rows: int


def digest(*parts: bytes) -> bytes:
    """16 bytes that depend on all parts and on where each ends."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.digest()[:DIGEST_BYTES]


class SignalWriter:
    """Writes the cache of one set of examples into `folder`.

    Args:
        folder: made if it is not there.
        key: what the cache holds good for.
        layout: how rows are encoded.
        examples: all of them, in order.
        shard_bytes: about how large a shard may become.
    """

    def __init__(
        self,
        folder: Path,
        key: CacheKey,
        layout: Layout,
        examples: Sequence[Named],
        shard_bytes: float,
    ) -> None:
        self.folder, self.key, self.layout, self.examples = folder, key, layout, examples
        self.shards = list(_cut(examples, layout, shard_bytes))
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the manifest is written."""
        return (self.folder / SIGNALS).exists()

    def shard(self, number: int) -> Shard | None:
        """The facts of a shard that is on disk, whole, and of this plan."""
        facts = self._facts(number)
        if not facts.exists():
            return None
        try:
            shard = Shard.model_validate(read_json(facts))
        except (RunFolderError, ValidationError):
            return None
        path = self.folder / shard.file
        whole = path.exists() and hash_file(path) == shard.sha256
        return shard if whole and shard.plan == self._plan(number) else None

    def write(self, number: int, parts: Sequence[Arrays]) -> Shard:
        """Write a shard from the arrays of its examples, in order."""
        named = self.examples[self.shards[number]]
        assert len(parts) == len(named)
        tensors = joined(parts)
        tensors |= {
            "example": _bytes([one.example for one in named]),
            "tokens": _bytes([one.tokens for one in named]),
            "first_row": _starts([one.rows for one in named]),
        }
        entries = 0
        if "in_row" in tensors:
            counts = [int(part["in_row"].long().sum()) for part in parts]
            tensors["first_entry"] = _starts(counts)
            entries = sum(counts)
        path = self.folder / f"shard-{number:05}.safetensors"
        temporary = path.with_suffix(".tmp")
        with shard_errors(path):
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, path)
            shard = Shard(
                file=path.name,
                sha256=hash_file(path),
                size_bytes=path.stat().st_size,
                examples=len(named),
                rows=sum(one.rows for one in named),
                entries=entries,
                plan=self._plan(number),
            )
        write_json(self._facts(number), shard.model_dump(mode="json"))
        return shard

    def finish(self, hard_rows: int = 0, unaligned: dict[str, int] | None = None) -> CacheManifest:
        """Write the manifest, last, and put away the facts beside the shards."""
        shards = []
        for number in range(len(self.shards)):
            shard = self.shard(number)
            assert shard is not None, f"shard {number} is not written"
            shards.append(shard)
        manifest = CacheManifest(
            key=self.key,
            layout=self.layout,
            shards=tuple(shards),
            examples=len(self.examples),
            rows=sum(one.rows for one in self.examples),
            hard_rows=hard_rows,
            unaligned=unaligned or {},
        )
        write_json(self.folder / SIGNALS, manifest.model_dump(mode="json"))
        for number in range(len(self.shards)):
            self._facts(number).unlink()
        return manifest

    def _facts(self, number: int) -> Path:
        return self.folder / f"shard-{number:05}.json"

    def _plan(self, number: int) -> str:
        """What a shard is to hold: key, layout, and each example with its rows."""
        parts = [self.key.to_json().encode(), self.layout.to_json().encode()]
        for one in self.examples[self.shards[number]]:
            parts += [one.example, one.tokens, one.rows.to_bytes(8, "little")]
        return digest(*parts).hex()


def _cut(examples: Sequence[Named], layout: Layout, shard_bytes: float) -> Iterator[slice]:
    """Runs of examples whose rows, at their largest, fill a shard; never none."""
    start, size = 0, 0.0
    for number, one in enumerate(examples):
        need = one.rows * layout.most_row_bytes + _INDEX_BYTES
        if number > start and size + need > shard_bytes:
            yield slice(start, number)
            start, size = number, 0.0
        size += need
    yield slice(start, len(examples))


def _bytes(digests: Sequence[bytes]) -> Tensor:
    raw = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8)
    return raw.reshape(len(digests), DIGEST_BYTES)


def _starts(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


@contextmanager
def shard_errors(path: Path) -> Iterator[None]:
    """`disk_errors`, also for what safetensors raises.

    Raises:
        RunFolderError: the file cannot be written or read.
    """
    try:
        with disk_errors(path):
            yield
    except SafetensorError as error:
        full = any(mark in str(error) for mark in ("os error 28", "os error 122", "No space left"))
        said = "the disk is full; free some space and run it again" if full else str(error)
        raise RunFolderError(f"{path}: {said}") from error
