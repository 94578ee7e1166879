"""The student's side of a plan: the recipes of Llama 3.2 3B and Phi-3 mini, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from doubles import recipe_of, write_rows
from stillhouse.core.devices import devices
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_file import load_recipe
from stillhouse.plan import Planned, make_plan, plan_lines
from stillhouse.plan_student import job_of
from stillhouse.teacher.plan_records import StudentPlan

RECIPES = Path(__file__).parents[1] / "recipes"


def planned(name: str, folder: Path, *changes: str) -> Planned:
    write_rows(
        folder / "traffic.jsonl",
        [{"text": f"{'what a customer said ' * (20 + n % 7)}{n}"} for n in range(60)],
    )
    recipe = load_recipe(
        RECIPES / f"{name}.yaml",
        [
            f"traffic.path={folder / 'traffic.jsonl'}",
            "traffic.golden=null",
            "teacher.terms={waived_by: the tests, reason: nothing is asked}",
            "dataset.near_duplicate=1",
            *changes,
        ],
    )
    return make_plan(recipe, folder / "run", None, Silent())


def student(found: Planned) -> StudentPlan:
    assert found.plan.student is not None
    return found.plan.student


@pytest.mark.parametrize(
    ("name", "parameters", "trained"),
    [
        ("llama-3.2-3b-lora", 3_212_749_824, 4_587_520),
        ("phi-3-mini-lora", 3_821_079_552, 6_291_456),
    ],
)
def test_a_real_id_is_planned_without_a_download(
    name: str, parameters: int, trained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    found = planned(name, tmp_path)
    plan = student(found).training
    assert plan is not None
    assert (plan.parameters, plan.trained_parameters) == (parameters, trained)
    assert plan.examples == pytest.approx(54)
    assert not plan.tokens_known
    assert plan.memory.total_gib > 2 * parameters / 2**30
    assert [device.name for device in plan.devices] == [device.name for device in devices()]
    h100 = plan.devices[-1]
    assert h100.fits
    assert h100.usd_low is not None
    assert h100.usd_low < (h100.usd_high or 0.0)
    lines = dict(plan_lines(found))
    assert f"{parameters:,}" in lines["parameters"]
    assert "GiB for 4 rows of 2,048 tokens" in lines["memory"]
    assert "not measured here" in lines["training"]
    assert "its price is not known: set prices.machine_usd_per_hour" in lines["on L4 24 GB"]


def test_what_does_not_fit_is_said_with_what_does(tmp_path: Path) -> None:
    small = student(planned("llama-3.2-3b-lora", tmp_path)).training
    assert small is not None
    a10g = small.devices[0]
    assert (a10g.fits, a10g.largest_micro_batch) == (False, 2)
    found = planned("llama-3.2-3b-lora", tmp_path, "train.lora=null")
    full = student(found).training
    assert full is not None
    assert full.trained_parameters == full.parameters
    assert full.devices[0].largest_micro_batch is None
    assert "does not fit" in dict(plan_lines(found))["on A10G 24 GB"]


def test_a_price_of_ones_own_goes_before_the_table(tmp_path: Path) -> None:
    plan = student(planned("llama-3.2-3b-lora", tmp_path, "prices.machine_usd_per_hour=2")).training
    assert plan is not None
    for device in plan.devices:
        assert device.usd_per_hour == 2
        assert device.usd_high == pytest.approx(device.seconds_high / 1800)


def test_an_unknown_student_is_said_to_be_unknown(tmp_path: Path) -> None:
    found = planned("llama-3.2-3b-lora", tmp_path, "student.from=hf:who/what")
    assert student(found).training is None
    assert "the shape of hf:who/what is not known" in dict(plan_lines(found))["student"]


@pytest.mark.parametrize(
    ("changes", "labels", "teacher"),
    [
        ({"student": {"from": "embedded-encoder"}}, 2, False),
        ({"student": {"from": "teacher", "head": "text"}}, 2, True),
        ({"student": {"from": "teacher", "head": "text"}, "train": {"alpha": 0}}, 2, False),
    ],
)
def test_who_is_in_memory(
    changes: dict[str, Any], labels: int, teacher: bool, tmp_path: Path
) -> None:
    job = job_of(recipe_of(tmp_path, **changes))
    assert job is not None
    assert job.labels == labels
    assert (job.teacher is not None) is teacher
