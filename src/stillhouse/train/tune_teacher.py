"""The tune stage: fine-tune a local teacher on the user's small labelled set, before distilling.

The true answer is the assistant's turn, and the loss is on its tokens alone. With `tune.layers`,
only the last layers are trained, and what reaches them is computed once where there are several
epochs. The part held back for the check stage is never seen, also not to stop by. Knows the recipe,
the traffic stage's files and its own folder, in which a killed run goes on from `checkpoints/`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import read_json, read_records, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_teacher import TuneSection
from stillhouse.core.recipe_train import TrainSection
from stillhouse.core.records import LabelledQuery, Message
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import tune_check_split
from stillhouse.core.tasks import Task
from stillhouse.models.loading import holds_classifier, load_causal_lm, pick_device
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.batches import Collator, encode_chats
from stillhouse.train.distil import CHECKPOINTS, written_whole
from stillhouse.train.fit import fit
from stillhouse.train.frozen import freeze_lower, with_hidden_states
from stillhouse.train.history import Report, curve
from stillhouse.train.layers import depth, upper_part
from stillhouse.train.objectives import text_objective
from stillhouse.train.schedule import plan_schedule, training_arguments
from stillhouse.train.students import teacher_source
from stillhouse.train.trainer import DistillationTrainer

MODEL: Final = "model"
SUMMARY: Final = "tune.json"
TIMINGS: Final = "timings.json"
MAX_TOKENS: Final = 2048
SAVES: Final = 2  # checkpoints over a run: each holds the whole teacher
WARMUP: Final = 0.1
ADAM_BETA2: Final = 0.98  # a run of a hundred steps ends before 0.999 has an average to speak of


@dataclass(frozen=True, slots=True)
class TrueAnswer:
    """A labelled query as a chat to learn."""

    prompt: tuple[Message, ...]
    completion: str


def run_tune(recipe: Recipe, traffic_dir: Path, work: Path, progress: Progress) -> Outcome:
    """Tune the recipe's teacher.

    Args:
        recipe: its `teacher` section with `tune`, its task and seed.
        traffic_dir: holds `labelled.jsonl`.
        work: gets `model/` (a plain folder with its tokenizer), `tune.json` and `timings.json`.
        progress: a bar.

    Raises:
        UserError: a teacher or labelled set that cannot be used.
    """
    section = recipe.teacher.tune
    assert section is not None, "the stage runs only where the recipe asks for it"
    if not (work / SUMMARY).exists():
        _tune(recipe, section, traffic_dir, work, progress)
    shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
    summary = read_json(work / SUMMARY)
    return Outcome(
        summary={name: summary[name] for name in ("n", "steps", "layers", "last_loss")},
        measured=frozenset({TIMINGS}),
    )


def _tune(
    recipe: Recipe, section: TuneSection, traffic_dir: Path, work: Path, progress: Progress
) -> None:
    started = time.perf_counter()
    queries = list(read_records(traffic_dir / "labelled.jsonl", LabelledQuery))
    if not queries:
        raise DataError(str(traffic_dir / "labelled.jsonl"), "holds no labelled queries")
    if holds_classifier(teacher_source(recipe)):
        raise UserError(
            "teacher.tune",
            "a classifier is asked as it is; only language models are tuned",
            value=recipe.teacher.model,
            action="remove teacher.tune, or give a causal language model",
        )
    learned = tune_check_split(queries, section.check_fraction, recipe.seed).first
    with progress.bar("load teacher", None, ""):
        loaded = load_causal_lm(
            teacher_source(recipe),
            device=recipe.teacher.device,
            plain=not recipe.teacher.chat_template,
        )
    model, tokenizer = loaded.model, loaded.tokenizer
    total = depth(model)
    layers = total if section.layers is None else section.layers
    if layers > total:
        raise UserError(
            "teacher.tune.layers",
            f"the teacher has {total} layers",
            value=layers,
            action=f"use at most {total}",
        )
    most = min(MAX_TOKENS, int(getattr(model.config, "max_position_embeddings", MAX_TOKENS)))
    chats = [TrueAnswer(query.messages, _answer(recipe.task, query)) for query in learned]
    encoded = encode_chats(chats, tokenizer, most)
    rows, first = encoded.rows, total - layers
    whole: Any = contextlib.nullcontext()
    if first > 0:
        freeze_lower(model, first)
        if section.epochs > 1:
            with progress.bar("run frozen layers", None, ""):
                kept = with_hidden_states(model, rows, first, int(tokenizer.pad_token_id))
            if kept is not None:
                rows, whole = kept, upper_part(model, first)
    use_cache = model.config.to_dict().get("use_cache")
    schedule = plan_schedule(len(rows), section.batch_size, None, section.epochs, SAVES)
    with whole, progress.bar("tune teacher", schedule.steps, "steps") as ticker:
        trainer = DistillationTrainer(
            model,
            objective=text_objective(alpha=0.0, distillation_temperature=1.0),
            args=training_arguments(
                TrainSection(learning_rate=section.learning_rate, warmup_ratio=WARMUP, alpha=0.0),
                schedule,
                folder=work / CHECKPOINTS,
                seed=recipe.seed,
                device=pick_device(recipe.teacher.device),
                best_by=None,
                adam_beta2=ADAM_BETA2,
            ),
            collator=Collator(int(tokenizer.pad_token_id)),
            rows=rows,
            held_out=None,
            callbacks=[Report(ticker)],
        )
        fitted = fit(trainer, None, None)
    if use_cache is not None:
        model.config.use_cache = use_cache  # switched off for training
    model.cpu()
    with quiet_transformers():
        written_whole(work / MODEL, lambda path: _save(model, tokenizer, path))
    write_json(work / TIMINGS, {"seconds": round(time.perf_counter() - started, 3)})
    losses = [[row.step, row.loss] for row in curve(fitted.log)]
    write_json(
        work / SUMMARY,
        {
            "teacher": loaded.name,
            "revision": loaded.revision,
            "n": len(rows),
            "held_back": len(queries) - len(rows),
            "cut": encoded.cut,
            "layers": layers,
            "epochs": section.epochs,
            "learning_rate": section.learning_rate,
            "batch_size": section.batch_size,
            "steps": fitted.steps,
            "last_loss": losses[-1][1],
            "losses": losses,
        },
    )


def _answer(task: Task, query: LabelledQuery) -> str:
    """The true answer as the teacher should write it: a label in the task's own spelling."""
    if task.kind != "classification":
        return query.reference
    label, problem = task.parse(query.reference)
    if problem is not None:
        raise DataError(f"labelled query {query.id}", problem, action="mend traffic.labelled")
    return str(label)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
