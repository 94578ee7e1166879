"""Run the systems that are trained on a corpus, and write what was measured into their pages.

    python recipes/corpus_data.py reviews | languages | news     # first, once each
    python benchmarks/pretrained.py distilbert distilmbert tinyllama mobilebert [--set KEY=VALUE]

Saves results/pretrain_NAME.json and the table of docs/systems/NAME.md. A run goes on where it was
stopped. `--set` overrides a key of the recipes, and is named in the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine_line

from stillhouse.cli_pretrain import figure_rows
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.pretrain import pretrain_report, run_pretrain

ROOT = Path(__file__).parents[1]
MEASURED, END = "<!-- measured -->\n", "<!-- end of measured -->"
COLUMNS = ("", "teacher", "student", "before training", "untaught twin", "kept")


def table(report: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """A report as Markdown: figures with intervals, sizes and speed, how many texts."""
    rows = figure_rows(report)
    used = [n for n in range(len(COLUMNS)) if n == 0 or any(row[n] != "-" for row in rows)]
    lines = [
        "| " + " | ".join(COLUMNS[n] for n in used) + " |",
        "|" + "---|" * len(used),
        *("| " + " | ".join(row[n] for n in used) + " |" for row in rows),
    ]
    corpus, sizes, fast = report["corpus"], report["parameters"], report["speed"]["times_as_fast"]
    machine = report["machine"]
    asked = f", with {', '.join(overrides)}" if overrides else ""
    seen = report["training"]["tokens"]["train"]
    text = (
        f"Measured by `benchmarks/pretrained.py {report['name']}`{asked}; one seed; intervals at "
        f"{100 * report['confidence']:.0f}% are over groups of {corpus['texts']['test']:,} test "
        f"texts ({report['test']['teacher']['targets']:,} targets). The student saw "
        f"{corpus['texts']['train']:,} texts ({seen:,} tokens) in {report['training']['steps']:,} "
        f"steps; it has {sizes['student']:,} of the teacher's {sizes['teacher']:,} parameters "
        f"({100 - 100 * sizes['student'] / sizes['teacher']:.0f}% fewer) and is "
        f"{fast['estimate']:.2f} times as fast ({fast['slowest']:.2f} to {fast['fastest']:.2f} in "
        f"{fast['n']} turns; {machine['processor']}, {machine['cores']} cores)."
    )
    return "\n".join([text, "", *lines]) + "\n"


def main() -> None:
    """Run, save, and write the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="+", choices=("distilbert", "distilmbert", "mobilebert", "tinyllama")
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--root", type=Path, default=ROOT / ".cache" / "pretrained")
    arguments = parser.parse_args()
    for name in arguments.names:
        recipe = load_corpus_recipe(ROOT / "recipes" / f"{name}.yaml", arguments.overrides)
        run_pretrain(recipe, arguments.root / name, Terminal())
        report = pretrain_report(recipe, arguments.root / name)
        del report["student"]  # a folder of this machine
        asked = "".join(f" --set {item}" for item in arguments.overrides)
        machine_line.save(
            f"pretrain_{name}", f"python benchmarks/pretrained.py {name}{asked}", report
        )
        page = ROOT / "docs" / "systems" / f"{name}.md"
        found = table(report, arguments.overrides)
        head, _, rest = page.read_text("utf-8").partition(MEASURED)
        page.write_text(head + MEASURED + found + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
