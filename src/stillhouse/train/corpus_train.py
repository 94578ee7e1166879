"""Train a model on the rows of a corpus: a teacher that is first adapted, a student, its twin.

A folder with `train.json` is finished; one with `checkpoints/` goes on from them. Knows models,
rows and one folder; knows no stage.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_train import TrainSection
from stillhouse.models.divergence_kind import divergence_of
from stillhouse.models.loading import count_parameters, folder_size, pick_device
from stillhouse.train.batches import Rows
from stillhouse.train.checkpoints import weight_errors
from stillhouse.train.corpus_models import save_model
from stillhouse.train.distil import CHECKPOINTS, FACTS, HISTORY, written_whole
from stillhouse.train.features_wiring import Live, Pair, assembled, read_one
from stillhouse.train.fit import fit
from stillhouse.train.history import EarlyStop, Report, curve, write_rows
from stillhouse.train.kinds import Kind, way_of
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.parts import detach
from stillhouse.train.schedule import plan_schedule, training_arguments, uses_bf16
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response
from stillhouse.train.token_rows import TokenCollator
from stillhouse.train.trainer import CROSS_ENTROPY, DIVERGENCE, DistillationTrainer

TERMS: Final = "objective.terms"
ROOM: Final = 1 << 26  # logits of a held-out forward pass: 256 MB in float32


@dataclass(frozen=True, slots=True)
class CorpusJob:
    """One model to train.

    `teacher` reads along; `None`: the text's own tokens alone. `trained` names the weights that are
    trained, by the beginning of their names; `None`: all. `output` is the folder of the result.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    section: TrainSection
    seed: int
    train: Rows
    validation: Rows
    title: str
    output: str
    teacher: PreTrainedModel | None = None
    trained: Iterable[str] | None = None


def train_on_corpus(job: CorpusJob, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train, and write the model's folder, `history.json` and, last, `train.json`.

    Returns what `train.json` holds. A finished folder is only read.

    Raises:
        UserError: insides that cannot be compared.
        StillhouseError: training went off.
    """
    if (folder / FACTS).exists():
        with weight_errors(folder):  # killed before they were removed
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        return read_json(folder / FACTS)
    section, way = job.section, way_of(job.kind)
    device = pick_device(section.device)
    schedule = plan_schedule(
        len(job.train), section.batch_size, section.micro_batch_size, section.epochs, section.evals
    )
    model: Any = job.model
    model.to(device)
    use_cache = model.config.to_dict().get("use_cache")
    collator = TokenCollator(int(job.tokenizer.pad_token_id))
    if job.trained is not None:
        chosen = tuple(job.trained)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in chosen)
    best_by = DIVERGENCE if section.alpha > 0 else CROSS_ENTROPY
    with progress.bar(job.title, schedule.steps, "steps") as ticker:
        trainer = DistillationTrainer(
            model,
            objective=_objective(job, device, collator),
            args=training_arguments(
                section,
                schedule,
                folder=folder / CHECKPOINTS,
                seed=job.seed,
                device=device,
                best_by=best_by,
                eval_batch=rows_at_once(job.validation, job.model),
            ),
            collator=collator,
            rows=job.train,
            held_out=job.validation,
            callbacks=[EarlyStop(best_by, section.patience), Report(ticker)],
            counter=way.counter,
        )
        fitted = fit(trainer, best_by, section.patience)
    detach(model)
    for weight in model.parameters():
        weight.requires_grad_(True)
    if use_cache is not None:
        model.config.use_cache = use_cache  # switched off for training
    model = model.cpu().eval()
    written_whole(folder / job.output, lambda path: save_model(model, job.tokenizer, path))
    write_rows(folder / HISTORY, curve(fitted.log))
    facts: dict[str, Any] = {
        "parameters": count_parameters(model),
        "size_bytes": folder_size(folder / job.output),
        "rows": {"train": len(job.train), "validation": len(job.validation)},
        "tokens": {"train": sum(job.train.lengths), "validation": sum(job.validation.lengths)},
        "taught": section.alpha > 0 or section.insides,
        "steps": fitted.steps,
        "max_steps": fitted.max_steps,
        "best_step": fitted.best_step,
        "stopped_early": fitted.stopped_early,
        "selected_by": best_by,
        "precision": "bf16" if uses_bf16(section.precision, device) else "fp32",
        "device": device.type,
    }
    write_json(folder / FACTS, facts)
    with weight_errors(folder):
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return facts


def rows_at_once(rows: Rows, model: Any) -> int:
    """Rows of a held-out forward pass, so that logits of all their tokens have room."""
    longest = max(rows.lengths)
    return max(1, min(64, ROOM // (longest * int(model.config.vocab_size))))


def _objective(job: CorpusJob, device: torch.device, collator: TokenCollator) -> Any:
    section, way = job.section, way_of(job.kind)
    source = None
    if job.teacher is not None:
        teacher: Any = job.teacher
        source = LiveTeacher(teacher.to(device).eval(), way.reader)
    response = Response(
        section.alpha,
        section.distillation_temperature,
        divergence_of(section.divergence, section.divergence_beta),
    )
    base = TermsObjective(way.reader, (Weighted(response),), source)
    pair: Pair | None = None
    if section.insides:
        assert source is not None
        lengths = job.train.lengths
        shortest = min(range(len(lengths)), key=lengths.__getitem__)
        batch = {name: t.to(device) for name, t in collator([job.train[shortest]]).items()}
        student: Any = job.model
        student.eval()
        pair = read_one(student, Live(source.model, source), way.reader, batch, section.terms or ())
    return assembled(base, section, job.seed, pair, len(job.train), field=TERMS)
