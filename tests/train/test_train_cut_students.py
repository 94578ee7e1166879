"""A recipe's student of a size: built, written, planned before its texts, refused in time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_families import model_of
from pydantic import ValidationError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_cut import CutSection
from stillhouse.core.recipe_train import StudentSection
from stillhouse.core.tasks import ClassificationTask, GenerationTask, Task
from stillhouse.train.preflight import check_student, planned_cut
from stillhouse.train.stage import run_train
from stillhouse.train.students import Student, adapter_base, build_student, save_student
from stillhouse.train.vocabulary import trim_tokenizer
from tiny_models import TEXTS, byte_bpe, text_recipe, wordpiece

LABELS = ClassificationTask(kind="classification", labels=("spam", "ham", "other"))
WRITTEN = GenerationTask(kind="generation")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT and a Llama that are large enough to be cut."""
    found = {}
    for family, tokenizer in (("bert", wordpiece()), ("llama", byte_bpe())):
        found[family] = tmp_path_factory.mktemp(family)
        tokenizer.save_pretrained(found[family])
        model_of(family, len(tokenizer)).save_pretrained(found[family])
    return found


def _student(source: str, seed: int = 0, task: Task = LABELS, **section: Any) -> Student:
    section = {"from": source, "head": "label"} | section
    return build_student(StudentSection.model_validate(section), task, source, TEXTS, seed)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("size", ["medium", "heavy", 0.35])
