"""Distillation as a library: any model, any teacher, a few lines, no recipe and no run folder.

    from stillhouse import Distiller

    distiller = Distiller(student, teacher, alpha=0.9, distillation_temperature=4.0)
    distiller.fit((images, labels), held_out=(more_images, more_labels))
    distiller.save("student")

The objectives, the trainer and its checkpoints are those of the `train` stage. Knows models and
data in memory; knows no task and no recipe.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Progress, Silent
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.divergence_kind import FORWARD_KL, Divergence
from stillhouse.models.loading import pick_device
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.batches import Rows
from stillhouse.train.distiller_checks import (
    check_fit,
    check_ids,
    check_labelled,
    check_labels,
    check_targets,
    check_teacher_ids,
    claim,
)
from stillhouse.train.distiller_terms import learned_in, objective_of, shapes_of
from stillhouse.train.fit import fit
from stillhouse.train.history import CurveRow, EarlyStop, Report, curve
from stillhouse.train.kinds import Kind, kind_of, one_target_a_sample, way_of
from stillhouse.train.masking import MaskedRows, Masking
from stillhouse.train.module_rows import ModuleCollator, module_rows
from stillhouse.train.module_weights import save_module
from stillhouse.train.objectives import Weighted, check_one_tokenizer
from stillhouse.train.parts import detach
from stillhouse.train.read_once import read_once, with_columns
from stillhouse.train.readers import LABELS
from stillhouse.train.schedule import Schedule, plan_schedule, training_arguments
from stillhouse.train.teacher_forms import (
    Mapped,
    Teacher,
    as_source,
    by_name,
    evaluating,
    label_mapping,
    modules_of,
)
from stillhouse.train.teachers import BELIEFS, StoredBeliefs, TeacherSource
from stillhouse.train.terms import Response
from stillhouse.train.token_rows import Encoder, TokenCollator
from stillhouse.train.trainer import CROSS_ENTROPY, DIVERGENCE, DistillationTrainer

MODULE_RATE: Final = 1e-3  # of a module with no pretrained weights that one knows of
ADAPTER_RATE: Final = 2e-4
_NUMBERS: Final = (  # what is said as in a recipe's `train`
    "alpha",
    "distillation_temperature",
    "epochs",
    "batch_size",
    "micro_batch_size",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "evals",
    "patience",
    "precision",
    "device",
)


class Distilled(NamedTuple):
    """How a run went. The student holds the weights of the best look where there was a held-out
    set, else the last. `curve` has the loss and the held-out measures (see `CurveRow`)."""

    steps: int
    best_step: int
    stopped_early: bool
    curve: Sequence[CurveRow]


class _Ready(NamedTuple):
    """What a run starts from."""

    train: Rows
    held_out: Rows | None
    source: TeacherSource | None


@dataclass(slots=True)
class Distiller:
    """A student, who teaches it, and how.

    Args:
        student: trained in place: a transformers model (under adapters too) or any module that
            returns logits.
        teacher: a model of the same kind, several (their probabilities are averaged), any
            `TeacherSource`, or `None` where the data holds `teacher_logits` or `alpha` is 0.
        kind: what the student is; `None` tells by its class.
        alpha, distillation_temperature, divergence: the loss is alpha * T^2 * D(teacher_T,
            student_T) + (1 - alpha) * CE, in nats a target (`terms.Response`).
        terms: further weighted terms, added to it; linear maps in them are learned.
        mapping: the teacher's id for each output of the student, where they are not the same.
        teacher_once: read the teacher once before the first step and keep its beliefs: for
            classifiers and modules whose inputs are the same in every epoch.
        tokenizer: reads texts, and is saved with the student; `teacher_tokenizer` is compared.
        max_tokens: texts are cut to this; `None`: what the student can read.
        mask_share: share of tokens a masked language model has to find.
        epochs, batch_size, ..., patience: as in a recipe's `train`. `learning_rate` `None` is 2e-5
            for transformers models, 2e-4 under adapters, 1e-3 for modules.
        folder: keeps checkpoints, from which a killed run goes on; `None` keeps none.
        progress: a bar (`core.progress.Terminal`).

    Raises:
        UserError: a number out of its range, or two tokenizers that differ without a mapping.
    """

    student: nn.Module
    teacher: Teacher | None = None
    kind: Kind | None = None
    alpha: float = 0.5
    distillation_temperature: float = 2.0
    divergence: Divergence = FORWARD_KL
    terms: Sequence[Weighted] = ()
    mapping: Sequence[int] | None = None
    teacher_once: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None
    teacher_tokenizer: PreTrainedTokenizerBase | None = None
    max_tokens: int | None = None
    mask_share: float = 0.15
    epochs: float = 3.0
    batch_size: int = 32
    micro_batch_size: int | None = None
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    evals: int = 6
    patience: int | None = 3
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    folder: Path | str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.kind = self.kind or kind_of(self.student)
        self._section()
        if not 0 < self.mask_share <= 1:
            raise UserError("mask_share", "must be above 0 and at most 1", value=self.mask_share)
        if self.teacher_once and not one_target_a_sample(self.kind):
            raise UserError(
                "teacher_once", f"is for classifiers and modules, not for a {self.kind}",
                action="leave it out: the teacher reads along",
            )  # fmt: skip
        if self.mapping is None and self.tokenizer and self.teacher_tokenizer:
            check_one_tokenizer(self.tokenizer, self.teacher_tokenizer)
        if self.mapping is None and isinstance(self.teacher, nn.Module):
            self.mapping = label_mapping(self.student, self.teacher)
        self._source()

    def fit(self, train_data: Any, held_out: Any = None) -> Distilled:
        """Train the student, from wherever a killed run in `folder` left off.

        Args:
            train_data: see `token_rows` and `module_rows` for what is read. Rows of a classifier or
                module without labels get the teacher's first choice.
            held_out: never trained on; says which weights are kept, and when to stop.

        Raises:
            UserError: data, teacher and student that do not fit, or a folder of another run.
            StillhouseError: training went off.
        """
        device = pick_device(self.device)
        with ExitStack() as stack:
            stack.enter_context(evaluating(modules_of(self.teacher), device))
            self.student.to(device)
            ready = self._ready(train_data, held_out, device)
            if self.folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            else:
                folder = Path(self.folder)
                self._claim(folder, ready)
            return self._train(ready, folder / "checkpoints", device)

    def save(self, folder: Path | str) -> None:
        """Write the student as what it is: a transformers folder (with the tokenizer, if there is
        one; under adapters, the adapters), or `model.safetensors` for any other module."""
        student: Any = self.student
        if isinstance(student, PreTrainedModel) or hasattr(student, "peft_config"):
            with quiet_transformers():
                student.save_pretrained(str(folder))
        else:
            save_module(student, Path(folder))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))

    def _train(self, ready: _Ready, folder: Path, device: torch.device) -> Distilled:
        section, way = self._section(), way_of(self._kind)
        best_by = None
        if ready.held_out is not None:
            best_by = DIVERGENCE if self.alpha > 0 else CROSS_ENTROPY
        response = Response(self.alpha, self.distillation_temperature, self.divergence)
        terms = (Weighted(response), *self.terms)
        objective = objective_of(way.reader, terms, ready.source, self._models())
        config = getattr(self.student, "config", None)
        use_cache = getattr(config, "use_cache", None)
        schedule = self._schedule(len(ready.train))
        progress = self.progress or Silent()
        with progress.bar("distil", schedule.steps, "steps") as ticker:
            trainer = DistillationTrainer(
                self.student,
                objective=objective,
                args=training_arguments(
                    section,
                    schedule,
                    folder=folder,
                    seed=self.seed,
                    device=device,
                    best_by=best_by,
                    eval_batch=schedule.micro_batch,
                ),
                collator=self._collator(),
                rows=ready.train,
                held_out=ready.held_out,
                callbacks=[EarlyStop(best_by or DIVERGENCE, self.patience), Report(ticker)],
                counter=way.counter,
            )
            try:
                done = fit(trainer, best_by, self.patience)
            finally:
                if trainer.balanced is not None:
                    detach(self.student)
        if use_cache is not None and config is not None:
            config.use_cache = use_cache  # switched off for training
        self.student.eval()
        return Distilled(done.steps, done.best_step, done.stopped_early, curve(done.log))

    def _ready(self, train_data: Any, held_out: Any, device: torch.device) -> _Ready:
        """Rows with labels, and the source, after all that can be wrong has been looked at."""
        way, collator = way_of(self._kind), self._collator()
        train = self._rows(train_data, "train_data")
        watch = None if held_out is None else self._rows(held_out, "held_out", held_out=True)
        parts = [(train, "train_data"), *([] if watch is None else [(watch, "held_out")])]
        live = self._source()
        if self._kind != "module":
            for rows, where in parts:
                check_ids(rows, self.student, where)
                if live is not None:
                    check_teacher_ids(rows, self._kind, live, where)
        source = live or StoredBeliefs()
        mapping = None if self.mapping is None else torch.as_tensor(self.mapping)
        for rows, where in parts:
            check_labelled(rows, live is not None, where)
            classes = check_fit(
                self.student,
                way.reader,
                source,
                collator([rows[0]]),
                mapping=mapping,
                alpha=self.alpha,
                device=device,
            )
        if mapping is not None:
            source = Mapped(source, mapping)
        kept: list[Rows] = []
        for rows, where in parts:
            kept.append(self._answered(rows, source, device))
            check_labels(kept[-1], self._kind, classes, where)
            check_targets(kept[-1], collator, way.counter, where)
        if self.teacher_once:
            source = StoredBeliefs()
        return _Ready(kept[0], kept[1] if len(kept) > 1 else None, source)

    def _source(self) -> TeacherSource | None:
        """The teacher, its classes in the student's order where nobody said otherwise."""
        if self.teacher is None:
            return None
        source = as_source(self.teacher, way_of(self._kind).reader)
        return by_name(source, self.student) if self.mapping is None else source

    def _models(self) -> list[nn.Module]:
        return [self.student, *modules_of(self.teacher)]

    def _rows(self, data: Any, where: str, *, held_out: bool = False) -> Rows:
        if self._kind == "module":
            return module_rows(data, self.student, where)
        config: Any = self.student.config
        encoder = Encoder(
            self._kind, self.tokenizer, self._most_tokens(config), dict(config.label2id or {})
        )
        rows = encoder.rows(data, where)
        if self._kind != "masked_lm" or LABELS in rows[0]:
            return rows
        if self.tokenizer is None or self.tokenizer.mask_token_id is None:
            raise UserError(
                "tokenizer", "with a mask token is needed to hide tokens",
                action="give tokenizer=, or rows with labels (-100 where nothing is hidden)",
            )  # fmt: skip
        masking = Masking(
            mask_token_id=self.tokenizer.mask_token_id,
            vocabulary=min(len(self.tokenizer), int(config.vocab_size)),
            never=frozenset(self.tokenizer.all_special_ids),
            seed=self.seed,
            share=self.mask_share,
        )
        masked = MaskedRows(rows.items, masking, held_out=held_out)
        bare = [number for number in range(len(masked)) if not masked.hideable(number)]
        if bare:
            raise UserError(
                where,
                f"{len(bare):,} of {len(masked):,} rows have no token to hide, the first is "
                f"row {bare[0]}",
                action="leave them out",
            )
        return masked

    def _answered(self, rows: Rows, source: TeacherSource, device: torch.device) -> Rows:
        """Labels where there are none, and the teacher's beliefs where they are read once."""
        if LABELS in rows[0] and not self.teacher_once:
            return rows
        batch_size = self._schedule(len(rows)).micro_batch
        beliefs = read_once(source, rows, self._collator(), batch_size, device)
        more: dict[str, Tensor] = {}
        if LABELS not in rows[0]:
            more[LABELS] = beliefs.argmax(-1)
        if self.teacher_once:
            more[BELIEFS] = beliefs
        return with_columns(rows, more)

    def _collator(self) -> Any:
        if self._kind == "module":
            return ModuleCollator()
        pad = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        config: Any = self.student.config
        pad = config.pad_token_id if pad is None else pad
        return TokenCollator(pad if isinstance(pad, int) else 0)  # masked, whatever it is

    def _schedule(self, rows: int) -> Schedule:
        return plan_schedule(rows, self.batch_size, self.micro_batch_size, self.epochs, self.evals)

    def _section(self) -> TrainSection:
        rate = self.learning_rate
        if rate is None and self.kind == "module":
            rate = MODULE_RATE
        elif rate is None and hasattr(self.student, "peft_config"):
            rate = ADAPTER_RATE
        given = {name: getattr(self, name) for name in _NUMBERS} | {"learning_rate": rate}
        try:
            return TrainSection(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str((first["loc"] or ("batch_size",))[0])
            raise UserError(name, first["msg"], value=given.get(name)) from None

    def _most_tokens(self, config: Any) -> int | None:
        bounds = [self.max_tokens, getattr(config, "max_position_embeddings", None)]
        if self.tokenizer is not None:
            bounds.append(self.tokenizer.model_max_length)
        found = [int(bound) for bound in bounds if isinstance(bound, int) and bound > 0]
        return min(found, default=None)

    def _claim(self, folder: Path, ready: _Ready) -> None:
        held_out = ready.held_out
        facts: dict[str, object] = {
            **self._section().model_dump(mode="json"),
            "kind": self._kind,
            "student": {name: list(w.shape) for name, w in self.student.named_parameters()},
            "divergence": [self.divergence.kind, self.divergence.beta],
            "terms": [[weighted.term.name, weighted.weight] for weighted in self.terms],
            "mask_share": self.mask_share,
            "seed": self.seed,
            "train_rows": len(ready.train),
            "held_out_rows": 0 if held_out is None else len(held_out),
            "tokens": sum(ready.train.lengths),
        }
        facts |= shapes_of(learned_in(self.terms, self._models()))
        claim(folder, facts)

    @property
    def _kind(self) -> Kind:
        assert self.kind is not None
        return self.kind
