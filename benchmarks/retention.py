"""Retention by size on three tasks of real text: light, medium and heavy students of one teacher.

    python benchmarks/retention.py [--tasks sentiment topic address] [--seeds 0 1 2] [--small]

The teacher is SmolLM2-135M, tuned on each task's labelled set. Sizes are shares of its parameters,
at most 10% (light), 25% (medium) and 50% (heavy). Students of the two tasks with labels are MiniLM
with two of its six layers and 20,000 of its rows (light), MiniLM as it is (medium, 17%), and the
teacher's ten lowest layers under a label head (heavy, 47%). Light and medium students of the
addresses are the same MiniLMs as taggers (docs/tagging.md), the heavy one is ten layers of the
teacher, those that it can spare least, and writes.
Light students are trained in three ways, with the same number of steps:

- distilled: on what the teacher believes of traffic, and of the labelled set beside its true labels
- hard: on the teacher's own answers to all of these, as fine-tuning on an API's answers is
- alone: on the labelled set's true answers, with no teacher

A tagger learns from answers in all three, never from a belief: distilled and hard differ in the
labelled set alone, which has its true answers in the one and the teacher's in the other.

Scored on the golden set's true answers; each sample's score is its mean over the seeds, so
intervals rest on samples (reviews: on films). Every trained student is kept in .cache/retention
with a digest of what it depends on: killed, the same command goes on. The result keeps what it
holds of tasks and sizes that were not asked for, each with its date; sizes of one task only where
the teacher's score is the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from machine_line import RESULTS, save
from retention_data import TASKS, Sizes, write
from retention_students import (
    Student,
    golden_of,
    layers_chosen,
    sampling_of,
    teacher_scores,
    trained,
)

from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_cut import CutSection
from stillhouse.core.statistics import bootstrap_mean, paired_difference, paired_ratio
from stillhouse.evaluate.speed import Contestant, measure_speed
from stillhouse.models.student import open_student
from stillhouse.pipeline import run_stages
from stillhouse.teacher.build import open_teacher
from stillhouse.train.planning_signals import captures

CACHE: Final = Path(__file__).parents[1] / ".cache" / "retention"
ARMS: Final = ("distilled", "hard", "alone")
# quality and speed that each size is to reach, from the seed's own table and beyond it
GOALS: Final = {"light": (0.90, 20.0), "medium": (0.96, 8.0), "heavy": (0.99, 3.0)}

PLANS_LEAST: Final = 10  # layers of the shallowest text student

ENCODER: Final[Mapping[str, Any]] = {"head": "label", "from": "embedded-encoder"}


class Plan(NamedTuple):
    """One task's recipe in parts: how much data, the teacher, and the students."""

    sizes: Sizes
    small: Sizes
    teacher: Mapping[str, Any]
    students: Mapping[str, Mapping[str, Mapping[str, Any]]]


