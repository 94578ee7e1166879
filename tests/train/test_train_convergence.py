"""What is said of a training's course: on courses made up, and on small ones really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message
from stillhouse.train.convergence import Convergence, judge_course
from stillhouse.train.convergence_rate import rate_too_high
from stillhouse.train.detect import Blocks
from stillhouse.train.evidence import LEVEL, Evidence
from stillhouse.train.history import CurveRow
from stillhouse.train.looks import LOOKS, Look, keep_looks, read_looks
from stillhouse.train.objectives import HeldOutSums
from stillhouse.train.stage import run_train
from tiny_models import write_jsonl

N = 200
UP = ["gripping", "wonderful", "funny", "warm", "moving"]
DOWN = ["dull", "boring", "tired", "lifeless", "long"]
FILL = ["film", "story", "cast", "script", "plot", "start", "finish", "alive", "comes", "far"]
LABELS = ["positive", "negative"]


def row(step: int, loss: float | None, divergence: float | None = None) -> CurveRow:
    return CurveRow(step, step / 10, loss, divergence, None, None)


def look(step: int, divergence: float, right: int, seed: int = 0) -> Look:
    """A look that agrees with the teacher (always answer i % 2) on the first `right` items."""
    draw = np.random.default_rng(seed + step)
    ones = np.ones(N)
    agreed = (np.arange(N) < right) * 1.0
    choices = np.where(agreed == 1, np.arange(N) % 2, 1 - np.arange(N) % 2)
    return Look(
        step, Blocks(draw.gamma(9.0, divergence / 9, N), ones), Blocks(agreed, ones), choices
    )


def course(**changes: Any) -> Convergence:
    """A course without fault, but for the changes."""
    looks = [look(10 * k, 0.05 + 0.5 * 0.1**k, 150 + 8 * k) for k in range(1, 7)]
    plain: dict[str, Any] = {
        "rows": [row(5 * k, 0.2 + 0.8**k) for k in range(1, 13)],
        "looks": looks,
        "kept": looks[-1],
        "lesson": look(60, 0.05, 199),
        "best_step": 60,
        "learning_rate": 1e-3,
        "distillation_temperature": 2.0,
        "classes": 2,
        "teacher": np.arange(N) % 2,
        "entropy": 0.3,
    }
    return judge_course(Evidence(**{**plain, **changes}))


def found(said: Convergence) -> set[str]:
    return {one.name for one in said.findings if one.found}


def test_a_course_without_fault_has_converged() -> None:
    said = course()
    assert said.verdict.state == "converged"
    assert not found(said)
    assert json.loads(json.dumps(said.as_json(), allow_nan=False))["looks"][-1]["step"] == 60


def test_each_fault_is_named_with_its_next_action() -> None:
    rising = [
        *(row(5 * k, 1.0 - k / 10) for k in range(1, 7)),
        *(row(5 * k, k / 5) for k in range(7, 15)),
    ]
    said = course(rows=rising)
    assert said.verdict.state == "rate_too_high"
    assert "lower train.learning_rate" in said.verdict.actions[0]

    grown = [look(10 * k, v, 190) for k, v in enumerate((0.3, 0.1, 0.1, 0.2, 0.3), 1)]
    said = course(looks=grown, kept=grown[1], best_step=20)
    assert said.verdict.state == "divergence_growth"
    assert "fewer train.epochs" in said.verdict.actions[0]

    small = look(60, 0.3, 150)
    flat = [look(10 * k, 0.3, 150) for k in range(1, 7)]
    said = course(looks=flat, kept=flat[-1], lesson=small)
    assert said.verdict.state == "capacity_ceiling"
    assert "bigger student" in said.verdict.actions[0]

    said = course(kept=look(60, 0.3, 150))
    assert said.verdict.state == "too_little_data"
    assert "more teacher answers" in said.verdict.actions[0]

    moving = [look(10 * k, 1.0 - 0.15 * k, 190) for k in range(1, 7)]
    said = course(looks=moving, kept=moving[-1])
    assert said.verdict.state == "not_finished"
    assert "more train.epochs" in said.verdict.actions[0]

    for entropy, way in ((0.001, "raise"), (0.68, "lower")):
        said = course(entropy=entropy)
        assert said.verdict.state == "soft_targets"
        assert said.verdict.actions[0].startswith(f"{way} train.distillation_temperature")


def answers(choices: np.ndarray, teacher: np.ndarray) -> Look:
    ones = np.ones(len(teacher))
    return Look(60, Blocks(0.1 * ones, ones), Blocks((choices == teacher) * 1.0, ones), choices)


def rate_of(choices: np.ndarray, teacher: np.ndarray, losses: list[float]) -> bool | None:
    evidence = Evidence(
        rows=[row(k, loss) for k, loss in enumerate(losses, 1)],
        looks=[],
        kept=answers(choices, teacher),
        lesson=None,
        best_step=60,
        learning_rate=1e-3,
        distillation_temperature=2.0,
        classes=2,
        teacher=teacher,
    )
    return rate_too_high(evidence).found


SETTLED = [0.2 + (0.01 if k % 2 else 0.0) + 0.8**k for k in range(40)]


def test_a_perfect_student_of_a_frequent_answer_had_no_rate_too_high() -> None:
    teacher = np.array([0] * 97 + [1] * 3)
    assert rate_of(teacher, teacher, SETTLED) is False
    said = course(teacher=teacher, kept=answers(teacher, teacher), looks=[])
    assert "rate_too_high" not in found(said)


@pytest.mark.parametrize("majority", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("count", [50, 200, 1000])
def test_good_students_are_seldom_told_of_a_rate_too_high(majority: float, count: int) -> None:
    """Students that give 75% or more of each of the teacher's answers, 150 of each kind."""
    draw = np.random.default_rng(23)
    for right in (0.75, 0.95):
        alarms = 0
        for _ in range(150):
            teacher = (draw.random(count) >= majority) * 1
            choices = np.where(draw.random(count) < right, teacher, 1 - teacher)
            alarms += bool(rate_of(choices, teacher, SETTLED[-12:]))
        assert alarms <= binom.ppf(0.999, 150, LEVEL)


