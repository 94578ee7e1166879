"""Speculative decoding on a narrow task: tokens per second, acceptance, and are answers the same?

    python benchmarks/speculate.py [--runtimes transformers llama.cpp] [--ways]
        [--quick | --small | --data]

US addresses to JSON (`retention_data`), the recipe of recipes/speculate.yaml: SmolLM2-135M, tuned,
is the target, four of its layers, distilled by forward KL, the draft. 200 held-out prompts; the
goals are greedy answers that are the target's own on all of them, 1.8 times the target alone, and
more than prompt lookup and than the same four layers undistilled. It prints what each runtime
reaches. llama.cpp's draft is another, of the whole vocabulary, and is trained for itself.

With `--ways` the draft is trained in three more ways, each a run of its own that shares all stages
before training, and their acceptance is compared on the same prompts: total variation on the data
(`tv`), the same on-policy (`on_policy`: DistillSpec from the bare cut), and selective tokens
(`adaspec`).

`--quick` measures on 40 prompts, of which 20 are timed once, with three draft lengths to choose
from and without the tests of sampled answers, and saves speculate_quick.json: half an hour after
training, where the whole takes an hour and a half.

`--small` is a few minutes' check that all of it runs, and saves nothing.

`--data` only writes the data that the recipe reads. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml
from machine_line import save
from retention_data import TASKS, Sizes, write

from stillhouse.compress.speculate_report import DRAFT, SpeculateReport, report_lines
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.pipeline import run_stages

ROOT: Final = Path(__file__).parents[1]
CACHE: Final = ROOT / ".cache" / "speculate"
SIZES: Final = Sizes(traffic=1200, labelled=600, golden=0)
SMALL: Final = Sizes(traffic=60, labelled=240, golden=0)  # of fewer it learns no JSON
LEAST_SPEEDUP: Final = 1.8
RUNTIMES: Final = ("transformers", "llama.cpp")
TV: Final[dict[str, Any]] = {"divergence": "total_variation"}
ON_POLICY: Final = {"student_fraction": 0.5, "max_new_tokens": 96}
WAYS: Final[dict[str, dict[str, Any]]] = {
    "tv": TV,
    "on_policy": {**TV, "on_policy": ON_POLICY, "signals": "live"},
    "adaspec": {"selective": {"keep": 0.4}, "signals": "live"},
}
QUICK: Final[dict[str, Any]] = {
    "prompts": 40,
    "speed_prompts": 20,
    "speed_repeats": 1,
    "draft_lengths": [2, 4, 8],
    "sampling_test": None,
}


def recipe_of(small: bool, quick: bool, **changes: Any) -> Recipe:
    """recipes/speculate.yaml on the data of this benchmark."""
    raw = yaml.safe_load((ROOT / "recipes" / "speculate.yaml").read_text(encoding="utf-8"))
    raw["traffic"] |= {n: str(CACHE / f"{n}.jsonl") for n in ("labelled",)}
    raw["traffic"]["path"] = str(CACHE / "traffic.jsonl")
    if small:
        raw["traffic"]["limit"] = 60
        raw["dataset"]["min_examples"] = 10
        raw["train"] |= {"epochs": 1, "evals": 1}
        raw["speculate"] |= {"prompts": 8, "speed_prompts": 4, "choose_prompts": 2}
        raw["speculate"] |= {"draft_lengths": [2, 4], "lookup_lengths": [2]}
        raw["speculate"]["sampling_test"] = {"prompts": 4, "fixed_prompts": 1, "seeds": 20}
    if quick:
        raw["speculate"] |= QUICK
        raw["evaluate"] = {"max_queries": 40, "speed_queries": 10, "speed_repeats": 1}
    for section, keys in changes.items():
        raw[section] |= keys
    return Recipe.model_validate(raw)


def share_stages(source: Path, folder: Path) -> None:
    """What comes before training is the same for all ways, and its answers are paid for once."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("traffic", "tune", "check", "ask", "dataset", "capture", "store"):
        if (source / name).exists() and not (folder / name).exists():
            shutil.copytree(source / name, folder / name)


def verdicts(report: SpeculateReport) -> dict[str, dict[str, bool]]:
    """Which goals each runtime reaches."""
    found = {}
    for runtime in report.runtimes:
        speedup = runtime.ways[DRAFT].speedup
        over = {"prompt lookup": runtime.over_lookup, "undistilled": runtime.over_undistilled}
        found[runtime.runtime] = {
            "identical": runtime.identical == runtime.compared,
            f"{LEAST_SPEEDUP} x the target alone": bool(
                speedup and speedup.estimate >= LEAST_SPEEDUP
            ),
            **{f"above {n}": bool(v and v.low > 1.0) for n, v in over.items()},
        }
    return found


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=["transformers"])
    parser.add_argument("--ways", action="store_true")
    what = parser.add_mutually_exclusive_group()
    for name in ("--quick", "--small", "--data"):
        what.add_argument(name, action="store_true")
    asked = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    write(TASKS["address"](SMALL if asked.small else SIZES, CACHE / "packages"), CACHE)
    if asked.data:
        return
    name = "small" if asked.small else "run"
    first = CACHE / f"{name}-{asked.runtimes[0]}"
    found: dict[str, Any] = {}
    reached: dict[str, dict[str, bool]] = {}
    for runtime in asked.runtimes:
        root = CACHE / f"{name}-{runtime}"
        if root != first:
            share_stages(first, root)
        ways = asked.ways and root == first
        report = measured(root, runtime, small=asked.small, quick=asked.quick, ways=ways)
        # Folders of this machine are nobody else's.
        found[runtime] = json.loads(report.model_dump_json().replace(f"{ROOT}/", ""))
        reached |= verdicts(report)
        for line, value in report_lines(report):
            sys.stderr.write(f"{line}: {value}\n")
    for runtime, goals in reached.items():
        sys.stderr.write(
            f"{runtime}: " + ", ".join(f"{g}: {'yes' if ok else 'no'}" for g, ok in goals.items())
        )
        sys.stderr.write("\n")
    whole = [r for r, goals in reached.items() if all(goals.values())]
    sys.stderr.write(f"all goals: {', '.join(whole) or 'in no runtime'}\n")
    if not asked.small:
        name = "speculate_quick" if asked.quick else "speculate"
        recipe = recipe_of(asked.small, asked.quick).model_dump(mode="json", by_alias=True)
        how = {part: recipe[part] for part in ("student", "train")}
        save(name, " ".join(["python", *sys.argv]), {"recipe": how, "goals": reached, **found})


def measured(root: Path, runtime: str, *, small: bool, quick: bool, ways: bool) -> SpeculateReport:
    """One runtime's run to its end."""
    # llama.cpp drafts in the target's own vocabulary.
    student = {"vocabulary": "full"} if runtime == "llama.cpp" else {}
    recipe = partial(recipe_of, small, quick, student=student)
    run_stages(recipe(speculate={"runtimes": [runtime]}), root, Terminal(), last="train")
    others = {}
    for way, train in WAYS.items() if ways else ():
        folder = root.with_name(f"{root.name}-{way}")
        share_stages(root, folder)
        run_stages(recipe(train=train), folder, Terminal(), last="train")
        others[way] = f"hf:{folder / 'train' / 'student'}"
    section = {"runtimes": [runtime], "others": others}
    run_stages(recipe(speculate=section), root, Terminal())
    found = json.loads((root / "speculate" / "speculate.json").read_text(encoding="utf-8"))
    return SpeculateReport.model_validate(found)


if __name__ == "__main__":
    main()
