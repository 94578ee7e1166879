"""GGUF to a plain transformers folder, converted once and kept in the user's cache.

Unpacking a quantised file takes tens of seconds; the safetensors copy loads in about one. Knows
files and transformers' GGUF reader; does not know who asks or what the weights are for.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require
from stillhouse.core.stage_files import hash_file
from stillhouse.models.gguf_file import check_gguf
from stillhouse.models.quiet import quiet_transformers


class Converted(NamedTuple):
    """A transformers folder made from a GGUF file, and the hash of that file."""

    folder: Path
    content_hash: str  # 32 hex digits of the GGUF


def cache_root() -> Path:
    """`$STILLHOUSE_CACHE`, else `~/.cache/stillhouse`."""
    given = os.environ.get("STILLHOUSE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "stillhouse"


def converted_gguf(path: Path, source: str) -> Converted:
    """The file's weights as float32 safetensors with config, tokenizer and chat template.

    Kept under `cache_root()`, keyed by the file's content and the version of transformers; written
    under a temporary name and renamed, by one process at a time.

    Raises:
        UserError: not a GGUF file, or one that cannot be unpacked into trainable weights.
    """
    check_gguf(path, source)
    content_hash = hash_file(path)
    root = cache_root() / "converted"
    folder = root / f"{content_hash}-transformers-{transformers.__version__}"
    if folder.is_dir():
        return Converted(folder, content_hash)
    require("gguf", "train", "reading a GGUF file")
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{content_hash}.lock"):
            if not folder.is_dir():
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                _convert(path, source, partial)
                os.replace(partial, folder)
    return Converted(folder, content_hash)


def _convert(path: Path, source: str, out: Path) -> None:
    try:
        # The reader draws a bar of its own, which no logging setting turns off.
        with quiet_transformers(), redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
    except (ValueError, KeyError, RuntimeError, AttributeError, OSError) as error:
        raise UserError(
            source,
            f"this GGUF cannot be unpacked into trainable weights: {error}",
            action="use gguf:PATH to ask it only, or hf: with the original weights",
        ) from None
    try:
        with quiet_transformers():
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    except SafetensorError as error:
        raise RunFolderError(f"{out}: cannot be written ({error})") from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
