"""Students from all sources: seeds, labels, sizes, and errors that name the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import StudentSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.train.students import Student, build_student, save_student, student_source
from tiny_models import TEXTS

TASK = ClassificationTask(kind="classification", labels=("spam", "ham", "other"))


def _build(source: Path | str, seed: int = 0, **section: Any) -> Student:
    student = StudentSection.model_validate({"from": f"hf:{source}", "head": "label"} | section)
    return build_student(student, TASK, f"hf:{source}", TEXTS, seed)


def test_the_seed_decides_the_new_head_and_nothing_else(encoder_folder: Path) -> None:
    one, same, other = (_build(encoder_folder, seed).model for seed in (1, 1, 2))
    for (name, a), b, c in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        drawn = name == "classifier.weight"
        assert torch.equal(a, c) != drawn, name
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    _build(encoder_folder)
    assert torch.equal(torch.rand(1), before), "the caller's random numbers are its own"


@pytest.mark.parametrize("folder", ["encoder_folder", "lm_folder"])
def test_a_classifier_loads_plainly_with_the_labels_in_order(
    folder: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(folder)
    student = _build(source, layers=[0, 2], vocabulary="task", max_tokens=24)
    save_student(student, str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert list(model.config.id2label.values()) == list(TASK.labels)
    assert tokenizer.model_max_length == 24 == student.plan.max_tokens
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        got, wanted = model(**batch).logits, student.model.eval()(**batch).logits
    assert got.shape == (len(TEXTS), 3)
    torch.testing.assert_close(got, wanted)


def test_a_source_with_a_head_of_its_own_gets_a_new_one(
    encoder_folder: Path, tmp_path: Path
) -> None:
    first = _build(encoder_folder, seed=1)
    torch.nn.init.constant_(first.model.classifier.weight, 9.0)
    save_student(first, str(tmp_path))
    again = _build(tmp_path, seed=1)
    assert again.model.classifier.weight.abs().max() < 1


def test_a_language_model_cannot_be_made_of_an_encoder(encoder_folder: Path) -> None:
    with pytest.raises(UserError, match=r"does not hold the weights|cannot be loaded"):
        _build(encoder_folder, head="text")


def test_the_student_of_a_teacher_asked_plainly_reads_plainly(lm_folder: Path) -> None:
    section = StudentSection.model_validate({"from": "teacher", "head": "text"})
    templates = [
        build_student(section, TASK, f"hf:{lm_folder}", TEXTS, 0, plain=plain).tokenizer
        for plain in (False, True)
    ]
    assert templates[0].chat_template is not None
    assert templates[1].chat_template is None


def test_inputs_are_never_longer_than_the_positions(encoder_folder: Path) -> None:
    student = _build(encoder_folder)
    assert student.plan.max_tokens == 48 == student.tokenizer.model_max_length


def test_the_source_is_the_tuned_teacher_where_there_is_one() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "task": TASK.model_dump(),
            "traffic": {"path": "x"},
            "teacher": {"model": "hf:big/one"},
            "student": {"head": "label", "from": "teacher"},
        }
    )
    assert student_source(recipe, None) == "hf:big/one"
    assert student_source(recipe, "runs/a/tune/model") == "runs/a/tune/model"
    other = recipe.model_copy(
        update={"student": recipe.student.model_copy(update={"source": "embedded-encoder"})}
    )
    assert student_source(other, "runs/a/tune/model") == "embedded-encoder"


@pytest.mark.model
def test_a_tenth_of_the_teacher_out_of_minilm() -> None:
    section = StudentSection.model_validate(
        {
            "from": "embedded-encoder",
            "head": "label",
            "layers": 6,
            "vocabulary": "task",
            "max_tokens": 64,
        }
    )
    student = build_student(section, TASK, "embedded-encoder", TEXTS, 0)
    assert student.plan.parameters_before > 22e6
    assert student.plan.parameters < 11e6
    batch = student.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert student.model(**batch).logits.isfinite().all()


def test_a_kept_head_is_that_of_the_source_and_must_be_of_these_labels(
    encoder_folder: Path, tmp_path: Path
) -> None:
    first = _build(encoder_folder, seed=1)
    save_student(first, str(tmp_path))
    kept = _build(tmp_path, seed=2, keep_head=True)
    for (name, a), b in zip(first.model.named_parameters(), kept.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(
        first.model.classifier.weight, _build(tmp_path, seed=2).model.classifier.weight
    )
    section = StudentSection.model_validate(
        {"from": f"hf:{tmp_path}", "head": "label", "keep_head": True}
    )
    turned = ClassificationTask(kind="classification", labels=("ham", "spam", "other"))
    with pytest.raises(UserError, match=r"student.keep_head: .* is no classifier of \['ham'"):
        build_student(section, turned, f"hf:{tmp_path}", TEXTS, 0)
    with pytest.raises(UserError, match=r"student\.keep_head"):
        _build(encoder_folder, keep_head=True)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"from": "embedded-encoder", "head": "label"}, "is for label and tag students from hf:"),
        ({"from": "hf:x", "head": "text"}, "is for label and tag students from hf:"),
        ({"from": "hf:x", "head": "label", "layers": 2}, "needs the source as it stands"),
    ],
)
def test_a_head_is_kept_of_a_whole_classifier_alone(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudentSection.model_validate({**section, "keep_head": True})
