"""Students of `retention.py` and `distilbert_tasks.py`: trained in three ways, kept, scored.

A trained student is kept with a digest of all that it depends on (recipe, dataset, teacher) and is
trained again where that has changed. Knows runs and recipes; knows no task and no goal.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.jsonl import read_json, read_records
from stillhouse.core.machine import package_versions
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery
from stillhouse.core.scorers import scorers_for
from stillhouse.core.stage_files import hash_file
from stillhouse.core.tasks import ExtractionTask
from stillhouse.models.chat import answer_text, prompt_text
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.loading import load_causal_lm
from stillhouse.models.student import open_student
from stillhouse.train.cut_greedy import greedy_order
from stillhouse.train.layers import blocks_of
from stillhouse.train.planning_signals import captures
from stillhouse.train.stage import run_train

GOLDEN_ANSWERS: Final = "golden_completions.jsonl"
HARD_ARMS: Final = ("hard", "alone")


class Student(NamedTuple):
    """One student to train."""

    size: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.size}-{self.arm}-{self.seed}"


def layers_chosen(recipe: Recipe, root: Path, keep: int, least: int) -> tuple[int, ...]:
    """The `keep` layers of the tuned teacher that the task can spare least.

    They are chosen once for all students of a task, on the first of its dataset, and kept beside
    the run: `student.cut.depth: greedy` would choose the same again for each.

    Args:
        least: the fewest layers that any student of the task keeps.
    """
    place = root / "layers.json"
    of = hash_file(root / "tune" / "manifest.json") + hash_file(root / "dataset" / "train.jsonl")
    if not place.exists() or read_json(place)["of"] != of:
        plain = not recipe.teacher.chat_template
        loaded = load_causal_lm(str(root / "tune" / "model"), device="cpu", plain=plain)
        texts = [
            prompt_text(loaded.tokenizer, one.prompt)
            + answer_text(loaded.tokenizer, one.completion)
            for one in read_records(root / "dataset" / "train.jsonl", Example)
        ]
        order = greedy_order(loaded.model, loaded.tokenizer, texts, least)
        total = len(blocks_of(loaded.model))
        place.write_text(json.dumps({"of": of, "total": total, "go": order}), encoding="utf-8")
    found: Any = read_json(place)
    gone = set(found["go"][: found["total"] - keep])
    return tuple(n for n in range(found["total"]) if n not in gone)


def trained(recipe: Recipe, root: Path, student: Student) -> dict[str, Any]:
    """Train one student unless it is there; its scores on the golden set, sample by sample."""
    place = root / "students" / student.name
    one = _armed(recipe, root, student)
    of = _digest(one, root, student)
    if (place / "cell.json").exists():
        found = read_json(place / "cell.json")
        if found["of"] == of:
            return found
        shutil.rmtree(place)
    started_of = place / "of.json"
    if place.exists() and (not started_of.exists() or read_json(started_of)["of"] != of):
        shutil.rmtree(place)  # checkpoints of another student
    place.mkdir(parents=True, exist_ok=True)
    started_of.write_text(json.dumps({"of": of}), encoding="utf-8")
    dataset = root / "dataset"
    if student.arm in HARD_ARMS:
        dataset = _changed(root, student.arm, place / "dataset")
    signals = root / "capture" if one.train.signals == "cache" else None
    started = time.perf_counter()
    run_train(one, dataset, root / "tune" / "model", place, Terminal(), signals=signals)
    seconds = time.perf_counter() - started
    facts: Any = read_json(place / "train.json")
    answers = asyncio.run(ask(open_student(place / "student", one.task, one.student.head, 32), one))
    cell = {
        "of": of,
        "scores": scored(one, root, answers),
        "parameters": facts["student"]["parameters"],
        "examples": facts["examples"]["train"],
        "steps": facts["steps"],
        "train_seconds": seconds,
        "convergence": read_json(place / "convergence.json")["verdict"],
    }
    shutil.rmtree(place / "dataset", ignore_errors=True)
    (place / "cell.json").write_text(json.dumps(cell), encoding="utf-8")
    return cell


def _armed(recipe: Recipe, root: Path, student: Student) -> Recipe:
    """The recipe of one arm: hard targets where it says so, and as many steps for all arms."""
    changes: dict[str, Any] = {}
    if student.arm in HARD_ARMS:
        changes = {"alpha": 0.0, "signals": "live"}
    if student.arm == "alone":
        rows = list(read_records(root / "dataset" / "train.jsonl", Example))
        true = len(_labelled(root)[0])
        changes["epochs"] = recipe.train.epochs * len(rows) / true
    train = recipe.train.model_copy(update=changes)
    capture = None if student.arm in HARD_ARMS else recipe.capture
    return recipe.model_copy(update={"seed": student.seed, "train": train, "capture": capture})


def _digest(recipe: Recipe, root: Path, student: Student) -> str:
    """Of all that a student depends on."""
    stages = ["capture"] if captures(recipe) else []
    stages += ["tune"] if (root / "tune" / "manifest.json").exists() else []
    parts = {name: hash_file(root / "dataset" / f"{name}.jsonl") for name in ("train", "held_out")}
    told = {
        "recipe": recipe.model_dump(
            mode="json", by_alias=True, include={"task", "student", "train", "seed"}
        ),
        "stages": {name: read_json(root / name / "manifest.json")["outputs"] for name in stages},
        "dataset": parts,
        "arm": student.arm,
        "versions": package_versions("stillhouse", "torch", "transformers"),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _labelled(root: Path) -> tuple[list[Example], list[Example]]:
    """The examples whose answer is true: to train on, and a tenth, by group, to watch it on."""
    both = [
        one
        for part in ("train", "held_out")
        for one in read_records(root / "dataset" / f"{part}.jsonl", Example)
        if one.reference is not None
    ]
    groups = sorted({one.group for one in both})
    watched = set(groups[::10])
    return (
        [one for one in both if one.group not in watched],
        [one for one in both if one.group in watched],
    )


def _changed(root: Path, arm: str, folder: Path) -> Path:
    """The dataset of an arm: the labelled examples alone, or all with the teacher's own answers."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(zip(("train", "held_out"), _labelled(root), strict=True))
    if arm == "hard":
        said = {
            c.query_id: c.text for c in read_records(root / "ask" / "completions.jsonl", Completion)
        }
        parts = {
            part: [
                _as_answered(one, said[one.id])
                for one in read_records(root / "dataset" / f"{part}.jsonl", Example)
            ]
            for part in parts
        }
    for part, rows in parts.items():
        lines = [row.model_dump_json(exclude_none=True) + "\n" for row in rows]
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _as_answered(example: Example, text: str) -> Example:
    """With the teacher's answer where the true one stood."""
    if example.reference is None:
        return example
    answer = example.messages[-1].model_copy(update={"content": text})
    label = None if example.label is None else text
    return example.model_copy(
        update={"messages": (*example.prompt, answer), "label": label, "reference": None}
    )


