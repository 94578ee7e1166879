"""Run the image system as its recipe stands, and write what was measured into its page.

    python recipes/vision_data.py
    python benchmarks/vision.py

Saves results/vision.json and the table of docs/systems/vision.md. A run goes on where it stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine_line import save

from stillhouse.core.progress import Terminal
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.images import run_images

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "systems" / "vision.md"
MEASURED = re.compile(r"(<!-- measured -->\n).*?(<!-- end of measured -->)", re.S)


def table(report: Mapping[str, Any], seeds: int) -> str:
    """The report as Markdown."""

    def share(found: Mapping[str, float]) -> str:
        return "{estimate:.1%} ({low:.1%} to {high:.1%})".format(**found)

    accuracy, sizes = report["accuracy"], report["parameters"]
    gain = report["gain_of_teaching"]
    fast = report["speed"]["times_as_fast"]
    by = report["by_T"]
    names = ["alone" if one["T"] is None else f"T {one['T']:g}" for one in by]
    rows = [
        ("teacher", share(accuracy["teacher"])),
        (f"student, T {report['chosen_T']:g}", share(accuracy["student"])),
        ("student on labels alone", share(accuracy["alone"])),
        (
            "gain of teaching",
            f"{100 * gain['estimate']:.1f} points ({100 * gain['low']:.1f} to "
            f"{100 * gain['high']:.1f})",
        ),
        ("retention", share(report["retention"])),
        ("agreement with the teacher", share(report["agreement"])),
        ("parameters", f"{sizes['student'] / sizes['teacher']:.1%} of the teacher's"),
        (
            "speed",
            f"{fast['estimate']:.1f} times the teacher's ({fast['slowest']:.1f} to "
            f"{fast['fastest']:.1f})",
        ),
    ]
    looks = (
        (f"errors of {report['test']:,}, mean", "errors", "{:.1f}"),
        ("errors of the validation images, which choose T", "validation_errors", "{:.1f}"),
        ("divergence from the teacher, nats", "divergence", "{:.3f}"),
    )
    lines = [
        f"Measured by `benchmarks/vision.py`: {report['test']:,} digits of the test, {seeds} "
        "seeds; intervals (95%) over images, of each image's mean over seeds; the lowest T of "
        "equals is kept:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(
            f"| {title} | " + " | ".join(form.format(one[key]) for one in by) + " |"
            for title, key, form in looks
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, save, write."""
    recipe = load_image_recipe(ROOT / "recipes" / "vision.yaml")
    report = run_images(recipe, ROOT / "runs" / "benchmark-vision", Terminal())
    del report["student"], report["machine"]  # a folder of this machine; `save` names the machine
    save("vision", "python benchmarks/vision.py", report)
    found = table(report, recipe.train.seeds)
    text = MEASURED.sub(lambda match: match[1] + found + match[2], PAGE.read_text("utf-8"))
    PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
