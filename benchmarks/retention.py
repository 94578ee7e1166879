"""Retention by size on three tasks of real text: light, medium and heavy students of one teacher.

    python benchmarks/retention.py [--tasks sentiment topic address] [--seeds 0 1 2] [--small]

The teacher is SmolLM2-135M, tuned on each task's labelled set. Sizes are shares of its parameters:
light at most 10%, medium 25%, heavy 50%. Each student is trained three ways on the same schedule:

- distilled: on what the teacher believes of traffic and labelled set
- hard: on the teacher's answers alone, as fine-tuning on an API's answers is
- alone: on the labelled set's true answers alone, with no teacher

(hard and alone are trained at the first size only.) Scored on the golden set's true answers; each
sample's score is its mean over the seeds, so intervals rest on samples. Every trained student is
kept in .cache/retention and is not trained again: killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from machine_line import save
from retention_data import TASKS, Sizes, write

from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery
from stillhouse.core.statistics import bootstrap_mean, paired_difference, paired_ratio
from stillhouse.core.tasks import ExtractionTask
from stillhouse.evaluate.scorers import scorers_for
from stillhouse.evaluate.speed import Contestant, measure_speed
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.student import open_student
from stillhouse.pipeline import run_stages
from stillhouse.teacher.build import open_teacher
from stillhouse.train.stage import run_train

CACHE: Final = Path(__file__).parents[1] / ".cache" / "retention"
ARMS: Final = ("distilled", "hard", "alone")
GOLDEN_ANSWERS: Final = "golden_completions.jsonl"
# quality and speed that each size is to reach, from the seed's own table and beyond it
GOALS: Final = {"light": (0.90, 20.0), "medium": (0.96, 8.0), "heavy": (0.99, 3.0)}

ENCODER: Final[Mapping[str, Any]] = {"head": "label", "from": "embedded-encoder"}
CUT: Final[Mapping[str, Any]] = {"prefer": "depth", "depth": "importance"}


class Plan(NamedTuple):
    """One task's recipe in parts: how much data, the teacher, and the students."""

    sizes: Sizes
    small: Sizes
    teacher: Mapping[str, Any]
    students: Mapping[str, Mapping[str, Mapping[str, Any]]]


