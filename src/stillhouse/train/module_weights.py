"""Weights of any torch module on disk: its state dict as one safetensors file.

Transformers models have folders of their own (`save_pretrained`); this is for all others. The file
holds no code: it is read back into a module of the same shape. Knows modules and files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stillhouse.core.errors import UserError

MODULE_FILE: Final = "model.safetensors"  # the name that the trainer looks for in a checkpoint


def save_module(module: nn.Module, folder: Path) -> None:
    """Write `model.safetensors`: every entry of the state dict, tied ones each under its name.

    Raises:
        UserError: the state holds something that is not a tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"student {name}",
                f"is a {type(value).__name__}, and only tensors can be saved",
                action="leave it out of the module's state dict",
            )
        tensors[name] = value.detach().cpu().contiguous().clone()  # tied ones must not share
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / MODULE_FILE, metadata={"format": "pt"})


def load_module(module: nn.Module, folder: Path) -> None:
    """Read what `save_module` wrote into a module of the same shape.

    Raises:
        UserError: there is no such file, or it is of another module.
    """
    path = folder / MODULE_FILE
    if not path.is_file():
        raise UserError(str(path), "is not there", action="give the folder that was saved to")
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise UserError(
            str(path),
            f"does not fit a {type(module).__name__}: {error}",
            action="build the module as it was when it was saved",
        ) from None