def test_a_student_that_learned_nothing_is_told_so_once_its_loss_has_settled() -> None:
    teacher = np.arange(N) % 10 // 8
    nothing = np.zeros(N, dtype=np.int64)
    assert rate_of(nothing, teacher, [0.7, 0.69] * 8) is True
    few = np.array([0] * (N - 5) + [1] * 5)
    assert rate_of(np.zeros(N, dtype=np.int64), few, [0.7, 0.69] * 8) is None
    # No count of these could tell such a fall from chance: it is not said to have settled.
    for rows in (8, 9, 10):
        falling = np.geomspace(2.0, 0.01, rows).tolist()
        assert rate_of(nothing, teacher, falling) is None
    assert rate_of(nothing, teacher, np.geomspace(2.0, 0.01, 14).tolist()) is False


def test_a_verdict_names_what_could_not_be_looked_at() -> None:
    """`converged` is not said as if nothing had been left out."""
    seen = course(truth=np.arange(N) % 2, teacher=np.arange(N) % 2)
    assert "cannot be told" in seen.verdict.sentence  # whether mistakes are copied: there are none
    said = course(lesson=None)
    assert said.verdict.state == "converged"
    for words in ("too little data", "too small", "not looked at on its training examples"):
        assert words in said.verdict.sentence
    text = course(classes=None, teacher=None, entropy=None)
    assert "one size tells nothing" in text.verdict.sentence
    assert "no known cause of a loss was found" not in text.verdict.sentence
    everything = course(
        truth=np.where(np.arange(N) < 10, 1 - np.arange(N) % 2, np.arange(N) % 2),
    )
    assert everything.verdict.sentence == (
        "The student has converged: no known cause of a loss was found."
    )


