"""Students as drafts: points of the frontier at the teacher's own quality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse import study_curve
from stillhouse.compress.speculate_lossless import GreedyCheck
from stillhouse.compress.speculate_report import (
    DraftReport,
    RuntimeReport,
    SpeculateReport,
    Way,
    drafted,
)
from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Silent
from stillhouse.core.runfolder import Outcome, RunFolder, StageKey
from stillhouse.core.statistics import Interval
from stillhouse.evaluate.frontier_page import frontier_chart, frontier_lines, render_frontier
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.study_drafts import drafted_by
from stillhouse.study_frontier import run_frontier, sized_variants
from stillhouse.variants import Ran, Variant
from synthetic_run import make_recipe
from test_text_forms import load, text_project

ALONE = CandidateSpeed(qps=40.0, latency_p50_ms=120.0, source="made up")


def report(speedup: float, low: float) -> SpeculateReport:
    found = Interval(estimate=speedup, low=low, high=speedup + 0.2, n=40)
    ways = {
        "alone": Way(length=0, tokens_per_second=10, tokens_a_pass=1, speedup=None),
        "draft": Way(length=4, tokens_per_second=20, tokens_a_pass=3, speedup=found),
    }
    runtime = RuntimeReport(
        runtime="llama.cpp",
        prompts=40,
        tried=(),
        ways=ways,
        over_lookup=None,
        over_undistilled=None,
        identical=40,
        compared=40,
    )
    draft = DraftReport(
        source="s", parameters=10, mapped=False, length=4, acceptance=None, by_task={},
        by_segment={}, break_even=None,
    )  # fmt: skip
    return SpeculateReport(
        target="t",
        target_parameters=100,
        prompts=40,
        drafts={"draft": draft},
        greedy=GreedyCheck(prompts=40, identical=40, tokens=400, divergences=()),
        sampled=None,
        runtimes=(runtime,),
        serve={},
    )


def ran(root: Path, found: SpeculateReport | None) -> Ran:
    recipe = make_recipe()
    run = RunFolder(root)
    if found is not None:
        key = StageKey("speculate", {}, {}, {}, 0)
        work = run.open_partial(key)
        write_json(work / "summary.json", drafted(found).model_dump(mode="json"))
        run.finish(key, Outcome(summary={}), 1.0, 1.0)
    return Ran(Variant(root.name, recipe), root, None)  # type: ignore[arg-type]


def test_a_draft_costs_what_one_query_after_the_other_costs(tmp_path: Path) -> None:
    all_ran = [ran(tmp_path / "light", report(2.0, 1.8)), ran(tmp_path / "heavy", None)]
    (one,) = drafted_by(all_ran, ALONE, usd_per_hour=3.6)
    assert (one.name, one.folder) == ("teacher, light drafts", "light/speculate")
    assert (one.runtime, one.length, one.lossless, one.faster) == ("llama.cpp", 4, True, True)
    # 120 ms at half the time: 60 s for 1,000 queries at 0.001 USD a second.
    assert one.latency_p50_ms == pytest.approx(60.0)
    assert one.usd_per_1k == pytest.approx(0.06)
    (unknown,) = drafted_by(all_ran[:1], None, usd_per_hour=3.6)
    assert unknown.usd_per_1k is None
    (tmp_path / "light" / "speculate" / "summary.json").write_text('{"target": 3}')
    with pytest.raises(RunFolderError, match="is damaged"):
        drafted_by(all_ran[:1], ALONE, usd_per_hour=3.6)


def test_variants_of_a_frontier_keep_the_section_and_those_of_a_curve_do_not(
    tmp_path: Path,
) -> None:
    raw = text_project(tmp_path)
    raw["speculate"] = {"prompts": 6, "speed_prompts": 2}
    recipe = load(tmp_path, raw)
    (variant,) = sized_variants(recipe, [], ["layers=1"])
    assert variant.recipe.speculate == recipe.speculate
    assert study_curve._of_study(recipe, {}).speculate is None


@pytest.mark.full
def test_a_frontier_with_drafts_from_end_to_end(tmp_path: Path) -> None:
    raw = text_project(tmp_path)
    raw["speculate"] = {
        "prompts": 4,
        "choose_prompts": 2,
        "max_tokens": 8,
        "draft_lengths": [1, 2],
        "lookup_lengths": [2],
        "speed_prompts": 2,
        "speed_repeats": 1,
        "sampling_test": None,
    }
    recipe = load(tmp_path, raw)
    study = run_frontier(
        recipe, tmp_path / "run", sized_variants(recipe, [], ["layers=1"]), Silent()
    )
    (one,) = study.drafted
    assert one.name == "teacher, layers-1 drafts"
    assert one.lossless
    assert one.usd_per_1k
    assert one.name in render_frontier(study)
    assert one.name in str(frontier_chart(study))
    assert any(line.startswith(one.name) for line in frontier_lines(study))
    held = json.loads((tmp_path / "run" / "frontier" / "frontier.json").read_text())
    assert held["drafted"][0]["name"] == one.name
