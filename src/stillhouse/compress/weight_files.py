"""A student's folder written anew with some of its weights in another form, file by file.

Only one tensor is in memory at a time beside the file that is written. Everything else of the
folder (tokenizer, chat template, generation config) is copied as it is. Knows safetensors and
`config.json`, not what the other form is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stillhouse.core.artefact import ARTEFACT, CARD
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.models.loading import WEIGHTS
from stillhouse.models.quiet import quiet_transformers

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"


def linear_weights(folder: Path) -> dict[str, tuple[int, int]]:
    """The linear layers of a language model's body: their weights' names, outputs and inputs.

    Raises:
        UserError: it has none (GPT-2's layers are of a kind of their own).
    """
    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config)
    head = model.get_output_embeddings()
    found = {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    if not found:
        raise UserError(
            str(folder),
            f"a {type(model).__name__} has no linear layers that could be quantized",
            action="use a Llama-like student",
        )
    return found


def rewrite(
    student: Path,
    out: Path,
    change: Callable[[str, Tensor], Mapping[str, Tensor]],
    config: Mapping[str, Any],
) -> None:
    """Write a student's folder again.

    Args:
        student: holds safetensors, `config.json` and a tokenizer.
        out: an empty folder.
        change: name and tensor to the tensors that stand in its place.
        config: keys that are set in `config.json`.
    """
    files = sorted(student.glob(WEIGHTS))
    held: dict[str, str] = {}
    size = 0
    for file in files:
        written: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as handle:
            reads: Any = handle
            for name in reads.keys():  # noqa: SIM118 - not a dict
                written.update(change(name, reads.get_tensor(name)))
        save_file(
            {name: tensor.contiguous() for name, tensor in written.items()},
            out / file.name,
            metadata={"format": "pt"},
        )
        held |= dict.fromkeys(written, file.name)
        size += sum(tensor.nbytes for tensor in written.values())
    if len(files) > 1:
        write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": held})
    for path in student.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            if path.name not in (CONFIG, INDEX, ARTEFACT, CARD):
                shutil.copyfile(path, out / path.name)
    whole = {**read_json(student / CONFIG), **config}
    (out / CONFIG).write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", encoding="utf-8")