def steady(step: int, divergence: float) -> Look:
    """A look whose mean is known to a thousandth."""
    ones = np.ones(N)
    each = divergence * (1 + 0.01 * (-1.0) ** np.arange(N))
    right = (np.arange(N) < 150) * 1.0
    choices = np.where(right == 1, np.arange(N) % 2, 1 - np.arange(N) % 2)
    return Look(step, Blocks(each, ones), Blocks(right, ones), choices)


def test_a_ceiling_is_judged_by_the_curve_continued_over_steps() -> None:
    """A slow fall: its last half brings less than a tenth, its curve goes on to far below."""
    small = look(60, 0.3, 150)
    slow = [steady(10 * 2**k, 0.5 * (10 * 2**k) ** -0.1) for k in range(7)]
    said = course(looks=slow, kept=slow[-1], lesson=small, best_step=640)
    assert said.floor is not None
    assert said.floor.errors == tuple(one.divergence.error for one in slow)
    (ceiling,) = (one for one in said.findings if one.name == "capacity_ceiling")
    (moving,) = (one for one in said.findings if one.name == "not_finished")
    assert moving.found is False
    assert ceiling.found is None
    assert "had not settled" in ceiling.seen

    flat = [steady(10 * 2**k, 0.3 + 0.5 * 0.2**k) for k in range(7)]
    said = course(looks=flat, kept=flat[-1], lesson=small, best_step=640)
    (ceiling,) = (one for one in said.findings if one.name == "capacity_ceiling")
    assert ceiling.found
    assert ceiling.action == "a bigger student (student.size, student.layers)"
    assert ceiling.numbers["floor"] == pytest.approx(0.3, rel=0.02)

    vague = [look(10 * k, 0.3, 150) for k in range(1, 5)]
    said = course(looks=vague, kept=vague[-1], lesson=small, best_step=40)
    (ceiling,) = (one for one in said.findings if one.name == "capacity_ceiling")
    assert ceiling.found
    assert "more steps may still bring some" in ceiling.seen
    assert "twice the train.epochs" in (ceiling.action or "")


def test_the_watch_set_tells_accuracy_and_copied_mistakes() -> None:
    teacher, truth = np.array([0] * 80 + [1] * 20), np.zeros(100, dtype=np.int64)
    looks = []
    for k in range(1, 7):
        copies = np.array([0] * 80 + [1] * (4 * (k - 1)) + [0] * (24 - 4 * k))
        looks.append(look(10 * k, 0.05 + 0.5 * 0.1**k, 198)._replace(watched=copies))
    said = course(looks=looks, kept=looks[-1], watched=(teacher, truth))
    assert said.verdict.state == "copies_mistakes"
    written = said.as_json()
    assert written["of_known_truth"] == {"examples": 100, "teacher_wrong": 20}
    assert written["looks"][0]["accuracy"] == 1.0
    assert written["looks"][-1]["accuracy"] == pytest.approx(0.8)
    assert written["looks"][-1]["agreement_on_mistakes"] == 1.0
    alone = course(looks=looks, kept=looks[-1])
    assert written["looks"][-1]["agreement"] == alone.as_json()["looks"][-1]["agreement"]


def test_what_was_not_measured_is_not_judged() -> None:
    said = course(looks=[], kept=None, lesson=None, teacher=None, entropy=None, rows=[])
    assert said.verdict.state == "unknown"
    assert all(one.found is None for one in said.findings)
    assert said.floor is None


def test_looks_outlive_a_kill_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    def sums(first: int) -> HeldOutSums:
        choices, each = torch.tensor([first, 1]), torch.tensor([0.5, 0.25])
        return HeldOutSums(each.sum(), each.sum(), torch.tensor(1), torch.tensor(2), choices, each)

    keep = keep_looks(tmp_path, [1, 1])
    keep(10, [sums(0)])
    with (tmp_path / LOOKS).open("a") as handle:
        handle.write('\n{"step": 20, "div')
    keep(20, [sums(0)])
    keep(10, [sums(1)])
    looks = read_looks(tmp_path)
    assert [one.step for one in looks] == [10, 20]
    assert [one.agreement.mean for one in looks] == [1.0, 0.5]
    assert looks[0].divergence.sums.tolist() == [0.5, 0.25]
    assert read_looks(tmp_path / "none") == []


