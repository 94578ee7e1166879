"""Distil one student into a folder: build, encode, train, save.

A folder with `train.json` is finished; one with `checkpoints/` goes on from them. Knows the
recipe, the examples and one folder; does not know how many students a stage trains.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from transformers import TrainerCallback

from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_json, read_records, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import TrainSection
from stillhouse.core.records import Example
from stillhouse.core.split import part_of
from stillhouse.dataset.watch import WATCH
from stillhouse.models.loading import folder_size, pick_device
from stillhouse.train.batches import (
    Collator,
    LengthGroupedSampler,
    Rows,
    padding_share,
)
from stillhouse.train.cached_teacher import with_head
from stillhouse.train.checkpoints import weight_errors
from stillhouse.train.course import CONVERGENCE, Course, Watch, watch_course, write_course
from stillhouse.train.features_wiring import Learned
from stillhouse.train.fit import Fitted, fit
from stillhouse.train.further import Further, open_trained
from stillhouse.train.heads import WAYS
from stillhouse.train.history import EarlyStop, Report, curve, write_rows
from stillhouse.train.lessons import encoded, texts_of
from stillhouse.train.lora import merged, save_adapter, with_adapters
from stillhouse.train.lost import Lost
from stillhouse.train.packing import PackingCollator, check_packing, packed_padding_share
from stillhouse.train.parts import detach
from stillhouse.train.ranks import is_main, wait_for_all, world_size
from stillhouse.train.reading import Reading
from stillhouse.train.schedule import (
    Schedule,
    eval_batch,
    plan_schedule,
    training_arguments,
    uses_bf16,
)
from stillhouse.train.signal_binding import Learnt, bind_signals
from stillhouse.train.students import (
    CUT_BASE,
    Student,
    adapter_base,
    build_student,
    reads_plain,
    save_student,
    student_source,
    teacher_source,
)
from stillhouse.train.trainer import (
    CROSS_ENTROPY,
    DISAGREEMENT,
    DIVERGENCE,
    DistillationTrainer,
)
from stillhouse.train.wiring import build_objective

STUDENT: Final = "student"
ADAPTER: Final = "adapter"
HISTORY: Final = "history.json"
FACTS: Final = "train.json"
CHECKPOINTS: Final = "checkpoints"


class Data(NamedTuple):
    """What a student learns from, and what it is looked at on: `watch` has the teacher's answers
    beside true ones, and says nothing of when to stop."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    watch: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One student to train. `alpha` overrides the recipe's; `tuned` is the tuned teacher's folder,
    if it was tuned; `title` is shown beside the bar; `signals` is the capture stage's folder, where
    soft targets come from there. `callbacks` see each look at what is held out; `split_of_train`
    says that this is a part of the training examples, as a capture has them. `further` is a trained
    student to go on from, and what it is held to meanwhile; `reference` is the model that a
    selection of tokens is made by, where the recipe has one."""

    recipe: Recipe
    data: Data
    tuned: Path | None
    alpha: float
    title: str
    signals: Path | None = None
    callbacks: tuple[TrainerCallback, ...] = ()
    split_of_train: bool = False
    further: Further | None = None
    reference: str | None = None

    @property
    def teacher(self) -> str:
        """The teacher's weights, as `models.loading` reads sources."""
        return str(self.tuned) if self.tuned is not None else teacher_source(self.recipe)


