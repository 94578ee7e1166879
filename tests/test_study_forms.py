"""Compressed forms as points of the frontier, and the command that makes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_doubles import Workshop, evaluated
from stillhouse import study_frontier
from stillhouse.compress.stage import run_compress
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder, StageKey
from stillhouse.core.statistics import proportion
from stillhouse.evaluate.candidates import load_sets
from stillhouse.evaluate.frontier_page import frontier_chart, render_frontier
from stillhouse.evaluate.report_files import write_report
from stillhouse.evaluate.results import TEACHER, CandidateSpeed
from stillhouse.study_forms import forms_of, judged_forms
from stillhouse.variants import Ran, Variant
from synthetic_run import make_recipe

FORMATS = ["onnx", "onnx-int8", "onnx-int8-static"]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe(
        evaluate={"resamples": 100, "speed_repeats": 1},
        compress={"formats": FORMATS, "margin_teacher": 0.1, "speed_repeats": 1},
    )


@pytest.fixture(scope="module")
def ran(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root: Path = tmp_path_factory.mktemp("run") / "light"
    with pytest.MonkeyPatch.context() as patch:
        run = evaluated(root, recipe, patch)
    key = StageKey("compress", {}, {}, {}, recipe.seed)
    outcome = run_compress(recipe, run, run.open_partial(key), Silent(), tools=Workshop().tools)
    run.finish(key, outcome, 1.0, 100.0)
    return Ran(Variant("light", recipe), root, write_report(recipe, run))


def test_each_form_is_judged_on_the_students_samples(recipe: Recipe, ran: Ran) -> None:
    main = load_sets(recipe, RunFolder(ran.root))[0]
    judged = judged_forms(recipe, [ran], main)
    assert [one.name for one in judged] == ["light", *(f"light/{name}" for name in FORMATS)]
    for one, form in zip(judged[1:], forms_of(ran), strict=True):
        assert sum(one.student) / len(one.student) == pytest.approx(
            form.sets["golden"].score.estimate
        )
        assert one.teacher == judged[0].teacher


def test_forms_are_points_and_a_refused_one_is_not_taken(recipe: Recipe, ran: Ran) -> None:
    run = RunFolder(ran.root)
    main = load_sets(recipe, run)[0]
    names = [TEACHER, "light", *(f"light/{name}" for name in FORMATS)]
    # The refused one is the cheapest.
    speeds = {
        name: CandidateSpeed(qps=10.0**n, usd_per_1k=1 / 10.0**n, source="made up")
        for n, name in enumerate(names)
    }
    study = study_frontier._study(recipe, run, [ran], main, speeds, {})
    points = {one.name: one for one in study.students}
    assert set(points) == set(names) - {TEACHER}
    assert points["light/onnx-int8"].folder == "light/compress/onnx-int8"
    assert points["light/onnx-int8"].size_bytes == 300
    assert points["light/onnx-int8-static"].verdict == "fail"
    assert study.chosen == "light/onnx-int8"
    assert study.steps == ()
    # Four candidates, so each bound is at a higher confidence than the gate's own.
    assert points["light"].corrected_low < points["light"].difference.low
    assert "light/onnx-int8" in render_frontier(study)
    assert "light/onnx-int8" in str(frontier_chart(study))


def test_an_interval_of_a_form_is_of_its_own_scores(recipe: Recipe, ran: Ran) -> None:
    main = load_sets(recipe, RunFolder(ran.root))[0]
    form = judged_forms(recipe, [ran], main)[2]
    assert form.form is not None
    assert proportion(form.student).estimate == form.form.sets["golden"].score.estimate
