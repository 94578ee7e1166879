"""The DistilBERT recipe on two tasks: what its student keeps of an encoder that was fine-tuned.

    python benchmarks/distilbert_tasks.py [--seeds 0 1 2] [--texts N]

recipes/distilbert.yaml is run on the tasks' own text (reviews and news, at most `--texts` of them;
no golden text is read), and gives a general student of half the layers and at least 40% fewer
parameters. For each task MiniLM is fine-tuned on the true labels: that is the teacher. The general
student is then trained in three ways on the same schedule:

- distilled: on what the teacher believes of the labelled set and of traffic without labels
- alone: on the labelled set, as the paper fine-tunes on GLUE
- plain: as `distilled`, but layers 0, 2, 4 of MiniLM and as many pieces, without the recipe's
  general distillation

Scored on the golden set's true labels, but for the few texts that are longer than the teacher was
trained on and that it refuses (`refused`); a sample's score is its mean over the seeds. Speed is of
teacher and student in turns, one query after another and in batches. What is there already is not
done again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from machine_line import save
from retention_data import TASKS, Sizes, TaskData, write
from retention_students import (
    GOLDEN_ANSWERS,
    Student,
    golden_of,
    sampling_of,
    teacher_scores,
    trained,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillhouse import Distiller
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.core.records import Completion
from stillhouse.core.statistics import bootstrap_mean, paired_difference, paired_ratio
from stillhouse.evaluate.speed import Contestant, measure_speed
from stillhouse.models.loading import count_parameters, locate
from stillhouse.models.student import open_student
from stillhouse.pipeline import run_stages
from stillhouse.pretrain import pretrain_report, run_pretrain
from stillhouse.teacher.build import open_teacher

ROOT: Final = Path(__file__).parents[1]
RECIPE: Final = ROOT / "recipes" / "distilbert.yaml"
CACHE: Final = ROOT / ".cache" / "distilbert_tasks"
SIZES: Final = {"sentiment": Sizes(5000, 3000, 1200), "topic": Sizes(600, 1000, 600)}
TOKENS: Final = {"sentiment": 64, "topic": 96}
ARMS: Final = ("distilled", "alone", "plain")


def corpus(tasks: Mapping[str, TaskData], path: Path) -> None:
    """The text of both tasks' traffic and labelled sets."""
    lines = [
        json.dumps({"text": text}, ensure_ascii=False) + "\n"
        for data in tasks.values()
        for text in sorted({*data.traffic, *(text for text, _ in data.labelled)})
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def general_student(path: Path, texts: int | None) -> tuple[Path, dict[str, Any]]:
    """recipes/distilbert.yaml on that text: its student's folder, and its report."""
    limit = "null" if texts is None else texts
    changes = [f"corpus.path={path}", "corpus.group=null", f"corpus.limit={limit}"]
    changes += ["corpus.max_tokens=96", "train.untaught_twin=false"]  # `plain` is beside it here
    recipe = load_corpus_recipe(RECIPE, changes)
    run_pretrain(recipe, CACHE / "general", Terminal())
    report = pretrain_report(recipe, CACHE / "general")
    return Path(report.pop("student")), report


def fine_tuned(data: TaskData, tokens: int, folder: Path) -> Path:
    """MiniLM with the task's labels, trained on the true ones; the best of five looks is kept."""
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    labels = list(data.task["labels"])
    source = str(locate("embedded-encoder").folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = tokens
    distiller = Distiller(
        model,
        alpha=0,
        tokenizer=tokenizer,
        max_tokens=tokens,
        epochs=4,
        batch_size=16,
        learning_rate=1e-4,
        folder=folder.with_name(folder.name + ".run"),
        progress=Terminal(),
    )
    rows = list(data.labelled)
    distiller.fit([row for n, row in enumerate(rows) if n % 10], rows[::10])
    partial = folder.with_name(folder.name + ".partial")
    distiller.save(partial)
    partial.rename(folder)
    return folder


def recipe_of(name: str, data: TaskData, teacher: Path, source: str, folder: Path) -> Recipe:
    """One task's recipe; the text is read bare, as the classifier was trained."""
    write(data, folder)
    paths = {key: str(folder / f"{key}.jsonl") for key in ("labelled", "golden")}
    general = load_corpus_recipe(RECIPE).student  # what comes of it needs no second cut
    as_cut = {"layers": general.layers, "vocabulary": general.vocabulary}
    cut = as_cut if source == "embedded-encoder" else {}
    return Recipe.model_validate(
        {
            "name": f"distilbert-{name}",
            "task": {**data.task, "prompt": "{text}"},
            "traffic": {**paths, "path": str(folder / "traffic.jsonl")},
            "teacher": {
                "model": f"hf:{teacher}",
                "batch_size": 32,
                "terms": {"waived_by": "benchmark", "reason": "a model of one's own"},
            },
            "student": {"head": "label", "from": source, "max_tokens": TOKENS[name], **cut},
            "train": {
                "distillation_temperature": 2,
                "alpha": 0.9,
                "batch_size": 32,
                "evals": 4,
                "epochs": 4,
                "learning_rate": 2e-4,
            },
        }
    )


def answered(recipe: Recipe, root: Path) -> list[bool]:
    """Which golden queries the teacher answered."""
    found = {one.query_id for one in read_records(root / "ask" / GOLDEN_ANSWERS, Completion)}
    return [query.id in found for query in golden_of(recipe)]


def speeds(recipe: Recipe, root: Path, queries: int = 120) -> dict[str, Any]:
    """Teacher and student in turns: in batches of 32, and one query after another."""
    golden = list(compress(golden_of(recipe), answered(recipe, root)))[:queries]
    folder = root / "students" / Student("half", "distilled", 0).name / "student"

    async def time_all() -> dict[str, Any]:
        models = {
            "teacher": Contestant(
                open_teacher(recipe.teacher, recipe.prices, None), sampling_of(recipe)
            ),
            "student": Contestant(
                open_student(folder, recipe.task, "label", 32), sampling_of(recipe)
            ),
        }
        found = await measure_speed(models, golden, 5)
        for one in models.values():
            await one.completer.aclose()
        return {name: speed._asdict() for name, speed in found.items()}

    return asyncio.run(time_all())


def measured(name: str, data: TaskData, student: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """One task's figures."""
    base = CACHE / name
    teacher = fine_tuned(data, TOKENS[name], base / "teacher")
    recipe = recipe_of(name, data, teacher, f"hf:{student}", base / "data")
    plain = recipe_of(name, data, teacher, "embedded-encoder", base / "data")
    root = base / "run"
    run_stages(recipe, root, Terminal(), last="dataset")
    scores: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    parameters = 0
    for seed in seeds:
        for arm in ARMS:
            cell = trained(plain if arm == "plain" else recipe, root, Student("half", arm, seed))
            scores[arm].append(cell["scores"])
            parameters = max(parameters, cell["parameters"])
            print(name, arm, seed, float(np.mean(cell["scores"])), flush=True)
    read = answered(recipe, root)
    truth = list(compress(teacher_scores(recipe, root), read))
    mean = {
        arm: np.mean([list(compress(one, read)) for one in found], axis=0).tolist()
        for arm, found in scores.items()
    }
    whole = count_parameters(AutoModelForSequenceClassification.from_pretrained(teacher))
    speed = speeds(recipe, root)
    return {
        "refused": len(read) - sum(read),
        "teacher": bootstrap_mean(truth).to_json(),
        **{arm: bootstrap_mean(mean[arm]).to_json() for arm in ARMS},
        **{f"{arm} kept": paired_ratio(mean[arm], truth).to_json() for arm in ARMS},
        "gain of general distillation": paired_difference(
            mean["distilled"], mean["plain"]
        ).to_json(),
        "per seed": {
            arm: [float(np.mean(list(compress(one, read)))) for one in scores[arm]] for arm in ARMS
        },
        "parameters": {"teacher": whole, "student": parameters, "fewer": 1 - parameters / whole},
        "times faster": {
            "batches of 32": speed["student"]["qps"] / speed["teacher"]["qps"],
            "one query": speed["teacher"]["latency_p50_ms"] / speed["student"]["latency_p50_ms"],
        },
        "speed": speed,
    }


def main() -> None:
    """Pretrain, fine-tune, train, score, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--texts", type=int, help="of the general distillation, at most")
    parser.add_argument("--dry", action="store_true", help="train, and save no result")
    arguments = parser.parse_args()
    tasks = {name: TASKS[name](SIZES[name], CACHE.parent / "retention") for name in SIZES}
    corpus(tasks, CACHE / "corpus.jsonl")
    student, report = general_student(CACHE / "corpus.jsonl", arguments.texts)
    found = {name: measured(name, data, student, arguments.seeds) for name, data in tasks.items()}
    result = {"seeds": arguments.seeds, "tasks": found, "general distillation": report}
    if arguments.dry:
        print(json.dumps(found, indent=2))
        return
    command = "python benchmarks/distilbert_tasks.py --seeds " + " ".join(map(str, arguments.seeds))
    command += "" if arguments.texts is None else f" --texts {arguments.texts}"
    save("distilbert_tasks", command, result)


if __name__ == "__main__":
    main()