def distil(job: Job, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train a student and write `student/`, `adapter/` (LoRA), `history.json`, `convergence.json`
    and, last, `train.json`.

    Returns what `train.json` holds. A finished folder is only read.

    Raises:
        UserError: a source, label or tokenizer that does not fit.
        StillhouseError: training went off.
    """
    if (folder / FACTS).exists():
        return read_json(folder / FACTS)
    section, seed = job.recipe.train, job.recipe.seed
    device = pick_device(section.device)
    bf16 = uses_bf16(section.precision, device)
    student = _build(job)
    for line in student.plan.said:
        progress.say(f"{job.title}: {line}")
    use_cache = student.model.config.to_dict().get("use_cache")
    train, held_out = (
        encoded(job.recipe, student, part, job.alpha, job.teacher) for part in job.data[:2]
    )
    watch = None
    if job.data.watch and student.head == "label":
        seen = encoded(job.recipe, student, job.data.watch, job.alpha, job.teacher)
        watch = Watch(job.data.watch, seen.rows)
    texts = texts_of(job.recipe, job.data.train) if student.head == "label" else ()
    lost = Lost(job.title, progress)
    reading = Reading(
        job.alpha,
        job.teacher,
        device,
        bf16,
        Learned(train.rows, texts),
        held_out=held_out.rows,
        told=lost.kept,
        reference=job.reference,
    )
    watched_on = job.data.held_out
    sets = (Learnt(job.data.train, train), Learnt(job.data.held_out, held_out))
    if job.signals is not None:
        bound = bind_signals(
            job.recipe, student, job.teacher, job.signals, sets, split=job.split_of_train
        )
        train, held_out, watched_on = bound.train, bound.held_out, bound.watched_on
        reading = reading._replace(signals=with_head(bound.signals, job.teacher, device))
        lost.left_out(bound, job.teacher, device)
    elif job.alpha > 0:
        lost.cut_otherwise(job.recipe, student, job.teacher, sets)
    if train.cut:
        progress.say(
            f"{job.title}: {train.cut:,} of {len(train.rows):,} inputs are longer than "
            f"{student.plan.max_tokens:,} tokens and were cut"
        )
    if train.said is not None:
        progress.say(f"{job.title}: {train.said}")
    best_by = _judged_by(student, job.alpha)
    objective = build_objective(job.recipe, student, reading)
    schedule = plan_schedule(
        len(train.rows),
        section.batch_size,
        section.micro_batch_size,
        section.epochs,
        section.evals,
        processes=world_size(),
    )
    pad = int(student.tokenizer.pad_token_id)
    if section.packing:
        check_packing(student.model, train.rows, pad)
    collator = PackingCollator(pad) if section.packing else Collator(pad)
    model: Any = student.model
    if section.lora is not None:
        if bf16 and student.head == "text":
            model = model.to(torch.bfloat16)  # frozen; the adapters stay in float32
        base = adapter_base(job.recipe.student)
        if base == CUT_BASE:  # a base of our making is nowhere else
            written_whole(folder / CUT_BASE, lambda path: save_student(student, str(path)))
        model = with_adapters(model, section.lora, student.head, base, seed)
    with progress.bar(job.title, schedule.steps, "steps") as ticker:
        trainer = DistillationTrainer(
            model,
            objective=objective,
            args=training_arguments(
                section,
                schedule,
                folder=folder / CHECKPOINTS,
                seed=seed,
                device=device,
                best_by=best_by,
                eval_batch=eval_batch(section, schedule, student.head),
            ),
            collator=collator,
            rows=train.rows,
            held_out=held_out.rows,
            callbacks=[
                *(() if job.further is None else job.further.shaping.callbacks(student.model)),
                EarlyStop(best_by, section.patience),
                Report(ticker),
                *job.callbacks,
            ],
            head_learning_rate=section.head_learning_rate if student.head != "text" else None,
            counter=WAYS[student.head].counter,
        )
        parts = (train.rows, held_out.rows)
        begun = None if job.further is None else job.further.begin(trainer, job.recipe)
        watched = Course(job.recipe, job.alpha, *parts, watched_on, folder, watch)
        watch_course(watched, trainer)
        fitted = fit(trainer, best_by, section.patience)
    verdict = write_course(watched, trainer, fitted, folder / CONVERGENCE) if is_main() else {}
    detach(model)
    further: dict[str, Any] = {}
    if job.further is not None and begun is not None:
        measure = best_by.removeprefix("held_out_")
        further = {"further": job.further.end(trainer, begun, measure)}
    whole = trainer.whole_weights()
    if not is_main():
        wait_for_all()
        return {}
    if whole is None:
        model = model.cpu()
    else:  # what was spread over processes is put together in a student of this one
        student = _build(job)
        model = student.model
        if section.lora is not None:
            model = with_adapters(model, section.lora, student.head, base, seed)
        model.load_state_dict(whole)
    if section.lora is not None:
        written_whole(folder / ADAPTER, lambda path: save_adapter(model, path))
        model = merged(model)
    if use_cache is not None:
        model.config.use_cache = use_cache  # switched off for training
    written_whole(
        folder / STUDENT, lambda path: save_student(student._replace(model=model), str(path))
    )
    write_rows(folder / HISTORY, curve(fitted.log))
    facts = {
        "student": {
            "head": student.head,
            "parameters": student.plan.parameters,
            "size_bytes": folder_size(folder / STUDENT),
            "plan": student.plan.as_json(),
        },
        "examples": {
            "train": len(train.rows),
            "held_out": len(held_out.rows),
            "watch": 0 if watch is None else len(watch.rows),
            "train_cut": train.cut,
            "held_out_cut": held_out.cut,
        },
        "alpha": job.alpha,
        **({} if train.facts is None else {"tags": train.facts}),
        "signals": "live" if reading.signals is None else "cache",
        **lost.facts,
        **_terms(section),
        **_selection(section),
        "distillation_temperature": section.distillation_temperature,
        "divergence": section.divergence,
        "divergence_beta": section.divergence_beta,
        "learning_rate": section.effective_learning_rate,
        "head_learning_rate": section.head_learning_rate,
        "lora": None if section.lora is None else section.lora.model_dump(mode="json"),
        "padding_share": round(_padding(trainer, train.rows, schedule), 4),
        "processes": world_size(),
        "precision": "bf16" if bf16 else "fp32",
        "device": device.type,
        **_course(fitted, best_by),
        "convergence": verdict["state"],
        **further,
    }
    write_json(folder / FACTS, facts)
    wait_for_all()
    return facts


def read_data(dataset_dir: Path, recipe: Recipe) -> Data:
    """The examples of a dataset's folder, as many of the training part as the recipe says.

    Raises:
        DataError: a file without examples, or a part of one class alone.
    """
    train, held_out = (_examples(dataset_dir / f"{part}.jsonl") for part in ("train", "held_out"))
    watch = dataset_dir / WATCH
    data = Data(train, held_out, list(read_records(watch, Example)) if watch.exists() else ())
    train = part_of(data.train, recipe.train.examples, recipe.seed)
    if recipe.student.head == "label" and len({one.label for one in train}) == 1:
        raise DataError(
            "train.examples",
            f"the {len(train):,} training examples that it leaves are all of one class",
            value=recipe.train.examples,
            action="train on more",
        )
    return data._replace(train=train)


def _examples(path: Path) -> list[Example]:
    found = list(read_records(path, Example))
    if not found:
        raise DataError(str(path), "holds no examples", action="run the dataset stage again")
    return found


def _judged_by(student: Student, alpha: float) -> str:
    """The held-out measure that says which weights are kept.

    Of a tagger it is the share of wrong tags: on a few thousand hard tags it grows surer of its
    mistakes, and the cross-entropy with it, while its answers still get better.
    """
    if student.head == "tags":
        return DISAGREEMENT
    return DIVERGENCE if alpha > 0 else CROSS_ENTROPY


def _build(job: Job) -> Student:
    if job.further is not None:
        trained = open_trained(job.further.folder, job.recipe)
        return job.further.shaping.shape(trained, texts_of(job.recipe, job.data.train))
    return build_student(
        job.recipe.student,
        job.recipe.task,
        student_source(job.recipe, None if job.tuned is None else str(job.tuned)),
        texts_of(job.recipe, job.data.train),
        job.recipe.seed,
        plain=reads_plain(job.recipe),
        chats=job.data.train if job.recipe.student.head == "text" else (),
    )


def _padding(trainer: DistillationTrainer, rows: Rows, schedule: Schedule) -> float:
    """Share of padding among the tokens of the first epoch, packed where it was packed."""
    lengths = rows.lengths
    order = list(LengthGroupedSampler(lengths, schedule.batch, trainer.args.seed))
    if isinstance(trainer.data_collator, PackingCollator):
        return packed_padding_share(lengths, order, schedule.micro_batch)
    return padding_share(lengths, order, schedule.micro_batch)


def _terms(section: TrainSection) -> dict[str, object]:
    """The terms beside the response, as the recipe has them, where it has any."""
    if section.terms is None:
        return {}
    plain = section.model_dump(
        mode="json", include={"terms", "balance", "balancing", "progressive"}
    )
    return dict(plain)


def _selection(section: TrainSection) -> dict[str, object]:
    """Which tokens were learnt from, where the recipe selects."""
    if section.selective is None:
        return {}
    return {"selective": section.selective.model_dump(mode="json")}


def _course(fitted: Fitted, best_by: str) -> dict[str, object]:
    """How the run went, in plain objects."""
    return {
        "steps": fitted.steps,
        "max_steps": fitted.max_steps,
        "best_step": fitted.best_step,
        "stopped_early": fitted.stopped_early,
        "selected_by": best_by,
    }


def written_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Have a folder written whole or not at all."""
    if not is_main():
        return
    partial = folder.with_name(folder.name + ".partial")
    with weight_errors(folder):
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        os.replace(partial, folder)