def test_a_classifier_of_a_size(
    family: str, size: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    student = _student(f"hf:{folders[family]}", size=size, max_tokens=24)
    plan = student.plan
    share = {"medium": 0.25, "heavy": 0.5}.get(size, size)
    assert abs(plan.parameters / plan.parameters_before - share) <= 0.02 * share
    assert plan.parameters == sum(weight.numel() for weight in student.model.parameters())
    assert plan.cut is not None
    assert plan.cut["parameters"] == plan.parameters
    json.dumps(plan.as_json())
    save_student(student, str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size == plan.vocabulary
    assert list(model.config.id2label.values()) == list(LABELS.labels)
    for text in TEXTS:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"] or family == "llama"
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        got, wanted = model(**batch).logits, student.model.eval()(**batch).logits
    torch.testing.assert_close(got, wanted)


def test_two_builds_are_equal_and_the_seed_decides_the_head(folders: dict[str, Path]) -> None:
    one, same, other = (
        _student(f"hf:{folders['bert']}", seed, size="medium").model.state_dict()
        for seed in (1, 1, 2)
    )
    # The source is a masked language model: it has no pooler, either.
    drawn = ("classifier.weight", "bert.pooler.dense.weight")
    for name, weight in one.items():
        assert torch.equal(weight, same[name]), name
        assert torch.equal(weight, other[name]) != (name in drawn), name


def test_a_writer_of_a_size_reads_all_tokens_of_its_source(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    student = _student(f"hf:{folders['llama']}", task=WRITTEN, head="text", size="medium")
    assert student.plan.vocabulary == student.plan.vocabulary_before
    save_student(student, str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("head", ["label", "text"])
@pytest.mark.parametrize("size", [None, "medium"])
def test_from_scratch_needs_a_shape_and_a_tokenizer_only(
    head: str, size: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["llama"], tmp_path / "shape")
    (tmp_path / "shape" / "model.safetensors").unlink()
    task = LABELS if head == "label" else WRITTEN
    more = {"head": head, "size": size}
    one, same, other = (
        _student(f"scratch:{tmp_path / 'shape'}", seed, task, **more) for seed in (1, 1, 2)
    )
    weights = [next(iter(student.model.parameters())) for student in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    share = 1 if size is None else 0.25
    assert one.plan.parameters / one.plan.parameters_before == pytest.approx(share, rel=0.02)
    if size is not None:
        assert any("all weights drawn anew" in line for line in one.plan.said)
    with pytest.raises(UserError, match=r"no \.safetensors"):
        _student(f"hf:{tmp_path / 'shape'}", 1, task, head=head)


def test_a_label_that_a_smaller_vocabulary_cannot_spell() -> None:
    tokenizer = byte_bpe()
    rare = "zebra quux, " * 3
    kept = trim_tokenizer(tokenizer, TEXTS, labels=("positive", "negative"))
    whole = tokenizer("positive")["input_ids"]
    assert [kept.kept[number] for number in kept.tokenizer("positive")["input_ids"]] == whole
    alphabet = len(trim_tokenizer(tokenizer, [rare]).kept)
    with pytest.raises(UserError, match="would lose tokens of the label 'positive'"):
        trim_tokenizer(tokenizer, TEXTS, 260, labels=("positive",))
    assert alphabet > 256
    with pytest.raises(UserError, match="cannot spell the label 'ショップ'"):
        trim_tokenizer(wordpiece(), TEXTS, labels=("ショップ",))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"size": 0}, "greater than 0"),
        ({"size": 1.0}, "less than 1"),
        ({"size": "tiny"}, "light"),
        ({"cut": {"prefer": "width"}}, "read with student.size"),
        ({"from": "scratch:"}, "scratch:ID_OR_PATH"),
        (
            {"from": "scratch:x", "size": 0.5, "cut": {"depth": "importance"}},
            "from: scratch draws all anew",
        ),
    ],
)
def test_sections_that_mean_nothing(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudentSection.model_validate({"from": "hf:x", "head": "label"} | section)


def test_rows_are_the_tasks_where_a_classifier_has_a_size() -> None:
    def rows(**section: Any) -> object:
        return StudentSection.model_validate({"from": "hf:x", "size": "light"} | section).vocabulary

    assert rows(head="label") == "task"
    assert rows(head="label", vocabulary="full") == "full"
    assert rows(head="text") == "full"
    cut = StudentSection.model_validate({"from": "hf:x", "head": "text", "size": "light"})
    assert adapter_base(cut) == "base"


def test_a_size_is_refused_before_the_teacher_is_paid(folders: dict[str, Path]) -> None:
    recipe = text_recipe(folders["llama"])
    student = recipe.student.model_copy(update={"size": 0.001, "layers": None})
    with pytest.raises(UserError, match=r"student\.size: the smallest cut"):
        check_student(recipe.model_copy(update={"student": student}))
    fits = student.model_copy(update={"size": "medium"})
    check_student(recipe.model_copy(update={"student": fits}))
    said = "\n".join(planned_cut(recipe.model_copy(update={"student": fits})).lines)
    assert "asked for 25.0%" in said


def test_a_wish_about_tables_is_kept_or_refused(folders: dict[str, Path]) -> None:
    recipe = text_recipe(folders["llama"])
    student = recipe.student.model_copy(update={"size": "medium", "layers": None})

    def check(tie: bool, **more: Any) -> None:
        wished = student.model_copy(update={"cut": CutSection(tie=tie), **more})
        check_student(recipe.model_copy(update={"student": wished}))

    check(True)  # as it is
    with pytest.raises(UserError, match=r"student\.cut\.tie.*makes no second one"):
        check(False)
    for tie in (True, False):
        with pytest.raises(UserError, match=r"student\.cut\.tie.*no output table"):
            _student(f"hf:{folders['llama']}", size="medium", cut={"tie": tie})


def test_a_student_of_a_size_is_trained_and_its_plan_is_shown(
    folders: dict[str, Path], dataset_folder: Path, tmp_path: Path
) -> None:
    lines: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            lines.append(text)

    recipe = Recipe.model_validate(
        text_recipe(folders["llama"]).model_dump(mode="json", by_alias=True)
        | {"student": {"head": "text", "from": f"hf:{folders['llama']}", "size": "medium"}}
    )
    run_train(recipe, dataset_folder, None, tmp_path, Heard())
    said = "\n".join(lines)
    assert "asked for 25.0%" in said
    assert "layers:" in said
    facts = json.loads((tmp_path / "train.json").read_text())
    assert facts["student"]["plan"]["cut"]["share"] == 0.25
    AutoModelForCausalLM.from_pretrained(tmp_path / "student")


@pytest.mark.full
@pytest.mark.model
@pytest.mark.parametrize("size", ["light", "medium", "heavy"])
def test_minilm_is_cut_to_each_size(size: str) -> None:
    student = _student("embedded-encoder", size=size, max_tokens=64)
    share = {"light": 0.1, "medium": 0.25, "heavy": 0.5}[size]
    assert student.plan.parameters == pytest.approx(share * 22_714_755, rel=0.02)
    batch = student.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert student.model(**batch).logits.isfinite().all()


@pytest.mark.full
@pytest.mark.model
def test_three_quarters_of_smollm2_still_know_their_language() -> None:
    """Better than the shape alone: what is inherited is worth something before any training."""
    section = {"task": WRITTEN, "head": "text", "size": 0.75}
    losses = []
    for source in ("embedded", "scratch:embedded"):
        student = _student(source, **section)
        assert student.plan.parameters / student.plan.parameters_before == pytest.approx(
            0.75, rel=0.02
        )
        batch: Any = student.tokenizer(TEXTS, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            losses.append(float(student.model.eval()(**batch, labels=labels).loss))
    assert losses[0] < losses[1] - 0.5
