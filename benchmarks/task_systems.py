"""The system recipes of tasks, run as they stand, and their figures brought into their pages.

    python benchmarks/task_systems.py ensemble | hf-bert | hf-llama | smollm2-lora

First: recipes/quickstart_data.py, and for ensemble and hf-bert recipes/classifiers.py.
Saves results/NAME.json and fills the part of the page that is marked as measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from machine_line import RESULTS, save

from stillhouse.core.progress import Terminal
from stillhouse.core.recipe_file import load_recipe
from stillhouse.pipeline import report_of, run_stages

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = {
    "ensemble": "ensemble",
    "hf-bert": "hf-examples",
    "hf-llama": "hf-examples",
    "smollm2-lora": "llama-3.2-3b-lora",
}
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


def interval(found: dict[str, Any] | None) -> str:
    """A share as per cent with its interval."""
    if found is None or found.get("estimate") is None:
        return "-"
    return "{estimate:.1%} ({low:.1%} to {high:.1%}), n {n:,}".format(**found)


def figures(whole: Any, path: str = "") -> dict[str, Any]:
    """Every interval of a report, by where it stands."""
    if not isinstance(whole, dict):
        return {}
    if {"estimate", "low", "high", "n"} <= whole.keys():
        return {path: whole}
    found: dict[str, Any] = {}
    for key, value in whole.items():
        found |= figures(value, f"{path} {key}".strip())
    return found


def write_page(page: Path) -> None:
    """Replace the measured part of a page by tables of all results that belong to it."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    parts = []
    for name, its in PAGES.items():
        path = RESULTS / f"{name}.json"
        if its != page.stem or not path.exists():
            continue
        rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
        parts.append(f"`{name}`:\n\n| | |\n|---|---|\n")
        parts.extend(f"| {key} | {interval(value)} |\n" for key, value in rows.items())
        parts.append("\n")
    page.write_text(head + BEGIN + "\n" + "".join(parts) + END + tail, encoding="utf-8")


def main() -> None:
    """Run, save, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(PAGES))
    name = parser.parse_args().name
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    root = ROOT / "runs" / name
    run_stages(recipe, root, Terminal())
    report = report_of(root).model_dump(mode="json")
    command = f"python benchmarks/task_systems.py {name}"
    save(name, command, {"figures": figures(report), "report": report})
    write_page(ROOT / "docs" / "systems" / f"{PAGES[name]}.md")


if __name__ == "__main__":
    main()
