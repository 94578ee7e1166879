"""The whole chain, teacher to smallest student: queries a second and bytes, within the gate.

    python benchmarks/smallest.py [--run-dir DIR] [--small]

Runs recipes/smallest.yaml from nothing; a run folder that is finished is read, not run again. Then
teacher, float student and the chosen INT8 file answer the same queries in turns, each as it is
served: the teacher and the student by torch, the file by onnxruntime, all on all cores, and alike
one query at a time. Where no form passes its gate the smallest is timed, and the result says so.
Sizes are of weights on disk (teacher) and of all files of the artefact.
Reached is: 40 times the teacher's queries/s, a fiftieth of its size, the gate passed. Saves
benchmarks/results/smallest.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine_line import save

from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import load_sets, sampling_for
from stillhouse.evaluate.compressed import CompressedRow, CompressedTable, read_table
from stillhouse.evaluate.speed import Contestant, Speed, measure_speed
from stillhouse.models.artefact_student import open_any
from stillhouse.pipeline import read_run_recipe
from stillhouse.teacher.build import open_teacher

ROOT = Path(__file__).parents[1]
LEAST_FASTER, LEAST_SMALLER = 40.0, 50.0
REPEATS, QUERIES = 7, 240


def main() -> None:
    """Run, time in turns, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark-smallest")
    parser.add_argument("--small", action="store_true", help="few queries; prints, saves nothing")
    asked = parser.parse_args()
    subprocess.run([sys.executable, "recipes/quickstart_data.py"], cwd=ROOT, check=True)
    run = [sys.executable, "-m", "stillhouse", "run", "recipes/smallest.yaml"]
    done = subprocess.run([*run, "--run-dir", str(asked.run_dir)], cwd=ROOT, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.returncode)
    table = read_table(asked.run_dir / "compress")
    if not table.artefacts:
        raise SystemExit("no form was made")
    smallest = table.chosen or min(table.artefacts, key=lambda row: row.size_bytes)
    recipe = read_run_recipe(asked.run_dir)
    repeats, queries = (1, 12) if asked.small else (REPEATS, QUERIES)
    speeds = asyncio.run(timed(recipe, asked.run_dir, smallest.folder, repeats, queries))
    found = figures(table, smallest, speeds)
    if asked.small:
        print(json.dumps(found, indent=2))
    else:
        save("smallest", "python benchmarks/smallest.py", found)


async def timed(
    recipe: Recipe, root: Path, folder: str, repeats: int, queries: int
) -> dict[str, Speed]:
    """All three in turns."""
    tuned = root / "tune" / "model"
    places = {"student": root / "train" / "student", "smallest": root / "compress" / folder}
    opened: dict[str, Any] = {"teacher": open_teacher(recipe.teacher, recipe.prices, tuned)}
    for name, place in places.items():
        opened[name] = open_any(
            place, recipe.task, recipe.student.head, recipe.evaluate.batch_size, "cpu"
        )
    asked = load_sets(recipe, RunFolder(root))[0].queries[:queries]
    sampling = sampling_for(recipe)
    try:
        everyone = {name: Contestant(one, sampling) for name, one in opened.items()}
        return await measure_speed(everyone, asked, repeats, latency_queries=len(asked) // 2)
    finally:
        for one in opened.values():
            await one.aclose()


def figures(
    table: CompressedTable, chosen: CompressedRow, speeds: dict[str, Speed]
) -> dict[str, Any]:
    """What the README shows, and which goals are reached."""
    teacher_bytes = table.teacher_size_bytes
    assert teacher_bytes is not None, "a local teacher's weights are counted"
    faster = speeds["smallest"].qps / speeds["teacher"].qps
    smaller = teacher_bytes / chosen.size_bytes
    return {
        "reached": {
            "faster": faster >= LEAST_FASTER,
            "smaller": smaller >= LEAST_SMALLER,
            "gate": chosen.verdict == "pass",
        },
        "form": chosen.name,
        "times the teacher's queries/s": faster,
        "in each turn": [
            own / teacher
            for own, teacher in zip(
                speeds["smallest"].repeats, speeds["teacher"].repeats, strict=True
            )
        ],
        "times smaller": smaller,
        "bytes": {
            "teacher": teacher_bytes,
            "student": table.student.size_bytes,
            "smallest": chosen.size_bytes,
        },
        "speeds": {name: speed._asdict() for name, speed in speeds.items()},
        "scores": {
            "teacher": table.teacher.to_json(),
            "student": table.student.sets[table.main].score.to_json(),
            "smallest": chosen.sets[table.main].score.to_json(),
        },
        "verdict": chosen.sentence,
        "against the teacher": chosen.against_teacher.model_dump(mode="json"),
    }


if __name__ == "__main__":
    main()
