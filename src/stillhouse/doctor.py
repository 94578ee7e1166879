"""`stillhouse doctor`: what this machine and this installation can do. Changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

from stillhouse.core.machine import package_versions, this_machine
from stillhouse.core.optional import EXTRAS, available, pip_line, require

KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN")


def examine(folder: Path) -> dict[str, Any]:
    """All findings as a plain object: machine, accelerator, extras, keys (names only), disk."""
    machine = this_machine()
    return {
        "machine": machine._asdict(),
        "accelerator": _accelerator(),
        "disk_free_gb": round(shutil.disk_usage(folder).free / 2**30, 1),
        "packages": package_versions("stillhouse", "torch", "transformers", "peft", "xllamacpp"),
        "extras": {
            extra: {
                "installed": all(available(module) for module in modules),
                "missing": [module for module in modules if not available(module)],
                "install": pip_line(extra),
            }
            for extra, modules in EXTRAS.items()
        },
        "keys_set": [key for key in KEYS if os.environ.get(key)],
    }


def _accelerator() -> dict[str, Any]:
    if not available("torch"):
        return {"device": "unknown", "reason": "torch is not installed"}
    torch = require("torch", "train", "looking for a GPU")
    if not torch.cuda.is_available():
        return {"device": "cpu", "threads": torch.get_num_threads()}
    return {
        "device": "cuda",
        "name": torch.cuda.get_device_name(0),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "bf16": torch.cuda.is_bf16_supported(),
    }


def advice(findings: dict[str, Any]) -> list[str]:
    """What to do next, one line each; empty when all is there."""
    lines = [
        f"{extra}: {', '.join(state['missing'])} missing; {state['install']}"
        for extra, state in findings["extras"].items()
        if not state["installed"]
    ]
    if not findings["keys_set"]:
        lines.append(
            "keys: none set; openai: and anthropic: teachers need OPENAI_API_KEY or "
            "ANTHROPIC_API_KEY"
        )
    if findings["disk_free_gb"] < 5:
        lines.append(f"disk: only {findings['disk_free_gb']} GB free; a run needs 2 to 5 GB")
    return lines
