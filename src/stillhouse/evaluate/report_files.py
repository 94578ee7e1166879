"""The report of a finished run as files, made of its artifacts alone. Judges nothing."""

from __future__ import annotations

from stillhouse.core.jsonl import write_atomic, write_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.build import build_report, read_page_data
from stillhouse.evaluate.model_card import write_model_card
from stillhouse.evaluate.page import render_page
from stillhouse.evaluate.report import Report


def write_report(recipe: Recipe, run: RunFolder) -> Report:
    """Make report.json, report.html and the model card of a finished run, from its artifacts alone.

    Raises:
        RunFolderError: an artifact is missing or damaged.
    """
    report = build_report(recipe, run)
    write_json(run.root / "report.json", report.model_dump(mode="json"))
    html = render_page(report, read_page_data(recipe, run))
    write_atomic(run.root / "report.html", lambda handle: _write(handle.write(html)))
    write_model_card(recipe, run, report)
    return report


def _write(_: int) -> None:
    """`write_atomic` wants no result."""
