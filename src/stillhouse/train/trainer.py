"""The trainer: `transformers.Trainer`, with our loss, our held-out measure and no pickle.

The loop, schedules, accumulation, clipping and distribution are the library's. Here are the hooks:
the loss is an objective over the global number of valid targets; evaluation is the student-teacher
divergence on the held-out set; batches are grouped by length; checkpoints are safetensors and JSON.
Knows no recipe and no files of a stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.train.balanced import BalancedObjective, Moment
from stillhouse.train.batches import LengthGroupedSampler, Rows
from stillhouse.train.checkpoints import load_optimizer, load_random, save_optimizer, save_random
from stillhouse.train.module_weights import save_module
from stillhouse.train.objectives import HeldOutSums, Objective
from stillhouse.train.outputs import Batch, Counts, StepAt, count
from stillhouse.train.parts import attach, load_parts, save_parts, set_aside
from stillhouse.train.sharded import (
    holds_whole_optimizer,
    load_weights,
    load_whole_optimizer,
    save_whole_optimizer,
    whole_weights,
)

DIVERGENCE: Final = "held_out_divergence"
CROSS_ENTROPY: Final = "held_out_cross_entropy"
AGREEMENT: Final = "held_out_agreement"
DISAGREEMENT: Final = "held_out_disagreement"  # what is left of 1: a measure that falls
HEAD_NAMES: Final = frozenset({"classifier", "score", "pooler", "pre_classifier"})
_EVAL: Final = "eval_"  # the prefix that transformers gives to what is evaluated


class DistillationTrainer(Trainer):
    """Trains a student on `rows` under an objective.

    Args:
        model: the student.
        objective: gives loss and held-out sums of a batch.
        args: transformers' arguments; see `schedule.training_arguments`.
        collator: pads items.
        rows: the training set.
        held_out: the held-out set, or `None` to train without looking.
        callbacks: early stop, progress.
        head_learning_rate: of a classifier's head, where it is not that of the rest.
        counter: `Counts` [4] of a micro-batch; the default knows classifiers and causal models.
    """

    # The objective divides by the valid targets of the whole step: nothing is left to scale.
    loss_is_scaled_for_ga = True
    objective: Objective

    def __init__(
        self,
        model: Any,
        *,
        objective: Objective,
        args: TrainingArguments,
        collator: Any,
        rows: Rows,
        held_out: Rows | None,
        callbacks: list[TrainerCallback],
        head_learning_rate: float | None = None,
        counter: Callable[[Batch], torch.Tensor] = count,
    ) -> None:
        self.balanced = objective if isinstance(objective, BalancedObjective) else None
        if self.balanced is not None:
            attach(model, self.balanced.parts)
        args._n_gpu = min(
            args.n_gpu, 1
        )  # several GPUs are for torchrun, never DataParallel threads
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=rows,
            eval_dataset=held_out,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.objective = objective
        self.head_learning_rate = head_learning_rate
        self.counter = counter
        self.on_look: Callable[[int, Sequence[HeldOutSums]], None] | None = None
        if self.is_fsdp_enabled and self.balanced is not None:
            raise UserError(
                "train.terms",
                "are not trained with weights that are spread over processes (FSDP)",
                action="train in one process or with DDP, or leave the terms out",
            )
        self.model_accepts_loss_kwargs = True  # has the valid targets of a step counted

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective over the units of the whole step, in nats."""
        assert isinstance(num_items_in_batch, torch.Tensor), "labels are in every batch"
        loss = self.objective.loss(model, inputs, Counts(*num_items_in_batch.unbind()))
        # Data-parallel training averages gradients over ranks; the count is of all ranks.
        loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One micro-batch, forward and backward; then what several terms need of a step."""
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.balanced is not None:
            self.balanced.end_micro(model)
            if self.accelerator.sync_gradients:
                self.balanced.end_step(self._summed)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's log; beside a training loss, each term's."""
        if self.balanced is not None and "loss" in logs:
            logs |= self.balanced.take_log()
        super().log(logs, start_time)

    def _summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.args.world_size == 1:
            return tensor
        summed: torch.Tensor = self.accelerator.reduce(tensor)
        return summed

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean divergence (nats), cross-entropy (nats) and agreement on the held-out set.

        Raises:
            StillhouseError: it has no targets.
        """
        total = torch.zeros(4, dtype=torch.float64, device=self.args.device)
        looks: list[HeldOutSums] = []
        for sums in self.measured(eval_dataset):
            total += torch.stack([part.double() for part in sums[:4] if part is not None])
            looks.append(sums)
        if self.on_look is not None:
            self.on_look(self.state.global_step, looks)
        divergence, cross_entropy, agreed, items = self.accelerator.reduce(total).tolist()
        if not items:
            raise StillhouseError("the held-out set has no targets, so nothing can be measured")
        metrics = {
            f"{metric_key_prefix}_{DIVERGENCE}": divergence / items,
            f"{metric_key_prefix}_{CROSS_ENTROPY}": cross_entropy / items,
            f"{metric_key_prefix}_{AGREEMENT}": agreed / items,
            f"{metric_key_prefix}_{DISAGREEMENT}": 1.0 - agreed / items,
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def measured(
        self, rows: Any = None, objective: Objective | None = None, model: Any = None
    ) -> Iterator[HeldOutSums]:
        """What each batch of some rows (the held-out set, if none are given) measures, in order,
        under the trainer's objective or another; of another model than the student, if given."""
        objective = self.objective if objective is None else objective
        model = self.accelerator.unwrap_model(self.model) if model is None else model
        was_training = model.training
        model.eval()
        try:
            for inputs in self._held_out_batches(rows):
                with torch.no_grad(), self.accelerator.autocast():
                    sums = objective.held_out(model, self._prepare_inputs(inputs))
                yield sums  # outside: what the caller does meanwhile is its own
        finally:
            model.train(was_training)

    def _held_out_batches(self, eval_dataset: Any) -> Iterable[Any]:
        """This process's share of the held-out set; equally many batches on each, no row twice."""
        world, rank = self.args.world_size, self.args.process_index
        if world == 1 and eval_dataset is None:
            yield from self.get_eval_dataloader(eval_dataset)
            return
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.per_device_eval_batch_size
        batches = [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
        batches += [[-1]] * (-len(batches) % world)  # row 0 without targets
        for numbers in batches[rank::world]:
            yield self.data_collator([rows[number] for number in numbers])

    def create_optimizer(self, model: Any = None) -> Any:
        """The library's optimizer; a head with its own rate gets its own groups."""
        optimizer: Any = super().create_optimizer(model)
        if self.head_learning_rate is not None:
            named = self.accelerator.unwrap_model(self.model).named_parameters()
            head = {id(weight) for name, weight in named if HEAD_NAMES & set(name.split("."))}
            for group in list(optimizer.param_groups):
                chosen = [weight for weight in group["params"] if id(weight) in head]
                if chosen:
                    group["params"] = [w for w in group["params"] if id(w) not in head]
                    own = {**group, "params": chosen, "lr": self.head_learning_rate}
                    optimizer.add_param_group(own)
        if self.balanced is not None:
            self._own_rates(optimizer)
        return optimizer

    def _own_rates(self, optimizer: Any) -> None:
        """Give what is learned beside the student groups of its own, after all others."""
        assert self.balanced is not None
        rates = self.balanced.parts.rates()
        moved = {id(weight) for rate in rates for weight in rate.weights}
        for group in optimizer.param_groups:
            group["params"] = [w for w in group["params"] if id(w) not in moved]
        for rate in rates:
            for decays in (True, False):
                chosen = [w for w in rate.weights if (rate.decays and w.ndim > 1) == decays]
                if chosen:
                    decay = self.args.weight_decay if decays else 0.0
                    optimizer.add_param_group(
                        {"params": chosen, "lr": rate.learning_rate, "weight_decay": decay}
                    )

    def _clip_grad_norm(self, model: Any) -> Any:
        """The library's clipping; weights are not moved by a gradient that is NaN or infinite."""
        library: Any = super()
        norm = library._clip_grad_norm(model)
        if norm is not None and not math.isfinite(float(norm)):  # DeepSpeed keeps it to itself
            raise StillhouseError(
                f"training went off: the gradient of step {self.state.global_step + 1:,} has norm "
                f"{float(norm)}; lower train.learning_rate, or set train.precision: fp32, and run "
                "again"
            )
        return norm

    def restore(self, checkpoint: Path) -> None:
        """Load a checkpoint's weights (or adapters) without training."""
        self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            load_weights(self.model, Path(resume_from_checkpoint))
            return
        with set_aside(self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.balanced is not None:
            load_parts(Path(resume_from_checkpoint), self.balanced.parts)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            load_weights(self.model, Path(str(self.state.best_model_checkpoint)))
            return
        with set_aside(self.model):
            super()._load_best_model()

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """All weights of a student that is spread over processes, on the first; `None` where each
        process has them all. Called by all."""
        return whole_weights(self.model) if self.is_fsdp_enabled else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        world = self.args.world_size
        multiple = self.args.train_batch_size * world if world > 1 else 1
        return LengthGroupedSampler(
            rows.lengths, step * world, seed, multiple=multiple, on_epoch=rows.set_epoch
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Micro-batches of a step, as the objective wants them, and the counts of their units."""
        if self.balanced is not None:
            state, next_step = self.state, self.state.global_step + 1
            logged = next_step % state.logging_steps == 0 or next_step >= state.max_steps
            self.balanced.begin_step(Moment(state.global_step, state.max_steps, logged))
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = [
            self.objective.prepare(
                self.model,
                self._prepare_inputs(batch),
                StepAt(self.state.global_step, number, self.args.process_index),
            )
            for number, batch in enumerate(batches)
        ]
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """`Counts` [4] of a whole optimizer step, over its micro-batches and all ranks."""
        counts = torch.zeros(4, dtype=torch.int64, device=device)
        for batch in batch_samples:
            counts += self.counter(batch).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts)
        return counts.clamp_min(1)  # a step without targets has loss 0, not 0/0

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Weights and config; not the arguments, which transformers would pickle."""
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model)
            folder = str(output_dir or self.args.output_dir)
            with set_aside(model):
                if isinstance(model, PeftModel):  # `auto` would ask the hub about the base model
                    model.save_pretrained(
                        folder, state_dict=state_dict, save_embedding_layers=False
                    )
                elif isinstance(model, PreTrainedModel):
                    model.save_pretrained(folder, state_dict=state_dict)
                else:
                    save_module(model, Path(folder))
            if self.balanced is not None:
                save_parts(Path(folder), self.balanced.parts)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.world_size > 1 and not self.is_deepspeed_enabled:
            folder = Path(output_dir)
            save_whole_optimizer(folder, self.model, self.optimizer, self.lr_scheduler)
        elif self.is_deepspeed_enabled:  # its own format
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        if holds_whole_optimizer(folder):
            load_whole_optimizer(folder, self.model, self.optimizer, self.lr_scheduler)
        elif self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif self.is_fsdp_enabled:
            raise UserError(
                "train.distributed.strategy",
                "one process wrote the checkpoint that is there",
                value="fsdp2",
                action="go on with ddp, or remove the run's train folder to begin anew",
            )
        else:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_random(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:  # a rank that is new goes on from its own seed
            load_random(Path(checkpoint), self.args.process_index)


def metric(entry: Mapping[str, Any], name: str) -> float | None:
    """A held-out measure in a row of the trainer's log, or `None`."""
    value = entry.get(_EVAL + name)
    return None if value is None else float(value)
