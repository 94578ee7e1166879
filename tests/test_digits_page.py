"""The page about the digits says what the benchmark's saved result says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "digits.json"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = ROOT / "benchmarks" / "digits_report.py"
    spec = importlib.util.spec_from_file_location("digits_report", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _part(errors: int) -> dict[str, Any]:
    row = {"bias": 1.5, "errors": errors, "errors on them": errors // 2, "of": 1000}
    keys = "as trained", "bias from validation", "bias best for test"
    return {"per seed": [dict.fromkeys(keys, row)]}


RESULT_OF_TWO: dict[str, Any] = {
    "data": "Images",
    "images": {"train": 3000, "test": 10_000},
    "teacher": {"errors": 900},
    "gain": {
        "per seed": [{"taught": 1200, "alone": 1300}, {"taught": 1210, "alone": 1330}],
        "fewer errors": {"mean": 110.0, "low": 50.0, "high": 170.0},
    },
    "sweep": [
        {"width": width, "T": t, "errors": errors}
        for width in (30, 100)
        for t, errors in ((None, 1300.0), (1.0, 1250.0), (4.0, 1200.0))
    ],
    "class omitted": _part(1500),
    "two classes shown": _part(6000),
}


def test_the_table_holds_ours_and_the_papers(report: ModuleType) -> None:
    table = report.table(RESULT_OF_TWO)
    assert "| the small net taught, mean of 2 seeds | 1,205.0 | 74 |" in table
    assert "| 110.0 (50.0 to 170.0) | 72 (one run) |" in table
    assert "| a class omitted, as trained (+1.5) | 1,500, 750 of 1,000 on what was not" in table
    assert "| two layers of 100 | 1,300 | 1,250 | 1,200 |" in table


def test_the_picture_stands_by_itself(report: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "digits.svg"
    report.write_plot(RESULT_OF_TWO, path)
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = "".join(root.itertext())
    assert "two layers of 30" in text
    assert "two layers of 100" in text


def test_the_page_is_up_to_date(report: ModuleType) -> None:
    if not RESULT.exists():
        pytest.skip("there is no benchmarks/results/digits.json: run benchmarks/digits.py")
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert report.table(result) in report.PAGE.read_text(encoding="utf-8")
