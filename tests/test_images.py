"""`stillhouse images`: a whole run on images drawn here, killed and resumed; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import DataError, RecipeError, UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_images import ImageRecipe
from stillhouse.core.recipe_images_file import load_image_recipe
from stillhouse.images import run_images
from stillhouse.plan_nets import image_plan_lines, plan_images
from stillhouse.train import image_stage
from stillhouse.train.image_data import parts_of, read_images
from stillhouse.train.image_nets import Sizes, build_net
from stillhouse.train.image_stage import chosen

ROOT = Path(__file__).parents[1]
SIZE, CLASSES = 8, 3


def draw(path: Path, count: int, seed: int) -> None:
    """Bars at one of three heights, in noise."""
    numbers = np.random.default_rng(seed)
    labels = numbers.integers(0, CLASSES, count)
    images = numbers.integers(0, 150, (count, SIZE, SIZE))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 60
    np.savez(path, images=images.astype(np.uint8), labels=labels)


def recipe_of(folder: Path, **changes: Any) -> ImageRecipe:
    draw(folder / "train.npz", 240, 0)
    draw(folder / "test.npz", 90, 1)
    raw: dict[str, Any] = {
        "name": "bars",
        "images": {"train": str(folder / "train.npz"), "test": str(folder / "test.npz")},
        "teacher": {"from": "conv", "widths": [8, 8], "epochs": 5, "learning_rate": 5e-3},
        "student": {"from": "mlp", "widths": [6], "epochs": 1},
        "train": {"temperatures": [1, 3], "seeds": 1},
        "evaluate": {"speed_images": 32, "speed_repeats": 1, "resamples": 100},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value}
    return ImageRecipe.model_validate(raw)


def test_a_run_scores_teacher_and_students_and_is_not_done_twice(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    report = run_images(recipe, tmp_path / "run", Silent())
    assert set(report["accuracy"]) == {"teacher", "student", "alone"}
    assert report["accuracy"]["teacher"]["estimate"] > 0.8
    assert report["accuracy"]["student"]["n"] == 90
    assert [row["T"] for row in report["by_T"]] == [1.0, 3.0, None]
    assert report["parameters"]["student"] == SIZE * SIZE * 6 + 6 + 6 * CLASSES + CLASSES
    assert report["retention"]["low"] <= report["retention"]["estimate"]
    files = sorted((tmp_path / "run").rglob("model.safetensors"))
    before = [path.stat().st_mtime_ns for path in files]
    assert run_images(recipe, tmp_path / "run", Silent())["by_T"] == report["by_T"]
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_plan_says_what_comes_and_trains_nothing(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    plan = plan_images(recipe, tmp_path / "run")
    assert read_json(tmp_path / "run" / "plan.json") == plan
    assert not (tmp_path / "run" / "teacher").exists()
    assert plan["students"] == 3  # two temperatures and one alone, of one seed
    rows = plan["train"]
    assert rows + plan["validation"] == 240
    assert plan["teacher"]["steps"] == 5 * -(-rows // 64)
    assert plan["student"]["steps"] == -(-rows // 64)
    lines = dict(image_plan_lines(plan))
    assert f"{plan['teacher']['parameters']:,} parameters" in lines["teacher"]


@pytest.mark.full
def test_a_killed_run_goes_on_net_by_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    whole = run_images(recipe, tmp_path / "whole", Silent())
    real, done = image_stage._score, 0

    def dies(*arguments: Any) -> None:
        nonlocal done
        if done == 1:
            raise KeyboardInterrupt
        done += 1
        real(*arguments)

    monkeypatch.setattr(image_stage, "_score", dies)
    with pytest.raises(KeyboardInterrupt):
        run_images(recipe, tmp_path / "run", Silent())
    monkeypatch.setattr(image_stage, "_score", real)
    trained: list[str] = []
    fit = image_stage._fit
    monkeypatch.setattr(
        image_stage, "_fit", lambda *a: (trained.append(a[-2].parent.name), fit(*a))
    )
    found = run_images(recipe, tmp_path / "run", Silent())
    assert trained == ["T3-0", "alone-0"]
    for key in ("accuracy", "by_T", "agreement"):
        assert found[key] == whole[key]


def test_an_image_classifier_of_transformers_teaches_and_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=5,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    source = {"from": f"hf:{tmp_path / 'vit'}", "widths": [], "epochs": 1}
    recipe = recipe_of(
        tmp_path, teacher=source, student=source, train={"seeds": 1, "temperatures": [2]}
    )
    report = run_images(recipe, tmp_path / "run", Silent())
    student = tmp_path / "run" / "students" / "student" / "transformers"
    plain = ViTForImageClassification.from_pretrained(student)
    assert plain.config.num_labels == CLASSES
    assert report["chosen_T"] == 2.0


def _vit(folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    plain = {
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_channels": 1,
        "num_labels": CLASSES,
    }
    ViTForImageClassification(ViTConfig(**plain | more)).save_pretrained(folder)
    return folder


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_teacher_taken_as_it_is_says_whose_labels_it_has(tmp_path: Path) -> None:
    source = {"from": f"hf:{_vit(tmp_path / 'vit')}", "widths": [], "epochs": 0}
    recipe = recipe_of(tmp_path, teacher=source, train={"temperatures": [1], "alone": False})
    heard = Heard()
    report = run_images(recipe, tmp_path / "run", heard)
    said = "\n".join(heard.lines)
    assert "label k is taken to be class k of the images (label 0: LABEL_0)" in said
    plain = ViTForImageClassification.from_pretrained(tmp_path / "vit").eval()
    test = read_images(tmp_path / "test.npz", "images.test")
    with torch.no_grad():
        logits = plain((test.pixels / 255 - 0.5) / 0.5).logits
    right = (logits.argmax(-1) == test.labels).double().mean()
    assert report["accuracy"]["teacher"]["estimate"] == pytest.approx(float(right))


def test_a_teacher_without_a_head_for_these_labels_is_not_taken_as_it_is(tmp_path: Path) -> None:
    def refused(folder: Path, said: str) -> None:
        source = {"from": f"hf:{folder}", "widths": [], "epochs": 0}
        recipe = recipe_of(tmp_path, teacher=source)
        with pytest.raises(UserError, match=said):
            run_images(recipe, tmp_path / "run", Silent())

    refused(_vit(tmp_path / "seven", num_labels=7), "knows 7 labels, and the images have 3")
    headless = _vit(tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "classifier" not in name}
    save_file(kept, headless / "model.safetensors", {"format": "pt"})
    refused(headless, "has no head of its own")
    save_file(
        {"classifier.bias": weights["classifier.bias"]},
        headless / "model.safetensors",
        {"format": "pt"},
    )
    refused(headless, "does not hold the weights")


def test_a_student_that_cannot_be_is_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    gray = f"hf:{_vit(tmp_path / 'gray')}"
    for source, said in (
        (f"hf:{tmp_path / 'nowhere'}", "cannot be loaded"),
        (gray, "student.from"),
    ):
        recipe = recipe_of(tmp_path, student={"from": source, "widths": [], "epochs": 1})
        for part in (tmp_path / "train.npz", tmp_path / "test.npz"):
            held = dict(np.load(part))
            np.savez(part, images=np.stack([held["images"]] * 3, -1), labels=held["labels"])
        with pytest.raises(UserError, match=said):
            run_images(recipe, tmp_path / "run", Silent())
        assert not (tmp_path / "run" / "teacher").exists()
        assert not (tmp_path / "run" / "teacher.partial").exists()


def test_pixels_are_brought_to_what_a_body_wants() -> None:
    pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    section = ImageRecipe.model_fields["student"].annotation
    assert section is not None
    net = build_net(section(**{"from": "mlp", "widths": [4]}), Sizes(1, 8, 8, 3), pixels, 0)
    scaled = pixels.float() / 255
    wanted = net.body((scaled - scaled.mean()) / scaled.std())
    torch.testing.assert_close(net(pixels), wanted)


def test_t_is_chosen_on_validation_alone() -> None:
    rows = [
        {"T": 1.0, "validation_errors": 5, "errors": 0},
        {"T": 2.0, "validation_errors": 4, "errors": 9},
        {"T": 3.0, "validation_errors": 4, "errors": 1},
    ]
    assert chosen(rows) == 2.0


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"pixels": np.zeros(3)}, "holds no arrays"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(4, int)}, "images are float64"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "labels are"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, -1])}, "below 0"),
    ],
)
def test_files_that_cannot_be_used(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said):
        read_images(tmp_path / "x.npz", "images.train")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        read_images(tmp_path / "none.npz", "images.train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        read_images(tmp_path / "text.npz", "images.train")


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    draw(tmp_path / "a.npz", 30, 0)
    whole = read_images(tmp_path / "a.npz", "images.train")
    with pytest.raises(DataError, match="never shows"):
        parts_of(whole, whole._replace(labels=whole.labels + 5), share=0.2, limit=None, seed=0)
    with pytest.raises(DataError, match="of which 1 would be"):
        parts_of(whole, whole, share=0.05, limit=None, seed=0)
    small = whole._replace(pixels=whole.pixels[:, :, :4])
    with pytest.raises(DataError, match="one size"):
        parts_of(whole, small, share=0.2, limit=None, seed=0)


def test_the_recipe_that_is_shipped_loads_and_others_are_told_apart(tmp_path: Path) -> None:
    recipe = load_image_recipe(ROOT / "recipes/vision.yaml")
    assert recipe.train.temperatures == (1.0, 2.0, 3.0)
    with pytest.raises(RecipeError, match="stillhouse run"):
        load_image_recipe(ROOT / "recipes/quickstart.yaml")
    raw = yaml.safe_load((ROOT / "recipes/vision.yaml").read_text())
    raw["train"]["temperature"] = 3
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(RecipeError, match="did you mean 'temperatures'"):
        load_image_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ({"from": "mlp"}, "needs the width"),
        ({"from": "resnet"}, "must be conv, mlp or hf:"),
        ({"from": "hf:x", "widths": [3]}, "have? its own|has its own"),
    ],
)
def test_nets_that_make_no_sense(net: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageRecipe.model_validate(
            {"name": "x", "images": {"train": "a", "test": "b"}, "teacher": net, "student": net}
        )


def test_the_command_prints_the_figures(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"temperatures": [2], "seeds": 1})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True)))
    arguments = ["images", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "errors, T 2 (kept)" in done.output
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(as_json.output)["chosen_T"] == 2.0
    assert read_json(tmp_path / "run" / "report.json")["chosen_T"] == 2.0
