"""The dataset card: README.md of the dataset's folder, in the Hugging Face form.

YAML front matter, then text; all of it from the recipe and dataset.json. Says nothing that the run
has not recorded: language and licence of the user's own texts are theirs to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from stillhouse.core.jsonl import read_json, void, write_atomic
from stillhouse.core.recipe import Recipe
from stillhouse.core.rights import terms_sentence
from stillhouse.dataset.watch import WATCH

CARD: Final = "README.md"
TASK_CATEGORIES: Final = {
    "classification": "text-classification",
    "extraction": "text-generation",
    "generation": "text-generation",
}
_SIZES: Final = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def write_dataset_card(recipe: Recipe, folder: Path, digest: str) -> None:
    """Write README.md beside dataset.json; `digest` is the dataset's hash in lineage.json."""
    text = dataset_card(recipe, read_json(folder / "dataset.json"), digest)
    write_atomic(folder / CARD, lambda handle: void(handle.write(text)))


def dataset_card(recipe: Recipe, facts: Mapping[str, Any], digest: str) -> str:
    """The card's text; `facts` is what dataset.json holds."""
    teacher, task = recipe.teacher, recipe.task
    head = {
        "pretty_name": f"{recipe.name}: {task.name}",
        "license": "unknown",
        "task_categories": [TASK_CATEGORIES[task.kind]],
        "size_categories": [size_category(int(facts["examples"]))],
        "annotations_creators": ["machine-generated"],
        "source_datasets": ["original"],
        "tags": ["distillation", "synthetic", "stillhouse"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train.jsonl"},
                    {"split": "test", "path": "held_out.jsonl"},
                    *([{"split": "validation", "path": WATCH}] if facts.get("watch") else []),
                ],
            }
        ],
    }
    acceptance = facts["acceptance"]
    revisions = facts.get("teacher_revisions", {})
    parts = [
        f"# {recipe.name}: {task.name}",
        f"Answers of `{teacher.model}` to {facts['queries']:,} queries of one task "
        f"({task.kind}), checked, without repeats, split by groups of near-duplicates. "
        f"Dataset hash: `{digest}`.",
        "## Teacher and its terms",
        f"- Teacher: `{teacher.model}`",
        *(f"- Revision `{name}`: {count:,} examples" for name, count in revisions.items()),
        f"- Terms: {terms_sentence(teacher)}",
        "- The licence of the queries is not known to the tool that wrote this card: `license` "
        "above is yours to fill in.",
        "## Content",
        _table(
            ("part", "examples"),
            [
                ("train", facts["train"]),
                ("held out (`test`)", facts["held_out"]),
                *([("watched (`validation`)", facts["watch"])] if facts.get("watch") else []),
            ],
        ),
        "Each line is a chat (`messages`, the answer last) with its provenance: `id` (the query), "
        "`teacher`, `teacher_revision`, `prompt_hash`, `filters` and, where the traffic named "
        "users, `user` as a pseudonym. "
        f"{facts['with_truth']:,} training examples hold a true answer in place of the teacher's."
        + _watched(facts),
        *_classes(facts),
        "## What was kept",
        f"{acceptance['estimate']:.1%} of {acceptance['n']:,} answers passed the checks (95% "
        f"interval {acceptance['low']:.1%} to {acceptance['high']:.1%}). Filters, in order: "
        + ", ".join(f"`{name}`" for name in facts.get("filters", ()))
        + ".",
        _table(("rejected as", "count"), list(facts["rejections"].items())),
        "## Personal data",
        _personal(facts),
        "## Limits",
        "- The answers are a model's: its mistakes and leanings are in them.\n"
        "- The queries are one system's traffic: other traffic may differ.\n"
        "- The held-out part shows how well a student follows the teacher, not how often either "
        "is right.",
    ]
    return front_matter(head) + "\n\n".join(_joined(parts)) + "\n"


def size_category(count: int) -> str:
    """The size category that the Hugging Face hub knows."""
    return next((name for limit, name in _SIZES if count < limit), "n>10M")


def front_matter(head: Mapping[str, Any]) -> str:
    """A card's metadata, between its two lines of dashes."""
    text: str = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n\n"


def _joined(parts: list[str]) -> list[str]:
    """Consecutive list items in one paragraph."""
    joined: list[str] = []
    for part in parts:
        if not part:
            continue
        if part.startswith("- ") and joined and joined[-1].startswith("- "):
            joined[-1] += "\n" + part
        else:
            joined.append(part)
    return joined


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {count:,} |" for name, count in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---:|", *lines])


def _watched(facts: Mapping[str, Any]) -> str:
    if not facts.get("watch"):
        return ""
    return (
        f" The {facts['watch']:,} watched ones hold the teacher's answer and the true one as "
        "`reference`; no student is trained on them."
    )


def _classes(facts: Mapping[str, Any]) -> list[str]:
    classes = facts.get("classes")
    if not classes:
        return []
    rows = [f"| {n} | {c:,} | {classes['held_out'][n]:,} |" for n, c in classes["train"].items()]
    return ["\n".join(["| label | train | held out |", "|---|---:|---:|", *rows])]


def _personal(facts: Mapping[str, Any]) -> str:
    users = facts.get("users", 0)
    if users:
        return (
            f"The examples are of {users:,} users, named by pseudonyms that only the run folder "
            "can resolve: `stillhouse forget --user NAME RUN` removes one. The texts themselves "
            "are as the traffic held them."
        )
    return (
        "The traffic named no users, so that one user's examples cannot be told from another's. "
        "The texts are as the traffic held them."
    )
