"""What each objective adds: one student, one teacher, one set of texts, three seeds.

    python benchmarks/objectives.py [--small]

The teacher is MiniLM (22.7M) fine-tuned on true labels of review snippets; the student is its
layers 0, 2 and 4 with the vocabulary of its texts and a new head, trained on other snippets with
the teacher's answers. Each row is the same run but for what its `train` section minimises.
Scored on the true labels of films that none of them saw. A review's score is its mean over the
seeds, and gains are paired by review, so intervals rest on the reviews alone. `--small` is for
trying the script: one seed, few texts, nothing saved.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine_line import save

from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message
from stillhouse.core.statistics import bootstrap_mean, paired_difference
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import load_classifier
from stillhouse.train.stage import run_train

DOCS = Path(__file__).parents[1] / "docs" / "objectives.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")
LABELS = ("negative", "positive")
READS = runpy.run_path(str(Path(__file__).parents[1] / "recipes" / "quickstart_data.py"))
HARD: dict[str, Any] = {"alpha": 0.0}
SOFT: dict[str, Any] = {"alpha": 0.9, "distillation_temperature": 2.0}
HIDDEN = {"kind": "hidden", "loss": "cosine", "layers": "skip", "weight": 1.0}
RELATION = {"kind": "relation", "of": ["queries", "keys", "values"], "weight": 1.0}
DISTANCE = {"kind": "rkd_distance", "weight": 5.0}
ANGLE = {"kind": "rkd_angle", "weight": 10.0}
ALL = [HIDDEN, RELATION, DISTANCE, ANGLE]
ROWS: Mapping[str, dict[str, Any]] = {
    "hard labels": HARD,
    "hard + hidden (mse)": HARD | {"terms": [{**HIDDEN, "loss": "mse", "weight": 10.0}]},
    "hard + hidden (cosine)": HARD | {"terms": [HIDDEN]},
    "hard + attention": HARD | {"terms": [{"kind": "attention", "weight": 1.0}]},
    "hard + activation": HARD | {"terms": [{"kind": "activation", "weight": 10.0}]},
    "hard + relation (MiniLM)": HARD | {"terms": [RELATION]},
    "hard + rkd": HARD | {"terms": [DISTANCE, ANGLE]},
    "hard + similarity": HARD | {"terms": [{"kind": "similarity", "weight": 10.0}]},
    "hard + contrastive": HARD | {"terms": [{"kind": "contrastive", "weight": 0.02}]},
    "response": SOFT,
    "response + hidden (cosine)": SOFT | {"terms": [HIDDEN]},
    "response + all, fixed": SOFT | {"terms": ALL},
    "response + all, uncertainty": SOFT | {"terms": ALL, "balance": "uncertainty"},
    "response + all, gradient norm": SOFT | {"terms": ALL, "balance": "gradient_norm"},
    "response + hidden, progressive": SOFT | {"terms": [HIDDEN], "progressive": {"until": 0.3}},
}


def examples(reviews: Sequence[Mapping[str, str]], beliefs: np.ndarray | None) -> list[Example]:
    """Reviews with their true labels, or with a teacher's beliefs [N, C] and its first choice."""
    found = []
    for number, review in enumerate(reviews):
        belief = None if beliefs is None else beliefs[number]
        label = review["label"] if belief is None else LABELS[int(belief.argmax())]
        messages = (
            Message(role="user", content=review["text"]),
            Message(role="assistant", content=label),
        )
        found.append(
            Example(
                id=f"r{number}",
                messages=messages,
                task="task",
                group=review["movie_name"],
                teacher="minilm",
                teacher_revision="1",
                label=label,
                label_probabilities=None if belief is None else tuple(belief.tolist()),
            )
        )
    return found


