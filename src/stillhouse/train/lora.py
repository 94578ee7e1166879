"""Low-rank adapters through peft (Hu et al. 2021, arXiv:2106.09685): wrap, save, merge.

Knows a model and the recipe's `train.lora`; knows no training.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from stillhouse.core.errors import UserError
from stillhouse.core.heads import Head
from stillhouse.core.recipe_train import LoraSection
from stillhouse.train.heads import WAYS
from stillhouse.train.students import CUT_BASE

ADAPTER_CARD: Final = """\
---
library_name: peft
---

Low-rank adapter of a distilled student. Its base is {base}; the folder `student` holds both merged.

    from peft import PeftModel
    from transformers import {auto}

    model = PeftModel.from_pretrained({auto}.from_pretrained("{where}"), ".")
"""


def target_layers(body: nn.Module, section: LoraSection) -> list[str]:
    """The names of the linear layers that get adapters, sorted.

    Raises:
        UserError: a named layer is not in the model.
    """
    linear = {name.rpartition(".")[2] for name, _ in _linear(body)}
    wanted = set(section.target_modules)
    if not wanted <= linear:
        raise UserError(
            "train.lora.target_modules",
            f"a {type(body).__name__} has no such linear layers",
            value=sorted(wanted - linear),
            action=f"choose among {', '.join(sorted(linear))}",
        )
    return sorted(wanted)


def with_adapters(
    model: PreTrainedModel,
    section: LoraSection,
    head: Head,
    source: str,
    seed: int,
) -> PeftModel:
    """Freeze a student and put adapters on it; a classifier's new head is trained whole.

    Args:
        model: the student; it is wrapped in place.
        section: rank, alpha, dropout, and the linear layers that get adapters.
        head: what the student is.
        source: named in the adapter's config as what it belongs to.
        seed: decides the adapters' first weights.

    Raises:
        UserError: a named layer is not in the model.
    """
    targets = target_layers(model.base_model, section)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft still asks transformers 5 by the old name of activation checkpointing
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        wrapped: PeftModel = get_peft_model(
            model,
            LoraConfig(
                r=section.r,
                lora_alpha=section.alpha,
                lora_dropout=section.dropout,
                target_modules=targets,
                task_type=WAYS[head].adapters,
            ),
        )
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = source
    return wrapped


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter alone: safetensors, its config, and how to put it on its base."""
    model.save_pretrained(str(folder), save_embedding_layers=False)
    config = next(iter(model.peft_config.values()))
    base = str(config.base_model_name_or_path)
    named = {
        TaskType.SEQ_CLS: "AutoModelForSequenceClassification",
        TaskType.TOKEN_CLS: "AutoModelForTokenClassification",
    }
    auto = named.get(TaskType(config.task_type), "AutoModelForCausalLM")
    (folder / "README.md").write_text(
        ADAPTER_CARD.format(
            base="the folder `base` beside this one" if base == CUT_BASE else f"`{base}`",
            auto=auto,
            where="../base" if base == CUT_BASE else base,
        ),
        encoding="utf-8",
    )


def merged(model: PeftModel) -> PreTrainedModel:
    """The student with the adapters added into its weights: a plain model again."""
    plain: Any = model.merge_and_unload()
    result: PreTrainedModel = plain
    return result


def _linear(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
