"""Curve and frontier on tiny models: shared stages, resumption, files, the choice, bad input."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from stillhouse import study_speeds
from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.machine import this_machine
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.candidates import load_sets
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.studies import CurveStudy, FrontierStudy
from stillhouse.forget import forget_user
from stillhouse.pipeline import report_of, run_stages
from stillhouse.study_curve import Options, run_curve
from stillhouse.study_frontier import run_frontier, sized_variants
from stillhouse.variants import Ran
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece

SHARED = ("traffic", "tune", "check", "ask", "dataset")
GOOD = ["gripping", "wonderful", "funny", "warm", "moving"]
BAD = ["dull", "boring", "tired", "lifeless", "long"]
FILLER = ["the", "film", "and", "story", "cast", "script", "plot", "is", "start", "never"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reviews(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label, words = draw.choice((("positive", GOOD), ("negative", BAD)))
        rows[" ".join([*draw.choices(FILLER, k=5), draw.choice(words)])] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    bpe, pieces = byte_bpe(), wordpiece()
    bpe.save_pretrained(folder / "lm")
    tiny_llama(bpe, layers=2).save_pretrained(folder / "lm")
    pieces.save_pretrained(folder / "encoder")
    tiny_bert(pieces, dropout=0.1).save_pretrained(folder / "encoder")
    rows = reviews(250, seed=1)
    traffic = [{"text": r["text"], "user": f"u{i % 40}"} for i, r in enumerate(rows[:130])]
    write(folder / "traffic.jsonl", traffic)
    write(folder / "labelled.jsonl", rows[130:200])
    write(folder / "golden.jsonl", rows[200:])
    recipe = {
        "name": "tiny",
        "task": {"kind": "classification", "prompt": "{text}", "labels": ["positive", "negative"]},
        "traffic": {name: f"{name}.jsonl" for name in ("labelled", "golden")}
        | {"path": "traffic.jsonl"},
        "teacher": {
            "model": f"hf:{folder / 'lm'}",
            "terms": {"waived_by": "the tests", "reason": "its weights are random"},
            "tune": {"epochs": 20, "learning_rate": 1e-2, "batch_size": 8},
        },
        "dataset": {"near_duplicate": 1.0, "held_out": 0.2},
        "student": {"head": "label", "from": f"hf:{folder / 'encoder'}", "max_tokens": 32},
        "train": {
            "epochs": 2,
            "learning_rate": 3e-3,
            "batch_size": 16,
            "evals": 2,
            "hard_label_twin": True,
        },
        "evaluate": {"resamples": 100, "speed_queries": 4, "speed_repeats": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def recipe(project: Path) -> Recipe:
    return load_recipe(project / "recipe.yaml")


@pytest.fixture(scope="module")
def root(project: Path) -> Path:
    """One run folder, in which all studies of these tests work."""
    return project / "run"


@pytest.fixture(scope="module")
def curve(recipe: Recipe, root: Path) -> CurveStudy:
    return run_curve(recipe, root, Options((20, 40, 80, 9999), point_usd=0.001), Silent())


@pytest.fixture(scope="module")
def frontier(recipe: Recipe, root: Path, curve: CurveStudy) -> FrontierStudy:
    variants = sized_variants(recipe, [], ["layers=1", "layers=4", "layers=9"])
    return run_frontier(recipe, root, variants, Silent())


def trained(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("train/manifest.json")
    }


def test_a_curve_has_a_student_a_size_and_says_what_more_would_bring(
    curve: CurveStudy, root: Path
) -> None:
    assert [point.examples for point in curve.points] == [20, 40, 80, curve.all_examples]
    assert "9,999" in curve.notes[0]
    assert len({point.score.n for point in curve.points}) == 1
    assert all(point.linear is not None for point in curve.points)
    assert curve.fit is not None
    assert curve.reach is not None
    assert [curve.fit.drawn[0].beyond, curve.fit.drawn[-1].beyond] == [False, True]
    assert [step.examples for step in curve.more] == sorted(step.examples for step in curve.more)
    assert curve.more[1].examples == 2 * curve.all_examples
    # A held-out fifth, and the labelled that can never be held out.
    assert 1 < curve.cost.answers_per_example < 1.5
    assert curve.cost.usd_per_answer is not None
    assert curve.verdict
    folder = root / "curve"
    assert CurveStudy.model_validate_json((folder / "curve.json").read_text()).fit == curve.fit
    assert (folder / "curve.svg").read_text().startswith("<svg xmlns=")
    page = (folder / "curve.html").read_text()
    assert "src=" not in page
    assert 'href="http' not in page


def test_a_larger_part_holds_the_smaller_and_the_students_saw_so_many(
    curve: CurveStudy, root: Path
) -> None:
    for point in curve.points:
        facts = json.loads((root / "curve" / point.folder / "train" / "train.json").read_text())
        assert facts["examples"]["train"] == point.examples


def test_stages_are_shared_by_link_and_the_teacher_asked_once(
    curve: CurveStudy, frontier: FrontierStudy, root: Path
) -> None:
    rows = [json.loads(x) for x in (root / "store" / "answers.jsonl").read_text().splitlines()]
    keys = [(row["teacher"], row["chat"], row["sampling"]) for row in rows]
    assert len(keys) == len(set(keys))
    folders = [root / "curve" / p.folder for p in curve.points]
    folders += [root / "frontier" / s.folder for s in frontier.students]
    for folder in folders:
        assert all((folder / name).is_symlink() for name in (*SHARED, "store"))
        assert not (folder / "train").is_symlink()
        assert report_of(folder).n == curve.n


def test_the_second_time_nothing_is_trained(
    recipe: Recipe, root: Path, curve: CurveStudy, frontier: FrontierStudy
) -> None:
    before = trained(root)
    speed = (root / "frontier" / "speed.json").read_bytes()
    again = run_curve(recipe, root, Options((20, 40, 80, 9999), point_usd=0.001), Silent())
    assert again.points == curve.points
    variants = sized_variants(recipe, [], ["layers=1", "layers=4", "layers=9"])
    found = run_frontier(recipe, root, variants, Silent())
    assert found.students == frontier.students
    assert trained(root) == before
    assert (root / "frontier" / "speed.json").read_bytes() == speed


def test_speeds_are_kept_and_costs_are_of_the_day(
    recipe: Recipe, root: Path, frontier: FrontierStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, timed = root / "frontier", 0
    variants = sized_variants(recipe, [], ["layers=1", "layers=4"])
    ran = [Ran(one, folder / one.name, report_of(folder / one.name)) for one in variants]
    run, kept = RunFolder(root), (folder / "speed.json").read_text()

    async def time(*_: Any) -> dict[str, CandidateSpeed]:
        nonlocal timed
        timed += 1
        return {one.name: CandidateSpeed(qps=2.0, source="the test") for one in variants}

    def at(**changes: Any) -> dict[str, CandidateSpeed]:
        raw = recipe.model_dump(mode="json", by_alias=True)
        for section, keys in changes.items():
            raw[section] = {**raw[section], **keys}
        now = Recipe.model_validate(raw)
        return study_speeds.speeds_of(now, run, ran, load_sets(now, run)[0], folder, Silent())

    monkeypatch.setattr(study_speeds, "_time", time)
    before = at(prices={"machine_usd_per_hour": 3.6})
    assert timed == 0
    dear = at(prices={"machine_usd_per_hour": 36.0})
    assert timed == 0
    for name, speed in before.items():
        assert speed.usd_per_1k == pytest.approx(1 / (speed.qps or 0))
        assert dear[name].usd_per_1k == pytest.approx(10 / (speed.qps or 0))
    assert '"usd_per_1k": null' in kept
    found = at(evaluate={"batch_size": 3})
    assert timed == 1
    assert found["layers-1"].qps == 2.0
    there = this_machine()
    monkeypatch.setattr(study_speeds, "this_machine", lambda: there._replace(processor="another"))
    at(evaluate={"batch_size": 3})
    assert timed == 2
    monkeypatch.setattr("stillhouse.models.loading.device_name", lambda _: "another GPU")
    at(evaluate={"batch_size": 3})
    assert timed == 3
    (folder / "speed.json").write_text(kept)


def test_a_frontier_orders_students_and_leaves_out_what_cannot_be(
    frontier: FrontierStudy, root: Path
) -> None:
    assert [one.name for one in frontier.students] == ["layers-4", "layers-1"]
    assert frontier.students[0].parameters > frontier.students[1].parameters  # type: ignore[operator]
    assert list(frontier.left_out) == ["layers-9"]
    assert all(one.speedup and one.usd_per_1k for one in frontier.students)
    assert all(one.corrected_low <= one.difference.low for one in frontier.students)
    assert [step.larger for step in frontier.steps] == ["layers-4"]
    passing = [one for one in frontier.students if one.verdict == "pass"]
    cheapest = min(passing, key=lambda one: one.usd_per_1k or 0, default=None)
    assert frontier.chosen == (cheapest.name if cheapest else None)
    folder = root / "frontier"
    kept = FrontierStudy.model_validate_json((folder / "frontier.json").read_text())
    assert kept.students == frontier.students
    page = (folder / "frontier.html").read_text()
    assert "layers-1" in page
    assert frontier.fit is None
    assert "there are 2" in frontier.bigger
    assert "Would a bigger student gain?" in page
    assert (folder / "frontier.svg").read_text().count("<circle") == 3


def test_several_trainings_of_a_student_share_all_but_the_training(
    recipe: Recipe, root: Path, frontier: FrontierStudy
) -> None:
    before, store = trained(root), (root / "store" / "answers.jsonl").read_bytes()
    variants = sized_variants(recipe, [], ["layers=1", "layers=4"])
    found = run_frontier(recipe, root, variants, Silent(), repeats=2)
    folder = root / "frontier"
    after = trained(root)
    assert {name for name in after if name not in before} == {
        f"frontier/layers-{n}-seed1/train/manifest.json" for n in (1, 4)
    }
    assert all(after[name] == at for name, at in before.items())  # the first trainings are kept
    assert (root / "store" / "answers.jsonl").read_bytes() == store
    assert "means of 2 trainings" in found.over
    alone = {one.name: one for one in frontier.students}
    for one in found.students:
        assert [made.folder for made in one.trainings] == [one.name, f"{one.name}-seed1"]
        scores = [report_of(folder / made.folder).student.score for made in one.trainings]
        assert [made.score for made in one.trainings] == scores
        assert scores[0] == alone[one.name].score
        a, b = (score.estimate for score in scores)
        assert one.score.estimate == pytest.approx((a + b) / 2)
        assert one.deviation == pytest.approx(abs(a - b) / 2**0.5)
        assert one.score.n == scores[0].n  # samples, not samples times trainings
        retention = (a + b) / 2 / found.teacher.estimate
        assert one.retention is not None
        assert one.retention.estimate == pytest.approx(retention)
        if one.verdict == "pass":
            assert one.trainings[0].verdict == "pass"
        assert (folder / f"{one.name}-seed1" / "dataset").is_symlink()
    page = (folder / "frontier.html").read_text()
    assert "layers-4-seed1" in page
    assert (folder / "frontier.svg").read_text().count("<circle") == 3 + 4
    assert "Means of 2 trainings" in page or "means of 2 trainings" in page


@pytest.mark.full
def test_several_trainings_of_a_size_have_a_mean(
    recipe: Recipe, root: Path, curve: CurveStudy
) -> None:
    before = trained(root)
    found = run_curve(recipe, root, Options((20, 40), repeats=2), Silent())
    assert [p.folder for p in found.points] == [
        "0000020",
        "0000020-seed1",
        "0000040",
        "0000040-seed1",
    ]
    assert all(trained(root)[name] == at for name, at in before.items())
    assert found.points[0] == curve.points[0]
    first, second = (found.points[k].score.estimate for k in (0, 1))
    assert [mean.examples for mean in found.means] == [20, 40]
    assert found.means[0].score.estimate == pytest.approx((first + second) / 2)
    assert found.means[0].deviation == pytest.approx(abs(first - second) / 2**0.5)
    assert "means of 2 trainings" in found.over
    assert curve.means == ()
    assert "of one training each" in curve.over


def test_a_size_is_cut_from_the_student_and_shares_the_answers(
    recipe: Recipe, root: Path, curve: CurveStudy
) -> None:
    (sized,) = sized_variants(recipe, ["60%"], [])
    assert sized.recipe.student.size == pytest.approx(0.6)
    assert sized.recipe.student.vocabulary == "task"  # it was left out: a size's own default
    found = run_frontier(recipe, root, [sized], Silent())
    plan = json.loads((root / "frontier" / "60%" / "train" / "train.json").read_text())
    cut = plan["student"]["plan"]["cut"]
    assert cut["parameters"] == pytest.approx(0.6 * cut["source_parameters"], rel=0.02)
    assert [one.name for one in found.students] == ["60%"]


def test_a_variant_is_a_run_that_can_be_gone_on_with(curve: CurveStudy, root: Path) -> None:
    folder = root / "curve" / curve.points[0].folder
    from_disk = load_recipe_of(folder)
    assert from_disk.train.examples == 20
    assert all(result.skipped for result in run_stages(from_disk, folder, Silent()))


def load_recipe_of(folder: Path) -> Recipe:
    return Recipe.model_validate_json((folder / "recipe.json").read_text())


@pytest.mark.full
def test_killed_between_students_it_goes_on(
    recipe: Recipe, root: Path, curve: CurveStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = root / "curve" / curve.points[-1].folder
    before = trained(root)
    shutil.rmtree(victim / "train")
    (victim / "train.partial").mkdir()
    again = run_curve(recipe, root, Options((20, 40, 80, 9999), point_usd=0.001), Silent())
    assert [p.score for p in again.points] == [p.score for p in curve.points]
    changed = {name for name, at in trained(root).items() if before[name] != at}
    assert changed == {str((victim / "train/manifest.json").relative_to(root))}


@pytest.mark.full
def test_new_traffic_reaches_every_variant(
    recipe: Recipe, root: Path, curve: CurveStudy, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(root, copy, symlinks=True)
    less = recipe.model_copy(update={"traffic": recipe.traffic.model_copy(update={"limit": 100})})
    found = run_curve(less, copy, Options((20,)), Silent())
    assert found.all_examples < curve.all_examples
    dataset = copy / "curve" / found.points[0].folder / "dataset" / "dataset.json"
    assert json.loads(dataset.read_text())["train"] == found.all_examples
    assert found.fit is None
    assert "no curve can be fitted" in found.verdict[0]


def test_a_forgotten_user_leaves_every_variant(
    recipe: Recipe, root: Path, curve: CurveStudy, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(root, copy, symlinks=True)
    user = "u7"
    lines = (copy / "traffic" / "queries.jsonl").read_text().splitlines()
    ids = {row["id"] for row in map(json.loads, lines) if row.get("user") == user}
    assert ids
    results = forget_user(user, [copy], dry_run=False)
    assert len(results) == len(list(root.rglob("recipe.json")))
    assert results[-1].run == str(copy)
    assert results[-1].found
    assert all(result.used_by for result in results)
    for path in copy.rglob("*.jsonl"):
        if path.name != "forgotten.jsonl":
            assert not any(i in path.read_text() for i in ids), path
    # What is there of the variants is done again, without the user, and nothing is asked twice.
    again = run_curve(recipe, copy, Options((20,)), Silent())
    assert again.all_examples < curve.all_examples


def test_a_bad_size_is_one_line(recipe: Recipe, root: Path, curve: CurveStudy) -> None:
    with pytest.raises(UserError, match="--sizes") as caught:
        run_curve(recipe, root, Options((1, 50)), Silent())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "students", "said"),
    [
        (["huge"], [], "--sizes"),
        ([], [], "names no student"),
        ([], ["layers"], "key=value"),
        ([], ["layers=[0,"], "key=value"),
        ([], ["layer=2"], "did you mean"),
        ([], ["layers=2", "layers =2"], "share a folder"),
    ],
)
def test_bad_students_are_one_line(
    sizes: list[str], students: list[str], said: str, recipe: Recipe
) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        sized_variants(recipe, sizes, students)
    assert "\n" not in str(caught.value)


def test_one_student_that_cannot_be_is_an_error(recipe: Recipe, root: Path) -> None:
    with pytest.raises(UserError, match="layers"):
        run_frontier(recipe, root, sized_variants(recipe, [], ["layers=9"]), Silent())


def test_the_commands(project: Path, root: Path, frontier: FrontierStudy) -> None:
    where = ["--run-dir", str(root)]
    recipe = str(project / "recipe.yaml")
    done = CliRunner().invoke(app, ["curve", recipe, "--sizes", "20,40,80,9999", *where])
    assert done.exit_code == 0, done.output
    assert "ceiling" in done.output or "examples without end" in done.output
    assert "page: " in done.output
    more = ["--sizes", "", "--student", "layers=1", "--student", "layers=4", "--json"]
    done = CliRunner().invoke(app, ["frontier", recipe, *more, *where])
    assert done.exit_code == (3 if frontier.chosen is None else 0), done.output
    assert json.loads(done.output)["chosen"] == frontier.chosen


def test_locked_while_it_works(recipe: Recipe, root: Path, curve: CurveStudy) -> None:
    with RunFolder(root).locked(), pytest.raises(Exception, match="another run"):
        run_curve(recipe, root, Options((20,)), Silent())
