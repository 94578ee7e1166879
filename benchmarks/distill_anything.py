"""Held-out score and time beside distill-anything 0.5: one teacher, one student, one text.

    make demo
    python benchmarks/distill_anything.py [--run-dir runs/quickstart] [--rows 1200] [--epochs 2]
        [--label-epochs 6]

The teacher is the demo's (SmolLM2-135M, tuned on film reviews); the student is the lowest eight and
the last two of its thirty layers under its own head, saved before either begins; the text is the
demo's examples, in the same words. Each trains for the same epochs at the same learning rate and
as many rows a step, with the defaults of its own for all else (alpha 0.5 and T 2 in both), in a
process of its own, in turns; time is of the whole process: load, train, save. All students are
asked by the same code what they believe about the golden set.

Beside them stand two that a recipe here would have for labels, which the peer has not: the same ten
layers under a label head, on what the teacher believes of the labels (alpha 0.9), for more epochs
(`--label-epochs`: six take about half the peer's time); and the demo's own student, a fifth of the
size (five layers of MiniLM), trained as the demo's recipe says, on these rows.

A student that is trained and scored is kept in .cache and not trained again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from contenders import CACHE, peer_python
from machine_line import save
from retention_students import sampling_of, scored, teacher_scores

from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, LabelledQuery
from stillhouse.core.statistics import bootstrap_mean, paired_difference
from stillhouse.models.student import open_student
from stillhouse.pipeline import read_run_recipe
from stillhouse.train.stage import run_train
from stillhouse.train.students import build_student, save_student

PEER: Final = ("distill-anything", "torch==2.13.0", "distill-anything==0.5.0")
BARE: Final = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
LAYERS: Final = (*range(8), 28, 29)  # what the lowest read is whole, what the last write is words
LEARNING_RATE: Final = 2e-4  # of a student that was cut: both need it to heal in few steps
STEP_ROWS: Final = 8  # there: 2 rows, 4 times
OWN, LABELS, OTHER = "stillhouse", "stillhouse, label head", "distill-anything"
ENCODER: Final = "stillhouse, the demo's encoder"


def examples_in(root: Path, part: str, rows: int) -> list[Example]:
    """The first of a part of the dataset."""
    return list(read_records(root / "dataset" / f"{part}.jsonl", Example))[:rows]


def prepared(recipe: Recipe, root: Path, work: Path, rows: int) -> None:
    """The student before training, and the text in both forms."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "dataset").mkdir(exist_ok=True)
    chosen = examples_in(root, "train", rows)
    for part, found in (("train", chosen), ("held_out", examples_in(root, "held_out", 60))):
        lines = [one.model_dump_json(exclude_none=True) + "\n" for one in found]
        (work / "dataset" / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    with (work / "rows.jsonl").open("w", encoding="utf-8") as file:
        for one in chosen:
            prompt = "\n\n".join(message.content for message in one.prompt).rstrip()
            pair = {"prompt": prompt, "response": f" {one.completion}"}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    tuned = str(root / "tune" / "model")
    student = build_student(recipe.student, recipe.task, tuned, [], 0, plain=True)
    save_student(student, str(work / "student"))
    # There a chat template is what keeps the prompt as it was written.
    shutil.copytree(work / "student", work / "student-there", dirs_exist_ok=True)
    (work / "student-there" / "chat_template.jinja").write_text(BARE, encoding="utf-8")


def text_recipe(base: Recipe, source: str, epochs: float, seed: int) -> Recipe:
    """The same student here: soft targets at its defaults."""
    plain = base.model_dump(mode="json", by_alias=True, exclude={"student", "train", "seed"})
    return Recipe.model_validate(
        {
            **plain,
            "seed": seed,
            "student": {"head": "text", "from": source, "max_tokens": 192}
            | ({"layers": list(LAYERS)} if source == "teacher" else {}),
            "train": {
                "epochs": epochs,
                "evals": 1,
                "learning_rate": LEARNING_RATE,
                "batch_size": STEP_ROWS,
            },
        }
    )


def label_recipe(base: Recipe, epochs: float, seed: int) -> Recipe:
    """As many of the tuned teacher's layers under a label head."""
    plain = text_recipe(base, "teacher", epochs, seed).model_dump(mode="json", by_alias=True)
    plain["student"] |= {"head": "label"}
    plain["train"] |= {"alpha": 0.9, "head_learning_rate": 1e-3}
    return Recipe.model_validate(plain)


def encoder_recipe(base: Recipe, seed: int) -> Recipe:
    """The demo's own student and training."""
    plain = base.model_dump(mode="json", by_alias=True)
    return Recipe.model_validate({**plain, "seed": seed})


def train_own(recipe: Recipe, root: Path, work: Path, out: Path) -> None:
    """What the child process of this side does."""
    run_train(recipe, work / "dataset", root / "tune" / "model", out, Silent())


async def answers_of(
    folder: Path, recipe: Recipe, root: Path, head: Literal["text", "label"]
) -> list[str]:
    """A trained student's answers to the golden set."""
    completer = open_student(folder, recipe.task, head, 32)
    golden = list(read_records(root / "traffic" / "golden.jsonl", LabelledQuery))
    sampling = sampling_of(recipe)
    try:
        found = await asyncio.gather(*(completer.complete(q, sampling) for q in golden))
    finally:
        await completer.aclose()
    return [one[0].text for one in found]


def timed(command: Sequence[str]) -> float:
    """Seconds of a whole process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def trained_one(
    name: str, seed: int, base: Recipe, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train one student in a process of its own, unless it is there; its scores and seconds."""
    root, work = arguments.run_dir, CACHE / "distill-anything-runs"
    out = work / f"{name}-{seed}"
    epochs = arguments.label_epochs if name == LABELS else arguments.epochs
    asked = [arguments.rows, epochs, LEARNING_RATE, STEP_ROWS, arguments.threads]
    kept = out.with_name(out.name + ".json")
    if kept.exists():
        cell: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if cell["asked"] == asked:
            return cell
    shutil.rmtree(out, ignore_errors=True)
    if name == OTHER:
        told = {
            "student": str(work / "student-there"),
            "teacher": str(root / "tune" / "model"),
            "data": str(work / "rows.jsonl"),
            "out": str(out),
            "epochs": arguments.epochs,
            "learning_rate": LEARNING_RATE,
            "seed": seed,
            "threads": arguments.threads,
        }
        script = Path(__file__).with_name("peer_distill_anything_learn.py")
        spent = timed([str(peer_python(*PEER)), str(script), json.dumps(told)])
        folder = out
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    else:
        source = f"hf:{work / 'student'}"
        if name == OWN:
            recipe = text_recipe(base, source, epochs, seed)
        elif name == LABELS:
            recipe = label_recipe(base, epochs, seed)
        else:
            recipe = encoder_recipe(base, seed)
        told = {
            "recipe": recipe.model_dump(mode="json", by_alias=True),
            "root": str(root),
            "work": str(work),
            "out": str(out),
        }
        spent = timed([sys.executable, __file__, "--child", json.dumps(told)])
        folder = out / "student"
    head: Literal["text", "label"] = "label" if name in (LABELS, ENCODER) else "text"
    cut = text_recipe(base, "teacher", arguments.epochs, seed)
    found = scored(cut, root, asyncio.run(answers_of(folder, cut, root, head)))
    weights = open_student(folder, cut.task, head, 1).info.parameters
    cell = {"asked": asked, "scores": found, "seconds": spent, "parameters": weights}
    kept.write_text(json.dumps(cell), encoding="utf-8")
    return cell


def main() -> None:
    """Train both in turns, score, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--label-epochs", type=int, default=6)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--child", help="used by this script itself")
    arguments = parser.parse_args()
    if arguments.child:
        given = json.loads(arguments.child)
        recipe = Recipe.model_validate(given["recipe"])
        train_own(recipe, Path(given["root"]), Path(given["work"]), Path(given["out"]))
        return
    root, work = arguments.run_dir, CACHE / "distill-anything-runs"
    base = read_run_recipe(root)
    cut = text_recipe(base, "teacher", arguments.epochs, 0)
    prepared(cut, root, work, arguments.rows)
    order = (OWN, LABELS, ENCODER, OTHER)
    scores: dict[str, list[list[float]]] = {name: [] for name in order}
    seconds: dict[str, list[float]] = {name: [] for name in order}
    parameters: dict[str, int] = {}
    for seed in arguments.seeds:
        for name in order if seed % 2 == 0 else order[::-1]:
            cell = trained_one(name, seed, base, arguments)
            scores[name].append(cell["scores"])
            seconds[name].append(cell["seconds"])
            parameters[name] = cell["parameters"]
            print(
                name, seed, float(np.mean(cell["scores"])), f"{cell['seconds']:.0f} s", flush=True
            )
    mean = {name: np.mean(found, axis=0).tolist() for name, found in scores.items()}
    result: dict[str, Any] = {
        "rows": arguments.rows,
        "epochs": arguments.epochs,
        "epochs of the label head": arguments.label_epochs,
        "parameters": parameters,
        "layers": len(LAYERS),
        "learning rate": LEARNING_RATE,
        "rows a step": STEP_ROWS,
        "seeds": arguments.seeds,
        "threads": arguments.threads,
        "teacher": bootstrap_mean(teacher_scores(cut, root)).to_json(),
        **{name: bootstrap_mean(mean[name]).to_json() for name in mean},
        "per seed": {name: [float(np.mean(one)) for one in scores[name]] for name in scores},
        "gain": {
            name: paired_difference(mean[name], mean[OTHER]).to_json()
            for name in (OWN, LABELS, ENCODER)
        },
        "seconds": seconds,
        "times faster": {
            name: float(np.median(np.divide(seconds[OTHER], seconds[name])))
            for name in (OWN, LABELS, ENCODER)
        },
    }
    command = f"python benchmarks/distill_anything.py --rows {arguments.rows}"
    command += (
        f" --epochs {arguments.epochs} --label-epochs {arguments.label_epochs} --seeds "
        + " ".join(map(str, arguments.seeds))
    )
    save("distill_anything", f"{command} --threads {arguments.threads}", result)


if __name__ == "__main__":
    main()
