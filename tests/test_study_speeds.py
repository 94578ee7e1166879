"""What a frontier's saved speeds rest on: what is timed again, and what is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse import study_speeds
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.progress import Silent
from stillhouse.core.runfolder import Outcome, RunFolder, StageKey
from stillhouse.evaluate.candidates import EvaluationSet
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.variants import Ran, Variant
from synthetic_run import make_recipe, query_of

VERSIONS = {
    "torch": "2",
    "transformers": "5",
    "onnxruntime": "1",
    "xllamacpp": "0.2",
    "torchao": "0.1",
}


class Timer:
    """Saved speeds of no student and one teacher; counts how often they are timed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.timed = folder, 0
        self.weights = folder / "teacher"
        self.weights.mkdir()
        (self.weights / "model.safetensors").write_bytes(b"weights")
        self.versions = dict(VERSIONS)
        self.ran: list[Ran] = []

        async def time(*_: Any) -> dict[str, CandidateSpeed]:
            self.timed += 1
            return {"teacher": CandidateSpeed(qps=2.0, source="the test")}

        def versions(*names: str) -> dict[str, str]:
            return {name: self.versions[name] for name in names if name in self.versions}

        monkeypatch.setattr(study_speeds, "_time", time)
        monkeypatch.setattr(study_speeds, "package_versions", versions)

    def again(self, **changes: Any) -> int:
        """How often the speeds have been timed by now."""
        teacher = {"model": f"hf:{self.weights}", **changes.pop("teacher", {})}
        recipe = make_recipe(teacher=teacher, **changes)
        queries = tuple(query_of(recipe, number) for number in range(4))
        main = EvaluationSet("golden", "truth", queries, ("fresh",) * 4, {}, None, 0)  # type: ignore[arg-type]
        run = RunFolder(self.folder / "run")
        study_speeds.speeds_of(recipe, run, self.ran, main, self.folder, Silent())
        return self.timed


@pytest.fixture
def timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timer:
    return Timer(tmp_path, monkeypatch)


def test_what_is_as_it_was_is_not_timed_again(timer: Timer) -> None:
    assert timer.again() == 1
    assert timer.again() == 1
    # Neither prices nor what changes no answer are part of a speed.
    assert timer.again(prices={"machine_usd_per_hour": 9.0}) == 1
    assert timer.again(teacher={"retries": 9, "budget_usd": 1.0}) == 1
    timer.versions["xllamacpp"] = timer.versions["onnxruntime"] = "another"  # not used here
    assert timer.again() == 1


def test_a_key_of_the_recipe_that_is_new_and_at_its_default_times_nothing_again(
    timer: Timer,
) -> None:
    timer.again()
    path = timer.folder / study_speeds.SPEED
    saved = read_json(path)
    of: Any = saved["of"]
    del of["teacher"]["chat_template"]
    del of["task"]["system"]
    write_json(path, saved)
    assert timer.again() == 1
    assert timer.again(teacher={"chat_template": False}) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": {"batch_size": 3}},
        {"teacher": {"max_tokens": 9}},
        {"teacher": {"chat_template": False}},
        {"teacher": {"device": "cpu"}},
        {"teacher": {"model": "embedded"}},
        {"task": {"prompt": "Judge: {text}"}},
        {"evaluate": {"batch_size": 3}},
    ],
)
def test_another_setting_is_timed_again(timer: Timer, changes: dict[str, Any]) -> None:
    timer.again()
    assert timer.again(**changes) == 2
    assert timer.again(**changes) == 2


def test_other_weights_of_the_teacher_are_timed_again(timer: Timer) -> None:
    timer.again()
    (timer.weights / "model.safetensors").write_bytes(b"WEIGHTS")
    assert timer.again() == 2
    assert timer.again() == 2


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_version_is_timed_again(timer: Timer, package: str) -> None:
    timer.again()
    timer.versions[package] = "another"
    assert timer.again() == 2


def test_another_tuning_of_the_teacher_is_timed_again(timer: Timer) -> None:
    changes = {
        "teacher": {"tune": {"layers": 1}},
        "traffic": {"labelled": "labelled.jsonl"},
    }

    def tune(weights: str) -> None:
        run = RunFolder(timer.folder / "run")
        key = StageKey("tune", {"weights": weights}, {}, {}, 0)
        write_json(run.open_partial(key) / "tune.json", {"weights": weights})
        run.finish(key, Outcome(), 1.0, 1.0)

    tune("first")
    timer.again(**changes)
    assert timer.again(**changes) == 1
    tune("second")
    assert timer.again(**changes) == 2


@pytest.mark.parametrize(
    ("kind", "package"), [("onnx", "onnxruntime"), ("gguf", "xllamacpp"), ("hf", "torchao")]
)
def test_the_runtime_of_a_form_is_part_of_its_speed(timer: Timer, kind: str, package: str) -> None:
    report = SimpleNamespace(compress=SimpleNamespace(artefacts=(SimpleNamespace(kind=kind),)))
    timer.ran = [Ran(Variant("small", make_recipe()), timer.folder / "small", report)]  # type: ignore[arg-type]
    timer.again()
    assert timer.again() == 1
    timer.versions[package] = "another"
    assert timer.again() == 2


def test_a_gguf_teacher_is_timed_again_by_another_llama_cpp(timer: Timer) -> None:
    path = timer.folder / "teacher.gguf"
    path.write_bytes(b"GGUF")
    teacher = {"model": f"gguf:{path}"}
    timer.again(teacher=teacher)
    timer.versions["xllamacpp"] = "another"
    assert timer.again(teacher=teacher) == 2
    path.write_bytes(b"GGUF of another quantization")
    assert timer.again(teacher=teacher) == 3