def write(folder: Path, train: Sequence[Example], held_out: Sequence[Example]) -> Path:
    """A dataset stage's folder."""
    folder.mkdir(parents=True)
    for name, rows in (("train", train), ("held_out", held_out)):
        lines = "".join(row.to_json() + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def recipe(seed: int, teacher: str, student: Mapping[str, Any], train: Mapping[str, Any]) -> Recipe:
    """A run's recipe."""
    return Recipe.model_validate(
        {
            "name": "objectives",
            "seed": seed,
            "task": {"kind": "classification", "labels": list(LABELS)},
            "traffic": {"path": "x"},
            "teacher": {"model": teacher, "terms": {"waived_by": "benchmark", "reason": "local"}},
            "student": {"head": "label", "max_tokens": 48, **student},
            "train": {"batch_size": 32, "evals": 1, "patience": None, **train},
        }
    )


def beliefs(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """What a classifier believes of texts [N, C]."""
    reader = ClassifierReader(load_classifier(str(folder)))
    blocks = [texts[i : i + 64] for i in range(0, len(texts), 64)]
    return np.concatenate([reader.read(block).log_p.double().exp().numpy() for block in blocks])


def show(table: Mapping[str, Any]) -> None:
    """Write the table into docs/objectives.md, between its two marks."""
    lines = [
        "| objective | accuracy | gain over hard labels | gain over response |",
        "|---|---|---|---|",
    ]
    for title, row in table.items():
        cells = [
            f"{100 * row[key]['estimate']:{sign}.1f} "
            f"[{100 * row[key]['low']:{sign}.1f}, {100 * row[key]['high']:{sign}.1f}]"
            for key, sign in (
                ("accuracy", ""),
                ("gain over hard labels", "+"),
                ("gain over response", "+"),
            )
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    head, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    tail = rest.partition(MARKS[1])[2]
    text = "\n".join([MARKS[0], "", *lines, "", MARKS[1]])
    DOCS.write_text(head + text + tail, encoding="utf-8")


def main() -> None:
    """Train the teacher and all rows, and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone; nothing saved")
    parser.add_argument("--texts", type=int, default=512, help="texts that a student learns from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    small: bool = arguments.small
    rows = {title: ROWS[title] for title in arguments.only} if arguments.only else ROWS
    seeds = [0] if small else arguments.seeds
    taught, learned, tested = (200, 120, 100) if small else (2000, arguments.texts, 800)

    films: dict[str, list[dict[str, str]]] = {}
    for review in READS["read_reviews"]():
        films.setdefault(review["movie_name"], []).append(review)
    ordered = [review for film in sorted(films, key=READS["order_of"]) for review in films[film]]
    golden, rest = ordered[:tested], ordered[tested:]
    rest.sort(key=lambda review: READS["order_of"](review["text"]))
    labelled, unlabelled = rest[:taught], rest[taught : taught + learned + 100]
    truth = [review["label"] for review in golden]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = examples(labelled, None)
        data = write(folder / "labelled", own[:-50], own[-50:])
        alone = recipe(
            0,
            "embedded",
            {"from": "embedded-encoder"},
            {"alpha": 0.0, "learning_rate": 1e-4, "head_learning_rate": 1e-3, "epochs": 2},
        )
        run_train(alone, data, None, folder / "teacher", Silent())
        teacher = folder / "teacher" / "student"

        def right(model: Path) -> list[float]:
            found = beliefs(model, [review["text"] for review in golden]).argmax(1)
            return [float(LABELS[k] == t) for k, t in zip(found, truth, strict=True)]

        teachers = right(teacher)
        print(f"teacher {np.mean(teachers):.3f}", flush=True)
        marks = beliefs(teacher, [review["text"] for review in unlabelled])
        answered = examples(unlabelled, marks)
        data = write(folder / "data", answered[:learned], answered[learned:])
        scores: dict[str, list[float]] = {}
        seconds: dict[str, float] = {}
        per_seed: dict[str, list[float]] = {}
        for title, train in rows.items():
            begun, runs = time.perf_counter(), []
            for seed in seeds:
                work = folder / "student"
                student = {"from": "teacher", "layers": [0, 2, 4], "vocabulary": "task"}
                rates = {"learning_rate": 2e-4, "head_learning_rate": 1e-3, "epochs": 2}
                one = recipe(seed, f"hf:{teacher}", student, {**rates, **train})
                with tempfile.TemporaryDirectory(dir=folder) as work_name:
                    work = Path(work_name)
                    run_train(one, data, None, work, Silent())
                    runs.append(right(work / "student"))
            scores[title] = np.mean(runs, axis=0).tolist()
            per_seed[title] = [float(np.mean(run)) for run in runs]
            seconds[title] = round((time.perf_counter() - begun) / len(seeds), 1)
            print(f"{title:32s} {np.mean(scores[title]):.4f} {seconds[title]} s", flush=True)
    print(f"{time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of a core")
    if small or arguments.only:
        return
    table = {
        title: {
            "accuracy": bootstrap_mean(score).to_json(),
            "per seed": per_seed[title],
            "gain over hard labels": paired_difference(score, scores["hard labels"]).to_json(),
            "gain over response": paired_difference(score, scores["response"]).to_json(),
            "seconds a run": seconds[title],
        }
        for title, score in scores.items()
    }
    show(table)
    save(
        "objectives",
        f"python benchmarks/objectives.py --texts {learned} --seeds " + " ".join(map(str, seeds)),
        {
            "labels of the teacher": taught,
            "texts": learned,
            "reviews scored": tested,
            "teacher accuracy": bootstrap_mean(teachers).to_json(),
            "table": table,
            "seconds": round(time.perf_counter() - started, 1),
        },
    )


if __name__ == "__main__":
    main()
