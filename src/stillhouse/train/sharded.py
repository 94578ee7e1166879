"""Checkpoints of a student that is spread over processes (FSDP2): whole files, any world size.

Each tensor is gathered and written as one, in safetensors, with the optimizer's state under the
names of the weights; a later run with another number of processes, or another strategy's files of
the same names, takes its parts from that. One process's memory must hold the student once and its
optimizer once. Knows models, optimizers and files; knows no objective.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from stillhouse.core.jsonl import read_json, write_json
from stillhouse.train.ranks import is_main

OPTIMIZER: Final = "optimizer_whole"
_WHOLE: Final = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """All weights on the CPU of the first process; empty on the others. Called by all."""
    found: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return found


def load_weights(model: Any, folder: Path) -> None:
    """Read what `save_pretrained` wrote of these weights into their parts. Called by all."""
    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith(("model", "adapter_model")):
            weights |= load_file(path)
    # Tied weights are written once, under one of their names.
    options = StateDictOptions(full_state_dict=True, strict=False)
    result = set_model_state_dict(model, weights, options=options)
    known = set(getattr(model, "_tied_weights_keys", None) or {})
    missing = [name for name in result.missing_keys if name not in known]
    assert not missing, f"checkpoint lacks {missing[:3]}"
    assert not result.unexpected_keys, f"unknown weights {result.unexpected_keys[:3]}"


def save_whole_optimizer(folder: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Write the optimizer's state by weight, and the schedule's. Called by all."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    if not is_main():
        return
    tensors: dict[str, torch.Tensor] = {}
    for weight, values in state["state"].items():
        for name, value in values.items():
            tensors[f"{weight}|{name}"] = torch.as_tensor(value).contiguous()
    save_file(tensors, folder / f"{OPTIMIZER}.safetensors")
    write_json(
        folder / f"{OPTIMIZER}.json",
        {"param_groups": state["param_groups"], "scheduler": scheduler.state_dict()},
    )


def holds_whole_optimizer(folder: Path) -> bool:
    """Whether a checkpoint was written by several processes."""
    return (folder / f"{OPTIMIZER}.json").exists()


def load_whole_optimizer(folder: Path, model: Any, optimizer: Any, scheduler: Any) -> None:
    """Read what `save_whole_optimizer` wrote into the parts of this process. Called by all."""
    plain: dict[str, Any] = read_json(folder / f"{OPTIMIZER}.json")
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / f"{OPTIMIZER}.safetensors").items():
        weight, _, name = key.rpartition("|")
        state.setdefault(weight, {})[name] = tensor
    for group in plain["param_groups"]:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    whole = {"state": state, "param_groups": plain["param_groups"]}
    set_optimizer_state_dict(
        model, optimizer, whole, options=StateDictOptions(full_state_dict=True)
    )
    scheduler.load_state_dict(plain["scheduler"])
