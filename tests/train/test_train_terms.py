"""Whole runs with terms: what is saved, a kill that changes nothing, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_train_stage import PEFT_ASKS_BY_THE_OLD_NAME, kill_run, read, recipe_for
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import hash_folder
from stillhouse.models.loading import load_classifier
from stillhouse.train.batches import Rows
from stillhouse.train.features_tokens import same_tokens
from stillhouse.train.history import Report
from stillhouse.train.planning import check_recipe
from stillhouse.train.stage import run_train
from stillhouse.train.vocabulary import trim_tokenizer
from tiny_models import byte_bpe, tiny_llama, wordpiece

MANY: list[dict[str, Any]] = [
    {"kind": "hidden", "loss": "cosine", "embeddings": True},
    {"kind": "hidden", "layers": [[1, 3]], "projector": "linear", "weight": 0.5},
    {"kind": "attention", "layers": "last", "count": 1, "heads": "mean"},
    {"kind": "activation"},
    {"kind": "relation", "of": ["queries", "keys", "values"], "relation_heads": 4},
    {"kind": "rkd_distance"},
    {"kind": "rkd_angle", "pool": "first"},
    {"kind": "similarity", "layers": [0, 2], "pool": "last"},
    {"kind": "contrastive", "width": 8, "weight": 0.1},
]
WIDE = [MANY[0], MANY[1], MANY[2], {"kind": "relation", "relation_heads": 4}, MANY[8]]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider classifier than the tiny encoder, with other heads and the same pieces."""
    folder, pieces = tmp_path_factory.mktemp("classifier"), wordpiece()
    pieces.save_pretrained(folder)
    torch.manual_seed(6)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(pieces),
            hidden_size=24,
            num_hidden_layers=4,
            num_attention_heads=3,
            intermediate_size=32,
            max_position_embeddings=64,
            pad_token_id=0,
            id2label={0: "negative", 1: "positive"},
            label2id={"negative": 0, "positive": 1},
        )
    ).save_pretrained(folder)
    return folder


def _recipe(source: Path, teacher: Path, head: str = "label", **more: Any) -> Recipe:
    student = more.pop("student", {"layers": 2, "vocabulary": "task"} if head == "label" else {})
    recipe = recipe_for(str(source), head, student, **more)
    section = recipe.teacher.model_copy(update={"model": f"hf:{teacher}"})
    return recipe.model_copy(update={"teacher": section})


def _terms(folder: Path) -> list[dict[str, Any]]:
    return [row["terms"] for row in json.loads((folder / "history.json").read_text())]


class _Stopped(Exception):
    pass


def _stopped_run(recipe: Recipe, dataset: Path, work: Path, step: int) -> None:
    """A run that ends at an optimizer step and leaves what it has on disk."""

    def stop(self: Report, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == step:
            raise _Stopped
        return control

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "on_step_end", stop)
        with pytest.raises(_Stopped):
            run_train(recipe, dataset, None, work, Silent())


@pytest.mark.parametrize(
    "balance",
    [
        "uncertainty",
        *(pytest.param(other, marks=pytest.mark.full) for other in ("fixed", "gradient_norm")),
    ],
)
def test_a_killed_run_with_terms_ends_with_the_same_bytes(
    encoder_folder: Path, classifier: Path, dataset_folder: Path, tmp_path: Path, balance: str
) -> None:
    recipe = _recipe(
        encoder_folder,
        classifier,
        terms=WIDE,
        balance=balance,
        micro_batch_size=4,
        epochs=2,
        progressive={"until": 0.4} if balance == "fixed" else None,
    )
    run_train(recipe, dataset_folder, None, tmp_path / "whole", Silent())
    work = tmp_path / "killed" / "train"
    work.mkdir(parents=True)
    if balance == "gradient_norm":
        kill_run(recipe, "train", dataset_folder, work, "step:11")
    else:
        _stopped_run(recipe, dataset_folder, work, 11)
    (checkpoint, *_) = (work / "checkpoints").iterdir()
    kept = load_file(checkpoint / "distillation.safetensors")
    assert any(key.startswith("maps.hidden") for key in kept)
    own = {"uncertainty": "balance.log_variances", "gradient_norm": "balance.gains"}
    if balance in own:
        assert (kept[own[balance]] != kept[own[balance]][0]).any(), "weights were learned"
    assert not any("distillation" in key for key in load_file(checkpoint / "model.safetensors"))
    run_train(recipe, dataset_folder, None, work, Silent())
    assert hash_folder(work) == hash_folder(tmp_path / "whole")
    student = AutoModelForSequenceClassification.from_pretrained(work / "student")
    names = set(load_file(work / "student" / "model.safetensors"))
    assert names == set(student.state_dict())
    logged = _terms(work)
    assert set(logged[-1]) == {
        "response", "hidden", "hidden_2", "attention", "relation", "contrastive"
    }  # fmt: skip
    for row in logged[-1].values():
        assert set(row) == {"loss", "weight", "gradient_norm"}


