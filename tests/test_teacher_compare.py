"""Ensembles and `teacher compare` from end to end: tiny local models, and servers on loopback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe, parse_recipe
from stillhouse.evaluate.teachers import TeacherComparison
from stillhouse.pipeline import report_of, run_stages
from stillhouse.teacher.batch_journal import FOLDER, BatchJournal, Intended
from stillhouse.teacher_compare import compare_teachers
from teacher_servers import Loopback, openai_answer, serve
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece

GOOD = ["gripping", "wonderful", "funny", "warm", "moving"]
BAD = ["dull", "boring", "tired", "lifeless", "long"]
FILLER = ["the", "film", "and", "story", "cast", "script", "plot", "is", "start", "never"]

WAIVED = {"waived_by": "a test", "reason": "its models are made up"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(count: int) -> list[dict[str, str]]:
    draw = random.Random(3)
    rows: dict[str, str] = {}
    while len(rows) < count:
        label, words = draw.choice((("positive", GOOD), ("negative", BAD)))
        rows[" ".join([*draw.choices(FILLER, k=5), draw.choice(words)])] = label
    return [{"text": text, "label": label} for text, label in rows.items()]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    bpe, pieces = byte_bpe(), wordpiece()
    for name, layers in (("one", 2), ("two", 3)):
        bpe.save_pretrained(folder / name)
        tiny_llama(bpe, layers).save_pretrained(folder / name)
    pieces.save_pretrained(folder / "encoder")
    tiny_bert(pieces, layers=2).save_pretrained(folder / "encoder")
    rows = reviews(220)
    parts = {"traffic": rows[:110], "labelled": rows[110:170], "golden": rows[170:]}
    for name, part in parts.items():
        shown = [{"text": row["text"]} for row in part] if name == "traffic" else part
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))
    recipe = {
        "name": "tiny",
        "task": {"kind": "classification", "prompt": "{text}", "labels": ["positive", "negative"]},
        "traffic": {name: f"{name}.jsonl" for name in ("labelled", "golden")}
        | {"path": "traffic.jsonl", "use_labelled": False},
        "teacher": {"model": "hf:./one", "terms": WAIVED},
        "dataset": {"near_duplicate": 1.0},
        "student": {"head": "label", "from": f"hf:{folder / 'encoder'}", "max_tokens": 32},
        "train": {"epochs": 1, "learning_rate": 3e-3, "batch_size": 16},
        "evaluate": {"resamples": 100, "speed_queries": 4, "speed_repeats": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder


def knows(words: list[str], answer: str, other: str) -> Any:
    """A server that gives one answer where it reads one of the words."""

    def reply(body: dict[str, Any], number: int) -> Any:
        text = body["messages"][-1]["content"]
        return openai_answer(answer if any(w in text for w in words) else other, usage=(100, 1))

    return reply


def with_sections(project: Path, name: str, **sections: Any) -> Path:
    raw = yaml.safe_load((project / "recipe.yaml").read_text()) | sections
    path = project / name
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def compared_one(server: Loopback, name: str) -> dict[str, Any]:
    return {**member(server, name), "terms": WAIVED}


def member(server: Loopback, name: str) -> dict[str, str]:
    return {"model": f"openai-compatible:{name}", "base_url": server.url + "/v1"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_with_two_local_teachers_as_one(project: Path, tmp_path: Path) -> None:
    path = with_sections(
        project,
        "local.yaml",
        teacher={
            "model": "ensemble:pair",
            "members": [{"model": "hf:./one", "weight": 2}, {"model": "hf:./two"}],
            "terms": WAIVED,
        },
    )
    recipe = load_recipe(path)
    run_stages(recipe, tmp_path, Silent())
    report = report_of(tmp_path)
    assert report.teacher.name.startswith("ensemble:pair of hf:")
    assert report.teacher.name.endswith("(mean_probabilities)")
    assert report.teacher.parameters == sum(
        tiny_llama(byte_bpe(), layers).num_parameters() for layers in (2, 3)
    )
    assert report.teacher.calibration_error is not None
    assert report.fidelity.divergence is not None
    assert report.speed.teacher_qps is not None
    assert report.cost.teacher_usd_per_1k is not None
    said = lines(tmp_path / "ask" / "completions.jsonl")
    alone = lines(tmp_path / "ask" / "member_completions.jsonl")
    assert len(alone) == 2 * len(said) == 220
    assert {row["model"] for row in said} == {"ensemble:pair"}
    assert len({row["revision"] for row in said}) == 1
    assert said[0]["revision"] == report.teacher.revision
    examples = lines(tmp_path / "dataset" / "train.jsonl")
    assert {row["teacher"] for row in examples} == {"ensemble:pair"}
    assert all(row["label_probabilities"] for row in examples)
    assert all(r.skipped for r in run_stages(recipe, tmp_path, Silent()))


def test_a_run_with_three_api_teachers_by_vote(project: Path, tmp_path: Path) -> None:
    with (
        serve(knows(GOOD[:4], "positive", "negative")) as a,
        serve(knows(GOOD[1:], "positive", "negative")) as b,
        serve(knows(BAD[:3], "negative", "positive")) as c,
    ):
        path = with_sections(
            project,
            "api.yaml",
            teacher={
                "model": "ensemble",
                "combine": "majority",
                "members": [member(a, "a"), member(b, "b"), member(c, "c")],
                "terms": WAIVED,
            },
            prices={
                "models": {
                    name: {"input_usd_per_mtok": price, "output_usd_per_mtok": 0.0}
                    for name, price in (("a", 1.0), ("b", 2.0), ("c", 3.0))
                }
            },
        )
        run_stages(load_recipe(path), tmp_path, Silent())
        counts = [max(server.asked.values()) for server in (a, b, c)]
        assert counts == [1, 1, 1]
    report = report_of(tmp_path)
    assert report.cost.teacher_usd_per_1k == pytest.approx(1000 * 100 * 6e-6)
    assert report.teacher.score.estimate == 1.0  # two of three know every word
    timings = json.loads((tmp_path / "ask" / "timings.json").read_text())
    rates = [one["queries_per_second"] for one in timings["members"]]
    assert timings["queries_per_second"] == pytest.approx(1 / sum(1 / rate for rate in rates))
    assert timings["usd_of_answers"] == pytest.approx((110 + 50) * 100 * 6e-6)


@pytest.fixture(scope="module")
def compared(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    root = tmp_path_factory.mktemp("compared")
    with serve(knows(GOOD[:4], "positive", "negative")) as server:
        path = with_sections(
            project,
            "compare.yaml",
            compare={
                "teachers": {
                    "two": {"model": "hf:./two", "terms": WAIVED},
                    "api": {**member(server, "a"), "terms": WAIVED},
                },
                "ensembles": {
                    "pair": {"of": ["teacher", "two"], "combine": "mean_logits"},
                    "all": {"of": ["api", "teacher", "two"], "combine": "majority"},
                },
                "sample": 40,
                "probe": {"queries": 60, "student": "recipe"},
                "speed_queries": 4,
            },
            prices={"models": {"a": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 0.0}}},
        )
        done = CliRunner().invoke(
            app, ["teacher", "compare", str(path), "--run-dir", str(root), "--json"]
        )
        assert done.exit_code == 0, done.output
        assert max(server.asked.values()) == 1
        assert len(server.bodies) == 40 + 60
        first = TeacherComparison.model_validate_json(done.stdout)
        again = compare_teachers(load_recipe(path), root, Silent())
        assert len(server.bodies) == 100, "the second time nothing is asked"
        # A run with the ensemble pays for no answer that the comparison has.
        raw = yaml.safe_load(path.read_text())
        raw["teacher"] = load_section(first, "all", root) | {"terms": WAIVED}
        (project / "chosen.yaml").write_text(yaml.safe_dump(raw | {"compare": None}))
        run_stages(load_recipe(project / "chosen.yaml"), root, Silent(), last="ask")
        assert max(server.asked.values()) == 1
    assert again.teachers.keys() == first.teachers.keys()
    return first, root


def load_section(found: TeacherComparison, name: str, root: Path) -> dict[str, Any]:
    raw = json.loads((root / "recipe.json").read_text())
    compare = parse_recipe(raw).compare
    assert compare is not None
    return dict(compare.section_of(name, parse_recipe(raw).teacher))


def test_the_comparison_has_every_figure(compared: tuple[TeacherComparison, Path]) -> None:
    found, _ = compared
    assert list(found.teachers) == ["teacher", "two", "api", "pair", "all"]
    assert found.n == 40
    api, pair, everyone = (found.teachers[name] for name in ("api", "pair", "all"))
    assert 0.8 < api.score.estimate < 1
    assert api.calibration_error is None, "its server gives no logprobs"
    assert pair.calibration_error is not None
    assert everyone.members == ("api", "teacher", "two")
    assert api.speed.usd_per_1k == pytest.approx(0.1)
    members = [found.teachers[name].speed.usd_per_1k for name in everyone.members]
    assert everyone.speed.usd_per_1k == pytest.approx(sum(cost or 0.0 for cost in members))
    assert found.usd_paid == pytest.approx(100 * 100 * 1e-6)
    assert len(found.differences) == 10
    assert set(found.probe_differences) == {"tfidf", "recipe"}
    assert len(found.probe_differences["tfidf"]) == 10
    without = [name for name, t in found.teachers.items() if "recipe" not in t.probes]
    assert "api" not in without
    for name in without:
        assert any(f"{name} has no probe student" in note for note in found.notes)
    assert api.probes["tfidf"].trained_on == 60
    assert found.recommendation.by in ("recipe", "tfidf", "teacher")
    assert [one.of for one in found.complementarity] == [
        ("teacher", "two", "api"),
        ("teacher", "two"),
    ]
    assert found.complementarity[0].oracle.estimate >= api.score.estimate
    assert found.baseline is not None


def test_what_it_leaves_in_the_run_folder(compared: tuple[TeacherComparison, Path]) -> None:
    found, root = compared
    folder = root / "compare"
    assert {p.name for p in folder.iterdir()} == {"compare.json", "compare.html", "answers.jsonl"}
    kept = TeacherComparison.model_validate_json((folder / "compare.json").read_text())
    assert kept.teachers.keys() == found.teachers.keys()
    rows = lines(folder / "answers.jsonl")
    assert len(rows) == 40
    assert set(rows[0]["answers"]) == set(found.teachers)
    right = sum(row["answers"]["api"] == row["reference"] for row in rows)
    assert right / 40 == pytest.approx(found.teachers["api"].score.estimate)


def test_the_terminal_says_which(project: Path, tmp_path: Path) -> None:
    with serve(knows(GOOD, "positive", "negative")) as server:
        path = with_sections(
            project, "small.yaml", compare={"teachers": {"api": compared_one(server, "a")}}
        )
        done = CliRunner().invoke(
            app, ["teacher", "compare", str(path), "--run-dir", str(tmp_path)]
        )
    assert done.exit_code == 0, done.output
    assert "Take api" in done.output
    assert "p50" in done.output
    assert "compare.html" in done.output


def test_a_teacher_that_cannot_do_it_is_left_out_with_its_reason(
    project: Path, tmp_path: Path
) -> None:
    with serve(lambda body, number: openai_answer("I would rather not.")) as server:
        path = with_sections(
            project,
            "useless.yaml",
            compare={
                "teachers": {
                    "mute": compared_one(server, "m"),
                    "two": {"model": "hf:./two", "terms": WAIVED},
                },
                "ensembles": {"both": {"of": ["mute", "two"], "combine": "mean_logits"}},
                "speed_queries": 2,
            },
        )
        found = compare_teachers(load_recipe(path), tmp_path, Silent())
    assert set(found.teachers) == {"teacher", "two"}
    assert "none of its" in found.failed["mute"]
    assert "its member mute" in found.failed["both"]


def test_a_missing_key_stops_it_before_anything_is_paid(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve(knows(GOOD, "positive", "negative")) as server:
        path = with_sections(
            project,
            "keyless.yaml",
            compare={
                "teachers": {
                    "a": compared_one(server, "a"),
                    "b": {"model": "openai:gpt-4.1", "terms": WAIVED},
                }
            },
        )
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            compare_teachers(load_recipe(path), tmp_path, Silent())
        assert server.bodies == []


def test_without_a_compare_section_it_says_what_to_write(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"compare: \{teachers"):
        compare_teachers(load_recipe(project / "recipe.yaml"), tmp_path, Silent())


def test_terms_come_before_a_comparison(project: Path, tmp_path: Path) -> None:
    forbids = {"may_train": False, "says": "its licence", "on": "2026-01-02"}
    with serve(knows(GOOD, "positive", "negative")) as server:
        for terms, more, said in (
            (None, {}, r"compare\.teachers\.api\.terms"),
            (forbids, {"probe": {"queries": 20}}, r"compare\.teachers\.api\.terms\.may_train"),
        ):
            api = member(server, "a") | ({"terms": terms} if terms else {})
            path = with_sections(project, "terms.yaml", compare={"teachers": {"api": api}, **more})
            with pytest.raises(RecipeError, match=said):
                compare_teachers(load_recipe(path), tmp_path, Silent())
        assert server.bodies == []


def test_what_is_in_a_batch_is_not_asked_by_a_comparison(project: Path, tmp_path: Path) -> None:
    with serve(knows(GOOD, "positive", "negative")) as server:
        path = with_sections(
            project, "held.yaml", compare={"teachers": {"api": compared_one(server, "a")}}
        )
        with BatchJournal(tmp_path / "store" / FOLDER) as journal:
            journal.intend(
                Intended(
                    batch="b", teacher="openai-compatible:a@a@there", at=1.0, requests=1, size=1,
                    worst_usd=0.25,
                ),
                [],
            )  # fmt: skip
        with pytest.raises(UserError, match="paid for twice"):
            compare_teachers(load_recipe(path), tmp_path, Silent())
        assert server.bodies == []