def texts(count: int, seed: int, flips: float) -> list[Example]:
    """Six words each, positive where more of them are; a share of the labels turned by chance."""
    draw = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        label = int(draw.integers(2))
        words = [*draw.choice((UP, DOWN)[label], 2), *draw.choice(FILL, 4)]
        draw.shuffle(words)
        label = 1 - label if draw.random() < flips else label
        examples.append(
            Example(
                id=f"r{seed}-{number}",
                messages=(
                    Message(role="user", content=" ".join(words)),
                    Message(role="assistant", content=LABELS[label]),
                ),
                task="task",
                group=f"g{seed}-{number}",
                teacher="fake",
                teacher_revision="1",
                label=LABELS[label],
                label_probabilities=(0.9, 0.1) if label == 0 else (0.1, 0.9),
            )
        )
    return examples


def trained(folder: Path, source: Path, count: int, flips: float, **train: Any) -> dict[str, Any]:
    write_jsonl(folder / "dataset" / "train.jsonl", list(texts(count, 1, flips)))
    write_jsonl(folder / "dataset" / "held_out.jsonl", list(texts(300, 2, flips)))
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "classification", "labels": LABELS},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{source}"},
            "student": {"head": "label", "from": f"hf:{source}", "layers": 2, "max_tokens": 48},
            "train": {
                "batch_size": 32, "learning_rate": 3e-3, "epochs": 4, "evals": 6, "patience": None,
                **train,
            },
        }
    )  # fmt: skip
    run_train(recipe, folder / "dataset", None, folder / "train", Silent())
    assert not (folder / "train" / LOOKS).exists()
    facts = json.loads((folder / "train" / "train.json").read_text())
    said: dict[str, Any] = json.loads((folder / "train" / "convergence.json").read_text())
    assert facts["convergence"] == said["verdict"]["state"]
    history = json.loads((folder / "train" / "history.json").read_text())
    seen = {row["step"]: row["held_out_agreement"] for row in history}
    assert all(one["agreement"] == pytest.approx(seen[one["step"]]) for one in said["looks"])
    return said


def test_a_task_that_fits_is_said_to_be_learned(encoder_folder: Path, tmp_path: Path) -> None:
    said = trained(tmp_path, encoder_folder, 256, 0.0, epochs=6)
    names = {one["name"] for one in said["findings"] if one["found"]}
    assert not names & {"rate_too_high", "capacity_ceiling", "too_little_data"}


@pytest.mark.full
def test_a_student_too_small_is_told_so(encoder_folder: Path, tmp_path: Path) -> None:
    """A fifth of the answers follows nothing a student of this size can hold."""
    said = trained(tmp_path, encoder_folder, 2000, 0.2, epochs=6)
    assert said["verdict"]["state"] == "capacity_ceiling", said["verdict"]


@pytest.mark.full
def test_a_rate_too_high_is_told_so(encoder_folder: Path, tmp_path: Path) -> None:
    said = trained(tmp_path, encoder_folder, 640, 0.0, learning_rate=0.5, schedule="constant")
    assert said["verdict"]["state"] == "rate_too_high", said["verdict"]


@pytest.mark.full
def test_too_little_data_is_told_so(encoder_folder: Path, tmp_path: Path) -> None:
    """The same answers, few enough to be learned by heart."""
    said = trained(tmp_path, encoder_folder, 64, 0.2, epochs=150, batch_size=8)
    names = {one["name"] for one in said["findings"] if one["found"]}
    assert "too_little_data" in names, said
    assert "capacity_ceiling" not in names