def _label(tokens: int, rows: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Label students: two cut from MiniLM, one from the teacher itself."""
    read = {"max_tokens": tokens}
    few = {"distillation_temperature": 2, "alpha": 0.9, "batch_size": 32, "evals": 4}
    return {
        "light": {
            "student": {**ENCODER, **read, "layers": [0, 1, 2], "vocabulary": rows},
            "train": {**few, "epochs": 6, "learning_rate": 3e-4},
        },
        "medium": {
            "student": {**ENCODER, **read},
            "train": {**few, "epochs": 4, "learning_rate": 1e-4},
        },
        "heavy": {
            "student": {
                **read,
                "head": "label",
                "from": "teacher",
                "size": "heavy",
                "cut": CUT,
                "vocabulary": "full",  # rows that are kept take layers, which take time
            },
            "train": {**few, "epochs": 2, "learning_rate": 1e-4, "head_learning_rate": 1e-3},
        },
    }


def _text() -> dict[str, dict[str, dict[str, Any]]]:
    """Text students, all cut from the teacher."""
    few = {"distillation_temperature": 1, "alpha": 0.9, "batch_size": 32, "evals": 4}
    read = {"head": "text", "from": "teacher", "max_tokens": 192}
    return {
        size: {
            "student": {**read, "size": size},
            "train": {**few, "epochs": epochs, "learning_rate": rate},
        }
        for size, epochs, rate in (("light", 8, 1e-3), ("medium", 5, 6e-4), ("heavy", 3, 3e-4))
    }


PLANS: Final[Mapping[str, Plan]] = {
    "sentiment": Plan(
        Sizes(5000, 1500, 1200),
        Sizes(160, 80, 60),
        {"tune": {"layers": 8, "epochs": 2, "learning_rate": 3e-4, "check_fraction": 0.15}},
        _label(64, 20_000),
    ),
    "topic": Plan(
        Sizes(1100, 400, 600),
        Sizes(80, 60, 40),
        {"tune": {"layers": 8, "epochs": 3, "learning_rate": 3e-4, "check_fraction": 0.15}},
        _label(96, 20_000),
    ),
    "address": Plan(
        Sizes(2500, 800, 400),
        Sizes(40, 40, 20),
        {
            "tune": {"layers": 12, "epochs": 3, "learning_rate": 3e-4, "check_fraction": 0.1},
            "max_tokens": 96,
        },
        _text(),
    ),
}


class Student(NamedTuple):
    """One student to train."""

    size: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.size}-{self.arm}-{self.seed}"


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
            "dataset": {"min_examples": 20},
            **students,
        }
    )


def trained(recipe: Recipe, root: Path, student: Student) -> dict[str, Any]:
    """Train one student unless it is there; its scores on the golden set, sample by sample."""
    place = root / "students" / student.name
    if (place / "cell.json").exists():
        found: dict[str, Any] = json.loads((place / "cell.json").read_text(encoding="utf-8"))
        return found
    changes: dict[str, Any] = {"alpha": 0.0} if student.arm in ARMS[1:] else {}
    one = recipe.model_copy(
        update={"seed": student.seed, "train": recipe.train.model_copy(update=changes)}
    )
    dataset = root / "dataset"
    if student.arm == "alone":
        dataset = _labelled_alone(dataset, place / "dataset")
    started = time.perf_counter()
    run_train(one, dataset, root / "tune" / "model", place, Terminal())
    seconds = time.perf_counter() - started
    facts = json.loads((place / "train.json").read_text(encoding="utf-8"))
    verdict = json.loads((place / "convergence.json").read_text(encoding="utf-8"))
    answers = asyncio.run(ask(open_student(place / "student", one.task, one.student.head, 32), one))
    cell = {
        "scores": scored(one, root, answers),
        "parameters": facts["student"]["parameters"],
        "examples": facts["examples"]["train"],
        "steps": facts["steps"],
        "train_seconds": seconds,
        "convergence": verdict["verdict"],
    }
    shutil.rmtree(place / "dataset", ignore_errors=True)
    (place / "cell.json").write_text(json.dumps(cell), encoding="utf-8")
    return cell


def _labelled_alone(dataset: Path, folder: Path) -> Path:
    """The examples whose answer is true, and no others; a tenth of them to watch training on."""
    folder.mkdir(parents=True, exist_ok=True)
    both = [e for n in ("train", "held_out") for e in read_records(dataset / f"{n}.jsonl", Example)]
    rows = [example for example in both if example.reference]
    cut = max(1, len(rows) // 10)
    for name, part in (("train", rows[cut:]), ("held_out", rows[:cut])):
        lines = [row.model_dump_json(exclude_none=True) + "\n" for row in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


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


def report(
    recipes: Mapping[str, Recipe],
    root: Path,
    cells: Mapping[Student, Mapping[str, Any]],
    teacher: Sequence[float],
    speed: Mapping[str, Any],
) -> dict[str, Any]:
    """One task's table."""
    seeds = sorted({student.seed for student in cells})

    def mean(size: str, arm: str) -> list[float] | None:
        found = [cells[s]["scores"] for s in cells if (s.size, s.arm) == (size, arm)]
        return np.mean(found, axis=0).tolist() if len(found) == len(seeds) else None

    rows: dict[str, Any] = {}
    for size in recipes:
        distilled = mean(size, "distilled")
        assert distilled is not None
        first = cells[Student(size, "distilled", seeds[0])]
        kept = paired_ratio(distilled, teacher)
        faster = speed[size]["qps"] / speed["teacher"]["qps"] if speed else None
        wanted = GOALS[size]
        rows[size] = {
            "parameters": first["parameters"],
            "score": bootstrap_mean(distilled).to_json(),
            "retention": kept.to_json(),
            "times faster": faster,
            "goal reached": {
                "retention": kept.estimate >= wanted[0],
                "speed": None if faster is None else faster >= wanted[1],
            },
            "per seed": [float(np.mean(cells[s]["scores"])) for s in cells if s.size == size],
            "convergence": first["convergence"],
        }
        for arm in ARMS[1:]:
            other = mean(size, arm)
            if other is not None:
                rows[size][arm] = bootstrap_mean(other).to_json()
                rows[size][f"gain over {arm}"] = paired_difference(distilled, other).to_json()
    return {"teacher": bootstrap_mean(list(teacher)).to_json(), "students": rows, "speed": speed}


def main() -> None:
    """Run the teachers, train the students, save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--sizes", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--until", choices=("teacher", "students", "speed"), default="speed")
    parser.add_argument("--small", action="store_true", help="few texts; nothing is saved")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"seeds": arguments.seeds, "tasks": {}}
    for task in arguments.tasks:
        plan = PLANS[task]
        sizes = plan.small if arguments.small else plan.sizes
        base = CACHE / ("small" if arguments.small else "full") / task
        root = base / "run"
        recipes = {
            size: recipe_of(task, plan, size, sizes, base / "data") for size in arguments.sizes
        }
        run_stages(recipes[arguments.sizes[0]], root, Terminal(), last="dataset")
        if arguments.until == "teacher":
            continue
        cells = {}
        for seed in arguments.seeds:
            for size in arguments.sizes:
                for arm in ARMS if size == arguments.sizes[0] else ARMS[:1]:
                    student = Student(size, arm, seed)
                    cells[student] = trained(recipes[size], root, student)
                    print(task, student.name, float(np.mean(cells[student]["scores"])), flush=True)
        speed = speeds(recipes, root, 96) if arguments.until == "speed" else {}
        teacher = teacher_scores(recipes[arguments.sizes[0]], root)
        result["tasks"][task] = report(recipes, root, cells, teacher, speed)
    if arguments.small or arguments.until != "speed":
        print(json.dumps(result, indent=2))
        return
    command = "python benchmarks/retention.py --tasks " + " ".join(arguments.tasks)
    save("retention", command, result)


if __name__ == "__main__":
    main()
