"""How long a run is, when it looks at the held-out set, and transformers' arguments for it.

Knows the recipe's numbers and the size of the training set; knows no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainingArguments

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_train import TrainSection
from stillhouse.train.ranks import world_size

LOGS_PER_EVAL: Final = 10
EVAL_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Schedule:
    """A run in optimizer steps. `eval_every` is a multiple of `log_every`: a resumed run then logs
    the same means as one that was never stopped."""

    steps: int
    eval_every: int
    log_every: int
    micro_batch: int
    accumulation: int
    batch: int


def plan_schedule(
    examples: int,
    batch_size: int,
    micro_batch_size: int | None,
    epochs: float,
    evals: int,
    *,
    processes: int = 1,
) -> Schedule:
    """Lay out a run of `epochs` passes with `evals` held-out evaluations, the last at its end.

    `batch_size` is of all processes together: their number changes no step.

    Raises:
        UserError: the batch cannot be dealt out evenly.
    """
    micro = min(micro_batch_size or max(1, batch_size // processes), batch_size)
    accumulation = max(1, batch_size // (micro * processes))
    if processes > 1 and micro * processes * accumulation != batch_size:
        raise UserError(
            "train.batch_size",
            f"cannot be dealt out to {processes} processes in micro-batches of {micro}",
            value=batch_size,
            action=f"use a multiple of {micro * processes}",
        )
    per_epoch = math.ceil(math.ceil(examples / (micro * processes)) / accumulation)
    steps = max(1, math.ceil(epochs * per_epoch))
    per_eval = max(1, math.ceil(steps / evals))
    log_every = max(1, per_eval // LOGS_PER_EVAL)
    return Schedule(
        steps=steps,
        eval_every=math.ceil(per_eval / log_every) * log_every,
        log_every=log_every,
        micro_batch=micro,
        accumulation=accumulation,
        batch=micro * accumulation * processes,
    )


def eval_batch(section: TrainSection, schedule: Schedule, head: str) -> int:
    """Examples per held-out forward pass: for text, and wherever the recipe bounds a forward pass,
    as many as in training, since what fits there fits here; else what is fast."""
    if head == "text" or section.micro_batch_size is not None:
        return schedule.micro_batch
    return EVAL_BATCH


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run in bfloat16; weights and optimizer stay float32.

    Raises:
        UserError: bf16 is asked for and the device has none.
    """
    if precision == "fp32" or (precision == "auto" and device.type != "cuda"):
        return False
    has = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if precision == "bf16" and not has:
        raise UserError(
            "train.precision",
            "bf16 needs a CUDA GPU that has it",
            value=precision,
            action="use precision: auto",
        )
    return has


def warmup_steps(ratio: float, steps: int) -> int:
    """Steps of warm-up; none where the share is less than one step.

    The first step of a warm-up has a rate of 0: a run of one step would train nothing.
    """
    wanted = ratio * steps
    return math.ceil(wanted) if wanted >= 1 else 0


def _sharding(section: TrainSection) -> dict[str, Any]:
    """transformers' arguments for a student spread over processes."""
    if section.distributed is None or section.distributed.strategy != "fsdp2" or world_size() == 1:
        return {}
    return {
        "fsdp": "full_shard",
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def training_arguments(
    section: TrainSection,
    schedule: Schedule,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    best_by: str | None,
    eval_batch: int = EVAL_BATCH,
    **more: Any,
) -> TrainingArguments:
    """transformers' arguments.

    Args:
        section: rates, decay, clipping, schedule, precision.
        schedule: steps.
        folder: where checkpoints go.
        seed: of dropout and data order.
        device: the CPU or a GPU.
        best_by: the held-out measure whose lowest value names the best checkpoint; `None` keeps
            the last weights and never evaluates.
        eval_batch: examples per held-out forward pass.
        more: further arguments.
    """
    looks = best_by is not None
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.micro_batch,
        gradient_accumulation_steps=schedule.accumulation,
        per_device_eval_batch_size=eval_batch,
        learning_rate=section.effective_learning_rate,
        lr_scheduler_type=(
            "constant_with_warmup" if section.schedule == "constant" else section.schedule
        ),
        warmup_steps=warmup_steps(section.warmup_ratio, schedule.steps),
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        eval_strategy="steps" if looks else "no",
        eval_steps=schedule.eval_every if looks else None,
        save_strategy="steps",
        save_steps=schedule.eval_every,
        save_total_limit=2,
        load_best_model_at_end=looks,
        metric_for_best_model=best_by,
        greater_is_better=False if looks else None,
        logging_strategy="steps",
        logging_steps=schedule.log_every,
        logging_nan_inf_filter=False,
        seed=seed,
        data_seed=seed,
        use_cpu=device.type == "cpu",
        bf16=uses_bf16(section.precision, device),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        activation_checkpointing=section.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if device.type == "cpu" and world_size() > 1 else None,
        **_sharding(section),
        **more,
    )
