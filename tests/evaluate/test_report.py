"""report.json: the keys the project promised, the schema in docs, and a rebuild without weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stillhouse.core.progress import Silent
from stillhouse.core.runfolder import RunFolder, StageKey
from stillhouse.evaluate.report import Report, report_schema_text
from stillhouse.evaluate.report_files import write_report
from stillhouse.evaluate.stage import run_evaluate
from stillhouse.evaluate.summary import count, summary_rows, times, usd
from synthetic_run import finish_evaluate, install_students, make_recipe, make_run, teacher_double

DOCS = Path(__file__).parents[2] / "docs"
INTERVALS = (
    "teacher.score",
    "student.score",
    "baselines.majority.score",
    "baselines.tfidf.score",
    "retention",
    "fidelity.agreement",
    "fidelity.divergence",
)
NUMBERS = (
    "teacher.parameters",
    "student.parameters",
    "size.ratio",
    "speed.teacher_qps",
    "speed.student_qps",
    "speed.ratio",
    "cost.teacher_usd_per_1k",
    "cost.student_usd_per_1k",
    "cost.ratio",
    "seconds.total",
    "seconds.train",
    "peak_rss_mb",
    "gate.margin",
)


def finished(tmp_path: Path) -> RunFolder:
    recipe = make_recipe()
    run = make_run(tmp_path, recipe)
    work = run.open_partial(StageKey("evaluate", {}, {}, {}, recipe.seed))
    outcome = run_evaluate(recipe, run, work, Silent(), teacher_double())
    finish_evaluate(recipe, run, work, outcome)
    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    install_students(monkeypatch, [])
    return finished(tmp_path)


def at(report: Any, path: str) -> Any:
    for key in path.split("."):
        report = report[key]
    return report


def test_the_promised_keys(run: RunFolder) -> None:
    write_report(make_recipe(), run)
    report = json.loads((run.root / "report.json").read_text(encoding="utf-8"))
    for path in INTERVALS:
        assert set(at(report, path)) == {"estimate", "low", "high", "n"}, path
    for path in NUMBERS:
        assert isinstance(at(report, path), int | float), path
    assert report["gate"]["verdict"] in ("pass", "fail")
    assert report["size"]["ratio"] == pytest.approx(11 / 135)
    assert report["seconds"]["total"] == pytest.approx(1.25 + 3.5 + 40 + 2 + 180 + 20)
    assert report["peak_rss_mb"] == 900.0
    assert report["dataset"] == {
        "train": 200,
        "held_out": 60,
        "golden": 120,
        "rejected": {"duplicate": 5, "label": 2},
    }
    assert report["cost"]["teacher_answers_usd"] == 0.25
    assert report["twin"]["soft_target_gain"]["n"] == 120
    assert any("below 385" in warning for warning in report["warnings"])
    assert {p["name"] for p in report["candidates"]} == {
        "teacher",
        "student",
        "twin",
        "tfidf",
        "majority",
    }


def test_the_report_fits_the_schema_in_docs(run: RunFolder) -> None:
    write_report(make_recipe(), run)
    schema = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    report = json.loads((run.root / "report.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)
    del report["retention"]
    assert not jsonschema.Draft202012Validator(schema).is_valid(report)


def test_the_schema_in_docs_is_the_models() -> None:
    assert (DOCS / "report.schema.json").read_text(encoding="utf-8") == report_schema_text()


def test_docs_explain_every_key_of_the_report() -> None:
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    schema = json.loads(report_schema_text())
    missing = [
        f"{name}.{key}" if name != "Report" else key
        for name, part in [("Report", schema), *schema["$defs"].items()]
        for key in part.get("properties", {})
        if f"`{key}`" not in text and f".{key}`" not in text
    ]
    assert missing == []


def test_a_rebuilt_report_is_the_same(run: RunFolder) -> None:
    first = write_report(make_recipe(), run)
    html = (run.root / "report.html").read_bytes()
    assert write_report(make_recipe(), run) == first
    assert (run.root / "report.html").read_bytes() == html


def test_a_report_is_rebuilt_without_torch(run: RunFolder) -> None:
    (run.root / "recipe.json").write_text(
        make_recipe().model_dump_json(by_alias=True), encoding="utf-8"
    )
    code = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'transformers'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
        "from pathlib import Path\n"
        "from stillhouse.core.recipe import Recipe\n"
        "from stillhouse.core.runfolder import RunFolder\n"
        "from stillhouse.evaluate.report_files import write_report\n"
        "root = Path(sys.argv[1])\n"
        "recipe = Recipe.model_validate_json((root / 'recipe.json').read_text())\n"
        "print(write_report(recipe, RunFolder(root)).gate.verdict)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("pass", "fail")


def test_the_summary_says_what_matters(run: RunFolder) -> None:
    report = write_report(make_recipe(), run)
    rows = dict(summary_rows(report))
    assert rows["verdict"].startswith(report.gate.verdict)
    assert "[" in rows["retention"]
    assert "11M of 135M" in rows["parameters"]


def test_a_report_is_strict(run: RunFolder) -> None:
    report = write_report(make_recipe(), run)
    assert Report.model_validate_json(report.model_dump_json()) == report
    with pytest.raises(ValueError, match="extra"):
        Report.model_validate({**report.model_dump(), "shiny": 1})


def test_numbers_in_words() -> None:
    assert [usd(v) for v in (None, 0, 0.000028, 0.5, 1234.5)] == [
        "unknown",
        "$0",
        "$0.000028",
        "$0.50",
        "$1,234.50",
    ]
    assert [count(v) for v in (None, 812.4, 22_700_000, 7e9)] == ["unknown", "812", "22.7M", "7B"]
    assert [times(v) for v in (None, 12.34, 15_600.0)] == ["unknown", "12.3x", "15,600x"]