def test_all_kinds_of_terms_train_a_label_student_and_its_twin_has_none(
    classifier: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    """Student and teacher of equal pieces; the losses that are compared go down."""
    recipe = _recipe(
        classifier,
        classifier,
        terms=MANY,
        epochs=6,
        learning_rate=2e-3,
        hard_label_twin=True,
        student={"layers": 2},
    )
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    logged = _terms(tmp_path)
    for name in ("hidden_2", "contrastive"):
        assert logged[-1][name]["loss"] < logged[0][name]["loss"]
    assert "terms" in read(tmp_path / "train.json")
    twin = json.loads((tmp_path / "twin" / "history.json").read_text())
    assert all("terms" not in row for row in twin)


@PEFT_ASKS_BY_THE_OLD_NAME
@pytest.mark.parametrize("alpha", [0.5, pytest.param(0.0, marks=pytest.mark.full)])
def test_a_text_student_with_adapters_is_compared_inside(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path, alpha: float
) -> None:
    recipe = recipe_for(
        str(lm_folder),
        "text",
        {"max_tokens": 200, "layers": 2},
        alpha=alpha,
        epochs=1,
        terms=[MANY[1], {"kind": "hidden"}, {"kind": "relation"}, {"kind": "attention"}],
        balance="uncertainty",
        lora={"r": 4},
        micro_batch_size=4,
    )
    run_train(recipe, dataset_folder, None, tmp_path / "whole", Silent())
    assert set(_terms(tmp_path / "whole")[-1]) == {
        "response", "hidden", "hidden_2", "relation", "attention"
    }  # fmt: skip
    adapter = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "student")
    work = tmp_path / "killed" / "train"
    work.mkdir(parents=True)
    _stopped_run(recipe, dataset_folder, work, 5)
    run_train(recipe, dataset_folder, None, work, Silent())
    assert hash_folder(work) == hash_folder(tmp_path / "whole")