async def ask(completer: Completer, recipe: Recipe) -> list[str]:
    """A model's answers to the golden set."""
    assert recipe.traffic.golden is not None
    golden = golden_of(recipe)
    try:
        sampling = sampling_of(recipe)
        found = await asyncio.gather(*(completer.complete(q, sampling) for q in golden))
    finally:
        await completer.aclose()
    return [one[0].text for one in found]


def golden_of(recipe: Recipe) -> list[LabelledQuery]:
    """The golden set, as the traffic stage reads it."""
    root = Path(recipe.traffic.golden or "").parent.parent / "run"
    return list(read_records(root / "traffic" / "golden.jsonl", LabelledQuery))


def sampling_of(recipe: Recipe) -> Sampling:
    """How teacher and students are asked."""
    if isinstance(recipe.task, ExtractionTask):
        return Sampling(max_tokens=recipe.teacher.max_tokens)
    return Sampling(labels=recipe.task.labels)  # type: ignore[union-attr]


def scored(recipe: Recipe, root: Path, answers: Sequence[str]) -> list[float]:
    """The task's first score of each answer: accuracy, or field F1 for JSON."""
    golden = list(read_records(root / "traffic" / "golden.jsonl", LabelledQuery))
    scorer = scorers_for(recipe.task)[0]
    return [
        float(scorer.score(answer, query.reference))
        for answer, query in zip(answers, golden, strict=True)
    ]


def teacher_scores(recipe: Recipe, root: Path) -> list[float]:
    """Of what it answered to the golden set in the run."""
    by_id = {c.query_id: c.text for c in read_records(root / "ask" / GOLDEN_ANSWERS, Completion)}
    golden = read_records(root / "traffic" / "golden.jsonl", LabelledQuery)
    return scored(recipe, root, [by_id.get(query.id, "") for query in golden])
