"""Training state on disk without pickle: optimizer, schedule and random generators.

transformers 5 writes these with `torch.save`, a pickle container, and reads them back with
`weights_only=True`. Here tensors go to safetensors and numbers to JSON, so that nothing in a
checkpoint can run code. The trainer writes `trainer_state.json` after all else: a checkpoint is
whole exactly when that file parses. Knows files and state dicts; knows no objective.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerState

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import disk_errors, read_json, write_json

OPTIMIZER: Final = "optimizer"
RANDOM: Final = "random"
TRAINER_STATE: Final = "trainer_state.json"
PREFIX: Final = "checkpoint-"


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write the states of an optimizer and of its schedule."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / f"{OPTIMIZER}.safetensors")
    write_json(
        folder / f"{OPTIMIZER}.json",
        {
            "param_groups": state["param_groups"],
            "numbers": numbers,
            "scheduler": scheduler.state_dict(),
        },
    )


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Read what `save_optimizer` wrote, into an optimizer and a schedule of the same shape."""
    plain: dict[str, Any] = read_json(folder / f"{OPTIMIZER}.json")
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(folder / f"{OPTIMIZER}.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    for number, values in plain["numbers"].items():
        state.setdefault(int(number), {}).update(values)
    for group in plain["param_groups"]:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})
    scheduler.load_state_dict(plain["scheduler"])


def save_random(folder: Path, rank: int = 0) -> None:
    """Write the state of Python's, NumPy's and torch's generators of this process."""
    version, words, gauss = random.getstate()
    drawn: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = drawn
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    if torch.cuda.is_available():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{number}"] = state
    save_file(tensors, folder / f"{RANDOM}_{rank}.safetensors")
    write_json(
        folder / f"{RANDOM}_{rank}.json",
        {
            "python": [version, list(words), gauss],
            "numpy": [name, int(position), int(has_gauss), float(cached)],
        },
    )


def load_random(folder: Path, rank: int = 0) -> None:
    """Read what `save_random` wrote; other numbers of GPUs keep their own generators, and so does a
    rank that was not there when it was written."""
    if not (folder / f"{RANDOM}_{rank}.json").exists() and rank > 0:
        return
    plain: dict[str, Any] = read_json(folder / f"{RANDOM}_{rank}.json")
    tensors = load_file(folder / f"{RANDOM}_{rank}.safetensors")
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    name, position, has_gauss, cached = plain["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    states = [tensors[key] for key in sorted(tensors) if key.startswith("cuda.")]
    if states and torch.cuda.is_available() and torch.cuda.device_count() == len(states):
        torch.cuda.set_rng_state_all(states)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint; torn ones (killed while written) are removed."""
    found: dict[int, Path] = {}
    for path in folder.glob(f"{PREFIX}*"):
        if read_state(path) is None:
            shutil.rmtree(path)
        else:
            found[int(path.name.removeprefix(PREFIX))] = path
    return found[max(found)] if found else None


def read_state(checkpoint: Path) -> Mapping[str, Any] | None:
    """The trainer's state in a checkpoint; `None` where it is missing or torn."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def trainer_state(checkpoint: Path) -> TrainerState:
    """The trainer's state, its best checkpoint looked for beside this one.

    The file names the best checkpoint by an absolute path; a run folder may have moved since.
    """
    state: TrainerState = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    beside = checkpoint.parent / f"{PREFIX}{state.best_global_step}"
    state.best_model_checkpoint = str(beside) if beside.is_dir() else None
    return state


@contextmanager
def weight_errors(path: Path) -> Iterator[None]:
    """`disk_errors`, also for what safetensors raises when weights cannot be written or read."""
    try:
        with disk_errors(path):
            yield
    except SafetensorError as error:
        if any(mark in str(error) for mark in ("os error 28", "os error 122", "No space left")):
            raise RunFolderError(
                f"{path}: the disk is full; free some space and run the same command again: "
                "it goes on from what is finished"
            ) from error
        raise RunFolderError(f"{path}: cannot be written or read ({error})") from error