def test_a_label_student_cut_from_a_language_model_is_compared_inside(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    """Its vocabulary is trimmed: the teacher reads the same pieces under its own numbers."""
    recipe = recipe_for(
        str(lm_folder),
        "label",
        {"from": "teacher", "layers": 2, "vocabulary": "task"},
        terms=[{"kind": "hidden", "layers": [[0, 0]], "embeddings": True}, {"kind": "relation"}],
        epochs=1,
        warmup_ratio=0.9,
    )
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    first = _terms(tmp_path)[0]
    assert first["hidden"]["loss"] < 1e-10, "the first layers are its teacher's own"
    assert first["relation"]["loss"] > 1e-6


@pytest.mark.parametrize("more", [[], [{"kind": "similarity"}]])
def test_terms_that_all_begin_at_0_train(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path, more: list[dict[str, Any]]
) -> None:
    schedule = {"shape": "linear", "end": 0.5}
    terms = [{**term, "schedule": schedule} for term in [{"kind": "response"}, *more]]
    student = {"max_tokens": 200, "layers": 2}
    recipe = recipe_for(str(lm_folder), "text", student, epochs=1, terms=terms)
    run_train(recipe, dataset_folder, None, tmp_path, Silent())
    first, *_, final = json.loads((tmp_path / "history.json").read_text())
    assert "terms" not in first, "none was on"
    assert first["loss"] == 0
    last = final["terms"]
    assert set(last) == {term["kind"] for term in terms}
    assert all(row["weight"] == 1 and row["gradient_norm"] > 0 for row in last.values())


def test_what_the_recipe_shows_to_do_nothing_is_refused(classifier: Path) -> None:
    never = {"shape": "steps", "at": [[0, 0]]}
    early = {"shape": "steps", "at": [[0, 1], [0.3, 0]]}
    response, hidden = {"kind": "response"}, {"kind": "hidden"}

    def check(head: str, terms: list[dict[str, Any]], **more: Any) -> None:
        check_recipe(_recipe(classifier, classifier, head, terms=terms, student={}, **more))

    for terms, more in (
        ([response | {"schedule": never}], {}),
        ([response | {"schedule": never}, hidden | {"schedule": never}], {}),
        (
            [response | {"schedule": early}, hidden | {"schedule": never}],
            {"progressive": {"until": 0.5}},
        ),
    ):
        with pytest.raises(RecipeError, match=r"train\.terms: their schedules are 0 throughout"):
            check("label", terms, **more)
    check("label", [response | {"schedule": never}, hidden])
    check("label", [hidden | {"schedule": never}])
    check("label", [response | {"schedule": early}, hidden | {"schedule": never}])
    for kind in ("rkd_distance", "rkd_angle", "similarity", "contrastive"):
        term = {"kind": kind, "pool": "first"}
        check("label", [term])
        check("text", [{"kind": kind, "pool": "last"}])
        with pytest.raises(RecipeError, match=r"train\.terms\.1\.pool: .*use mean or last"):
            check("text", [hidden, term])


def test_what_cannot_be_compared_is_one_line(
    encoder_folder: Path, classifier: Path, lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    byte_bpe().save_pretrained(other)
    torch.manual_seed(1)
    tiny_llama(byte_bpe()).save_pretrained(other)
    cases: list[tuple[Recipe, str]] = [
        (
            _recipe(encoder_folder, classifier, terms=[{"kind": "hidden", "layers": [[0, 4]]}]),
            r"train\.terms\.0\.layers: the student has layers 0 to 1, the teacher 0 to 3",
        ),
        (
            _recipe(encoder_folder, classifier, terms=[{"kind": "hidden"}, {"kind": "attention"}]),
            r"train\.terms\.1\.heads: the student has 2 attention heads, the teacher 3",
        ),
        (
            _recipe(encoder_folder, classifier, terms=[{"kind": "relation"}]),
            r"train\.terms\.0\.relation_heads: values are 16 wide in the student and 24 in the "
            r"teacher, which this does not divide \(got 3\); use a number that divides both",
        ),
        (
            _recipe(encoder_folder, other, terms=[{"kind": "hidden"}]),
            r"train\.terms: .*tokenizer is not its teacher's",
        ),
    ]
    for number, (recipe, says) in enumerate(cases):
        with pytest.raises(UserError, match=says) as caught:
            run_train(recipe, dataset_folder, None, tmp_path / str(number), Silent())
        assert "\n" not in str(caught.value)


def test_a_text_that_is_cut_into_other_pieces_is_refused(classifier: Path) -> None:
    """A vocabulary trimmed to other texts: a training text is spelt from shorter pieces."""
    teacher = load_classifier(str(classifier))
    texts = ["the dull film", "a boring plot"]
    plan = SimpleNamespace(max_tokens=48)
    for kept, whole in ((texts, True), (texts[:1], False)):
        trimmed = trim_tokenizer(teacher.tokenizer, kept)
        student: Any = SimpleNamespace(tokenizer=trimmed.tokenizer, head="label", plan=plan)
        rows = Rows([{"input_ids": ids} for ids in trimmed.tokenizer(texts)["input_ids"]])
        if whole:
            ids = same_tokens(student, teacher, rows, texts)
            assert ids is not None
            assert tuple(ids.tolist()) == trimmed.kept
        else:
            with pytest.raises(UserError, match=r"student\.vocabulary: .*1 of 2 training texts"):
                same_tokens(student, teacher, rows, texts)
