"""Load a language model's head alone: its last layer's weight, out of its folder.

With hidden states from a cache, a 70B teacher is then one matrix. Knows folders of safetensors and
model configurations; runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.core.errors import UserError
from stillhouse.models.head import Head, head_of
from stillhouse.models.loading import WEIGHTS, locate
from stillhouse.models.quiet import quiet_transformers

INDEX: Final = "model.safetensors.index.json"


def load_head(source: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Head:
    """The head of the causal language model at `source` (as `models.loading` reads sources).

    Raises:
        UserError: the source cannot be had, its head is not one linear layer, or its files do not
            hold it under a name of the model's.
    """
    folder = locate(source).folder
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        builder: Any = AutoModelForCausalLM
        model = builder.from_config(config)
    head = head_of(model)
    if head is None:
        raise _no_head(source, "is not one linear layer")
    # The output weight may be tied to the input embedding, and is then on disk under its name.
    modules = (model.get_output_embeddings(), model.get_input_embeddings())
    named = {id(module): name for name, module in model.named_modules()}
    names = [f"{named[id(module)]}.weight" for module in modules]
    weight = _find(folder, names)
    if weight is None or weight.shape != head.weight.shape:
        raise _no_head(source, f"is not in its files as {' or '.join(names)}")
    bias = None
    if head.bias is not None:
        bias = _find(folder, [f"{named[id(modules[0])]}.bias"])
        if bias is None:
            raise _no_head(source, "has a bias that is not in its files")
        bias = bias.to(device, dtype)
    return Head(weight.to(device, dtype), bias, head.scale, head.softcap)


def _find(folder: Path, names: list[str]) -> Tensor | None:
    """The first tensor of these names in a folder; nothing else is read."""
    where: dict[str, str] = {}
    if (folder / INDEX).exists():
        where = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    for name in names:
        files = [folder / where[name]] if name in where else sorted(folder.glob(WEIGHTS))
        for path in files:
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 - not a mapping
                    found: Tensor = file.get_tensor(name)
                    return found
    return None


def _no_head(source: str, problem: str) -> UserError:
    return UserError(
        "capture.format",
        f"the head of {source} {problem}",
        value="hidden",
        action="use format: sampled or top_k",
    )