def _label(
    tokens: int, rows: int, epochs: tuple[int, int, int], most: int | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Label students: two cut from MiniLM, one from the teacher itself; `epochs` of each. The
    last, the slowest, learns from at most so many examples."""
    read = {"max_tokens": tokens}
    few = {"distillation_temperature": 2, "alpha": 0.9, "batch_size": 32, "evals": 4}
    return {
        "light": {
            "student": {**ENCODER, **read, "layers": [0, 1], "vocabulary": rows},
            "train": {**few, "epochs": epochs[0], "learning_rate": 3e-4},
        },
        "medium": {
            "student": {**ENCODER, **read},
            "train": {**few, "epochs": epochs[1], "learning_rate": 1e-4},
        },
        "heavy": {
            # the lowest layers: what they read is whole, and a few hundred steps make a head of it
            "student": {**read, "head": "label", "from": "teacher", "layers": list(range(10))},
            "train": {
                **few,
                "epochs": epochs[2],
                "examples": most,
                "batch_size": 8,
                "learning_rate": 2e-4,
                "head_learning_rate": 1e-3,
            },
        },
    }


def _address(rows: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Two taggers, some 900 steps each, and a text student of ten of the teacher's layers, with
    the rows that addresses use; it learns in small batches: what was cut needs steps to heal."""
    tags = {"head": "tags", "from": "embedded-encoder", "max_tokens": 96}
    few = {"alpha": 0, "batch_size": 16, "epochs": 8, "evals": 4}
    return {
        "light": {
            "student": {**tags, "layers": [0, 1], "vocabulary": rows},
            "train": {**few, "learning_rate": 3e-4},
        },
        "medium": {"student": tags, "train": {**few, "learning_rate": 1e-4}},
        "heavy": {
            "student": {
                "head": "text",
                "from": "teacher",
                "cut": {"depth": "greedy"},
                "layers": 10,
                "max_tokens": 192,
                "vocabulary": "task",
            },
            "train": {
                "distillation_temperature": 1,
                "alpha": 0.9,
                "batch_size": 8,
                "evals": 4,
                "epochs": 3,
                "learning_rate": 3e-4,
                "signals": "cache",
            },
        },
    }


PLANS: Final[Mapping[str, Plan]] = {
    "sentiment": Plan(
        Sizes(9500, 1500, 1200),
        Sizes(160, 80, 60),
        {"tune": {"layers": 8, "epochs": 2, "learning_rate": 3e-4, "check_fraction": 0.15}},
        _label(64, 20_000, (2, 2, 1), 2500),
    ),
    "topic": Plan(
        Sizes(1100, 400, 600),
        Sizes(80, 60, 40),
        {"tune": {"layers": 8, "epochs": 3, "learning_rate": 3e-4, "check_fraction": 0.15}},
        _label(96, 20_000, (4, 3, 3)),
    ),
    "address": Plan(
        Sizes(900, 1000, 400),
        Sizes(40, 40, 20),
        {
            "tune": {"layers": 20, "epochs": 2, "learning_rate": 3e-4, "check_fraction": 0.08},
            "max_tokens": 96,
        },
        _address(20_000),
    ),
}


def recipe_of(task: str, plan: Plan, size: str, sizes: Sizes, data: Path) -> Recipe:
    """The recipe of one task and size; what comes before training is the same for all sizes."""
    made = TASKS[task](sizes, CACHE / "packages")
    write(made, data)
    students = plan.students[size]
    return Recipe.model_validate(
        {
            "name": f"retention-{task}",
            "task": dict(made.task),
            "traffic": {
                name: str(data / f"{file}.jsonl")
                for name, file in (
                    ("path", "traffic"),
                    ("labelled", "labelled"),
                    ("golden", "golden"),
                )
            },
            "teacher": {
                "model": "embedded",
                "chat_template": False,
                "batch_size": 32,
                **plan.teacher,
            },
            "dataset": {"min_examples": 20, "watch": 0},
            **students,
        }
    )


def with_layers(recipes: Mapping[str, Recipe], root: Path) -> dict[str, Recipe]:
    """Counts of layers to be chosen greedily as the layers themselves: one choice serves all."""
    counts = {
        size: recipe.student.layers
        for size, recipe in recipes.items()
        if recipe.student.cut.depth == "greedy" and isinstance(recipe.student.layers, int)
    }
    if not counts:
        return dict(recipes)
    least = min(PLANS_LEAST, *counts.values())
    found = dict(recipes)
    for size, count in counts.items():
        layers = layers_chosen(recipes[size], root, count, least)
        changed = {"layers": layers, "cut": CutSection()}
        student = recipes[size].student.model_copy(update=changed)
        found[size] = recipes[size].model_copy(update={"student": student})
    return found


def speeds(recipes: Mapping[str, Recipe], root: Path, queries: int) -> dict[str, Any]:
    """Teacher and one student of each size, in turns, on the golden set."""
    first = next(iter(recipes.values()))
    golden = golden_of(first)[:queries]
    models: dict[str, Contestant] = {}

    async def time_all() -> dict[str, Any]:
        tuned = root / "tune" / "model"
        models["teacher"] = Contestant(
            open_teacher(first.teacher, first.prices, tuned), sampling_of(first)
        )
        for size, recipe in recipes.items():
            folder = root / "students" / Student(size, "distilled", 0).name / "student"
            student = open_student(folder, recipe.task, recipe.student.head, 32)
            models[size] = Contestant(student, sampling_of(recipe))
        found = await measure_speed(models, golden, 3)
        for one in models.values():
            await one.completer.aclose()
        return {name: speed._asdict() for name, speed in found.items()}

    return asyncio.run(time_all())


def groups_of(recipe: Recipe, named: Mapping[str, str]) -> list[str]:
    """The group of each golden sample; one of its own where none is named."""
    texts = [recipe.task.input_text(query) for query in golden_of(recipe)]
    return [named.get(text, text) for text in texts]


def report(
    recipes: Mapping[str, Recipe],
    cells: Mapping[Student, Mapping[str, Any]],
    teacher: Sequence[float],
    speed: Mapping[str, Any],
    groups: Sequence[str],
) -> dict[str, Any]:
    """One task's table; `groups` [golden] name the samples that are drawn together."""
    rows: dict[str, Any] = {}
    for size in recipes:
        arms: dict[str, Any] = {}
        mean: dict[str, list[float]] = {}
        for arm in ARMS:
            mine = [cells[one] for one in cells if (one.size, one.arm) == (size, arm)]
            if not mine:
                continue
            mean[arm] = np.mean([cell["scores"] for cell in mine], axis=0).tolist()
            arms[arm] = {
                "score": bootstrap_mean(mean[arm], groups=groups).to_json(),
                "per seed": [float(np.mean(cell["scores"])) for cell in mine],
                "examples": mine[0]["examples"],
                "steps": mine[0]["steps"],
                "train seconds": [round(cell["train_seconds"]) for cell in mine],
                "convergence": [cell["convergence"] for cell in mine],
            }
            if arm != "distilled":
                gain = paired_difference(mean["distilled"], mean[arm], groups=groups)
                arms[arm]["gain of distillation"] = gain.to_json()
        kept = paired_ratio(mean["distilled"], teacher, groups=groups)
        faster = speed[size]["qps"] / speed["teacher"]["qps"] if speed else None
        wanted = GOALS[size]
        rows[size] = {
            "date": date.today().isoformat(),
            "seeds": sorted({one.seed for one in cells if one.size == size}),
            "parameters": next(c["parameters"] for one, c in cells.items() if one.size == size),
            "retention": kept.to_json(),
            "times faster": faster,
            "speed": {name: speed[name] for name in ("teacher", size) if name in speed},
            "goal": {"retention": wanted[0], "times faster": wanted[1]},
            "reached": {
                "retention": kept.estimate >= wanted[0],
                "retention, lower bound": kept.low >= wanted[0],
                "speed": None if faster is None else faster >= wanted[1],
            },
            "arms": arms,
        }
    whole = bootstrap_mean(list(teacher), groups=groups)
    return {"teacher": whole.to_json(), "students": rows}


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks of an earlier result, and sizes of those of now beside the same teacher."""
    tasks: dict[str, Any] = dict(before)
    for name, one in now.items():
        earlier = before.get(name)
        same = earlier is not None and earlier["teacher"] == one["teacher"]
        kept = earlier["students"] if earlier is not None and same else {}
        rows = {**kept, **one["students"]}
        tasks[name] = {**one, "students": {size: rows[size] for size in GOALS if size in rows}}
    return tasks


def main() -> None:
    """Run the teachers, train the students, save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--sizes", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--until", choices=("teacher", "students", "speed"), default="speed")
    parser.add_argument("--small", action="store_true", help="few texts; nothing is saved")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"tasks": {}}
    for task in arguments.tasks:
        plan = PLANS[task]
        sizes = plan.small if arguments.small else plan.sizes
        base = CACHE / ("small" if arguments.small else "full") / task
        root = base / "run"
        recipes = {
            size: recipe_of(task, plan, size, sizes, base / "data") for size in arguments.sizes
        }
        # what a text student reads of the teacher is captured once, for all that do
        first = next((r for r in recipes.values() if captures(r)), recipes[arguments.sizes[0]])
        last = "capture" if captures(first) else "dataset"
        run_stages(first, root, Terminal(), last=last)
        if arguments.until == "teacher":
            continue
        recipes = with_layers(recipes, root)
        cells = {}
        for seed in arguments.seeds:
            for size in arguments.sizes:
                for arm in ARMS if size == "light" else ARMS[:1]:
                    student = Student(size, arm, seed)
                    cells[student] = trained(recipes[size], root, student)
                    print(task, student.name, float(np.mean(cells[student]["scores"])), flush=True)
        speed = speeds(recipes, root, 96) if arguments.until == "speed" else {}
        groups = groups_of(first, TASKS[task](sizes, CACHE / "packages").groups)
        teacher = teacher_scores(first, root)
        result["tasks"][task] = report(recipes, cells, teacher, speed, groups)
    if arguments.small or arguments.until != "speed":
        print(json.dumps(result, indent=2))
        return
    command = "python benchmarks/retention.py --tasks " + " ".join(arguments.tasks)
    if arguments.sizes != list(GOALS):
        command += " --sizes " + " ".join(arguments.sizes)
    if arguments.seeds != [0, 1, 2]:
        command += " --seeds " + " ".join(map(str, arguments.seeds))
    before = json.loads((RESULTS / "retention.json").read_text(encoding="utf-8"))
    save("retention", command, {**result, "tasks": merged(before["tasks"], result["tasks"])})


if __name__ == "__main__":
    main()
