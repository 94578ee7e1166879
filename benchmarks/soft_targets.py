"""What soft targets add: the demo's student against the same student on hard labels alone.

    python benchmarks/soft_targets.py --run-dir runs/quickstart [--seeds 0 1 2]

Both are trained on the same examples of a finished demo run, with the same seed, schedule and
shape; `alpha` is the recipe's for one and 0 for the other. Scored on the golden set's true labels.
Each review's score is its mean over the seeds, so intervals rest on the reviews alone.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine_line import save
from retention_students import sampling_of

from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery
from stillhouse.core.statistics import bootstrap_mean, mcnemar_exact, paired_difference
from stillhouse.models.student import open_student
from stillhouse.pipeline import read_run_recipe
from stillhouse.train.stage import run_train


def trained(recipe: Recipe, run_dir: Path, alpha: float, seed: int) -> list[float]:
    """Train one student; 1.0 for each golden review it gets right."""
    train = recipe.train.model_copy(update={"alpha": alpha, "hard_label_twin": False})
    recipe = recipe.model_copy(update={"train": train, "seed": seed})
    golden = list(read_records(run_dir / "traffic" / "golden.jsonl", LabelledQuery))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run_train(recipe, run_dir / "dataset", run_dir / "tune" / "model", work, Terminal())
        student = open_student(work / "student", recipe.task, "label", 32)
        sampling = sampling_of(recipe)

        async def ask() -> Sequence[str]:
            answers = await asyncio.gather(*(student.complete(q, sampling) for q in golden))
            await student.aclose()
            return [answer[0].text for answer in answers]

        texts = asyncio.run(ask())
    return [float(text == query.reference) for text, query in zip(texts, golden, strict=True)]


def main() -> None:
    """Train pairs, and save the paired gain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    recipe = read_run_recipe(arguments.run_dir)
    soft_runs: list[list[float]] = []
    hard_runs: list[list[float]] = []
    pairs = []
    for seed in arguments.seeds:
        one = trained(recipe, arguments.run_dir, recipe.train.alpha, seed)
        other = trained(recipe, arguments.run_dir, 0.0, seed)
        pairs.append({"seed": seed, "soft": sum(one) / len(one), "hard": sum(other) / len(other)})
        soft_runs.append(one)
        hard_runs.append(other)
        print(pairs[-1], flush=True)
    soft = np.mean(soft_runs, axis=0).tolist()
    hard = np.mean(hard_runs, axis=0).tolist()
    save(
        "soft_targets",
        f"python benchmarks/soft_targets.py --run-dir {arguments.run_dir} --seeds "
        + " ".join(map(str, arguments.seeds)),
        {
            "alpha": recipe.train.alpha,
            "distillation_temperature": recipe.train.distillation_temperature,
            "per seed": pairs,
            "soft": bootstrap_mean(soft).to_json(),
            "hard": bootstrap_mean(hard).to_json(),
            "gain": paired_difference(soft, hard).to_json(),
            "mcnemar_p_first_seed": mcnemar_exact(soft_runs[0], hard_runs[0]).p_value,
        },
    )


if __name__ == "__main__":
    main()
