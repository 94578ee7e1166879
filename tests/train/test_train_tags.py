"""Tag students: trained from start to end, after a kill too, and what does not go with them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.core.recipe_tune import SearchSection
from stillhouse.core.runfolder import hash_folder
from stillhouse.core.tasks import ExtractionTask
from stillhouse.models.completer import Sampling
from stillhouse.models.student import open_student
from stillhouse.plan_student import job_of
from stillhouse.train.batches import Collator
from stillhouse.train.fake_quant import ONNX_INT8
from stillhouse.train.further import open_trained
from stillhouse.train.objectives import tags_objective
from stillhouse.train.outputs import Counts, count_tags
from stillhouse.train.planning import check_recipe
from stillhouse.train.preflight import check_student
from stillhouse.train.quantize import distil_quantized
from stillhouse.train.search_run import measure_of
from stillhouse.train.stage import run_train
from stillhouse.train.tag_rows import encode_tags
from stillhouse.train.trainer import AGREEMENT
from tiny_models import tiny_bert, wordpiece, write_jsonl
from tiny_tags import RAW_TASK, TASK, example, tag_dataset, tag_examples, tag_recipe

KILLED_RUN = Path(__file__).with_name("killed_run.py")
PEFT_ASKS_BY_THE_OLD_NAME = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tag_dataset(tmp_path_factory.mktemp("dataset"))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def answers(folder: Path, count: int = 16) -> list[str]:
    """What a student says to texts that it was not trained on."""
    student = open_student(folder, TASK, "tags", 8, "cpu")

    async def go() -> list[str]:
        queries = [one.to_query() for one in tag_examples(count, 60)]
        found = await asyncio.gather(*(student.complete(q, Sampling()) for q in queries))
        await student.aclose()
        return [one[0].text for one in found]

    return asyncio.run(go())


def test_a_tag_student_learns_to_copy_and_is_plain(
    encoder_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    cut = {"layers": 2, "vocabulary": "task"}
    recipe = tag_recipe(str(encoder_folder), cut, head_learning_rate=2e-2, epochs=20)
    check_recipe(recipe)
    check_student(recipe)
    run_train(recipe, dataset, None, tmp_path, Silent())
    facts = read(tmp_path / "train.json")
    assert facts["student"]["head"] == "tags"
    assert facts["selected_by"] == "held_out_disagreement"
    assert facts["tags"]["fields"] == {
        "praise": {"values": 60, "found": 60},
        "blame": {"values": 40, "found": 40},
    }
    assert facts["tags"]["said"] is None

    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert model.config.num_hidden_layers == 2
    assert model.config.tag_words == 2
    assert model.config.vocab_size == len(tokenizer)
    assert sum(p.numel() for p in model.parameters()) == facts["student"]["parameters"]
    assert list(model.config.id2label.values()) == [
        "O", "B-praise", "I-praise", "B-blame", "I-blame",
    ]  # fmt: skip

    wanted = [one.completion for one in tag_examples(16, 60)]
    said = answers(tmp_path / "student")
    assert sum(map(str.__eq__, said, wanted)) >= 15
    rows = [r for r in read(tmp_path / "history.json") if r["held_out_agreement"] is not None]
    assert rows[-1]["held_out_agreement"] > 0.98
    best = max(rows, key=lambda row: row["held_out_agreement"])
    assert facts["best_step"] == best["step"]
    assert rows[-1]["held_out_cross_entropy"] < rows[0]["held_out_cross_entropy"]
    course = read(tmp_path / "convergence.json")
    assert [look["step"] for look in course["looks"]] == [row["step"] for row in rows]


@pytest.mark.full
def test_a_killed_training_goes_on_to_the_same_student(
    encoder_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = tag_recipe(str(encoder_folder), {"layers": 1}, epochs=2, evals=4)
    run_train(recipe, dataset, None, tmp_path / "whole", Silent())
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    work = tmp_path / "killed"
    for death in ("step:6", "checkpoint:2"):
        done = subprocess.run(
            [sys.executable, str(KILLED_RUN), "train", str(tmp_path / "recipe.json"),
             str(dataset), str(work), death],
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    run_train(recipe, dataset, None, work, Silent())
    assert hash_folder(work / "student") == hash_folder(tmp_path / "whole" / "student")
    for name in ("train.json", "history.json", "convergence.json"):
        assert read(work / name) == read(tmp_path / "whole" / name)


def test_the_loss_is_the_cross_entropy_of_known_tags_however_a_step_is_split() -> None:
    """Beside torch's own, over all tokens of a step at once."""
    tokenizer = wordpiece()
    config = tiny_bert(tokenizer, layers=1).config
    config.num_labels = 5
    torch.manual_seed(3)
    model = BertForTokenClassification(config).eval()
    lost = example(99, "a dull plot", '{"praise": "clever", "blame": "dull"}')
    items = encode_tags([*tag_examples(7), lost], TASK, tokenizer, 32).rows.items
    collate, objective = Collator(0), tags_objective()
    whole = collate(items)
    with torch.no_grad():
        logits = model(whole["input_ids"], attention_mask=whole["attention_mask"]).logits
    wanted = functional.cross_entropy(logits.reshape(-1, 5), whole["labels"].reshape(-1))
    known = int((whole["labels"] != -100).sum())
    for size in (1, 3, 8):
        parts = [collate(items[n : n + size]) for n in range(0, len(items), size)]
        counted = sum((count_tags(part) for part in parts), torch.zeros(4, dtype=torch.int64))
        assert counted.tolist()[0] == known
        assert counted.tolist()[2] == len(items)
        counts = Counts(*counted.unbind())
        total = sum(objective.loss(model, part, counts).item() for part in parts)
        assert total == pytest.approx(float(wanted), rel=1e-5)
    with torch.no_grad():
        sums = objective.held_out(model, whole)
    assert float(sums.cross_entropy) == pytest.approx(float(wanted) * known, rel=1e-5)
    right = (logits.argmax(-1) == whole["labels"]).sum()
    assert (int(sums.items), int(sums.agreed)) == (known, int(right))


@PEFT_ASKS_BY_THE_OLD_NAME
def test_adapters_leave_a_plain_tagger(encoder_folder: Path, dataset: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "alpha": 8, "target_modules": ["query", "value"]}
    recipe = tag_recipe(str(encoder_folder), lora=lora, epochs=2)
    run_train(recipe, dataset, None, tmp_path, Silent())
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert "AutoModelForTokenClassification" in (tmp_path / "adapter" / "README.md").read_text()
    assert len(answers(tmp_path / "student", 2)) == 2


def test_a_size_is_met_and_a_head_can_be_kept(
    encoder_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = tag_recipe(str(encoder_folder), {"size": 0.5}, epochs=1)
    assert recipe.student.vocabulary == "task"
    check_student(recipe)
    run_train(recipe, dataset, None, tmp_path / "first", Silent())
    plan = read(tmp_path / "first" / "train.json")["student"]["plan"]
    assert plan["parameters"] / plan["parameters_before"] == pytest.approx(0.5, abs=0.02)
    first = tmp_path / "first" / "student"
    further = tag_recipe(str(first), {"keep_head": True}, epochs=1, learning_rate=1e-12)
    run_train(further, dataset, None, tmp_path / "second", Silent())
    assert answers(tmp_path / "second" / "student") == answers(first)
    other = {**RAW_TASK, "json_schema": {"type": "object", "properties": {"x": {"type": "string"}}}}
    task = ExtractionTask.model_validate(other)
    with pytest.raises(UserError, match=r"keep_head: .* is no classifier of \['O', 'B-x', 'I-x'\]"):
        run_train(
            further.model_copy(update={"task": task}), dataset, None, tmp_path / "third", Silent()
        )


def test_what_is_planned_is_what_is_built(
    encoder_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = tag_recipe(str(encoder_folder), {"layers": 2}, epochs=1)
    job = job_of(recipe)
    assert job is not None
    run_train(recipe, dataset, None, tmp_path, Silent())
    assert job.parameters == read(tmp_path / "train.json")["student"]["parameters"]


def test_lost_values_are_told_and_too_many_are_refused(
    encoder_folder: Path, tmp_path: Path
) -> None:
    rows = tag_examples(60)
    some = [
        example(90 + n, "the dull plot", '{"praise": "clever", "blame": "dull"}') for n in range(9)
    ]
    write_jsonl(tmp_path / "few" / "train.jsonl", [*rows, *some])
    write_jsonl(tmp_path / "few" / "held_out.jsonl", list(tag_examples(8, 60)))
    recipe = tag_recipe(str(encoder_folder), {"layers": 1}, epochs=1)
    run_train(recipe, tmp_path / "few", None, tmp_path / "work", Silent())
    told = read(tmp_path / "work" / "train.json")["tags"]
    assert (told["values"], told["found"]) == (118, 109)
    assert told["said"].startswith("9 of 118 values")

    write_jsonl(tmp_path / "many" / "train.jsonl", [*rows[:10], *some * 5])
    write_jsonl(tmp_path / "many" / "held_out.jsonl", list(tag_examples(8, 60)))
    with pytest.raises(UserError, match=r"properties\.praise: 45 of its 55 values in the training"):
        run_train(recipe, tmp_path / "many", None, tmp_path / "refused", Silent())


def test_a_tagger_learns_the_grid_of_int8(
    encoder_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    """Where INT8 falls below its gate: on from the trained tags, and kept where fewer are wrong."""
    recipe = tag_recipe(str(encoder_folder), {"layers": 1}, epochs=2)
    run_train(recipe, dataset, None, tmp_path / "first", Silent())
    first = tmp_path / "first" / "student"
    made = distil_quantized(
        recipe, first, dataset, None, work=tmp_path / "grid", progress=Silent(), scheme=ONNX_INT8
    )
    facts = read(tmp_path / "grid" / "quantization_aware.json")
    looks = facts["held_out"]
    assert set(looks) == {"before", "shaped", "after"}
    assert facts["training_helped"] == (looks["after"]["agreement"] > looks["shaped"]["agreement"])
    assert looks["after"]["agreement"] >= looks["shaped"]["agreement"]
    assert len(answers(made, 4)) == 4
    other = {**RAW_TASK, "json_schema": {"type": "object", "properties": {"x": {"type": "string"}}}}
    elsewhere = recipe.model_copy(update={"task": ExtractionTask.model_validate(other)})
    with pytest.raises(UserError, match=r"is a classifier of .* labels are \['O', 'B-x', 'I-x'\]"):
        open_trained(first, elsewhere)


# --- what does not go with tags ---


def raw(student: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    train = {"alpha": 0, **sections.pop("train", {})}
    return {
        "name": "x",
        "task": RAW_TASK,
        "traffic": {"path": "x"},
        "teacher": {"model": "embedded"},
        "student": {"head": "tags", "from": "embedded-encoder", **(student or {})},
        "train": train,
        **sections,
    }


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ({"alpha": 0.5}, r"train\.alpha"),
        ({"hard_label_twin": True}, r"train\.hard_label_twin"),
        ({"signals": "cache"}, r"train\.signals"),
        ({"terms": [{"kind": "hidden"}]}, r"train\.terms"),
        ({"balance": "uncertainty"}, r"train\.balance"),
        ({"progressive": {}}, r"train\.progressive"),
        ({"on_policy": {}}, r"train\.on_policy"),
        ({"selective": {"reference": "hf:x"}}, r"train\.selective"),
        ({"teachers": {"members": [{"model": "hf:x"}]}}, r"train\.teachers"),
        ({"packing": True}, r"train\.packing"),
        (
            {"distributed": {"processes": 2, "strategy": "fsdp2"}},
            r"train\.distributed\.strategy",
        ),
    ],
)
def test_a_training_that_tags_do_not_have_is_refused(train: dict[str, Any], key: str) -> None:
    recipe = Recipe.model_validate(raw(train=train))
    with pytest.raises(RecipeError, match=f"^{key}: .*; .+") as caught:
        check_recipe(recipe)
    assert "\n" not in str(caught.value)
    check_recipe(Recipe.model_validate(raw()))


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"capture": {}}, "capture"),
        ({"prune": {}}, "prune"),
    ],
)
def test_a_stage_that_tags_do_not_have_is_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=f"^{key}: .*student.head: text"):
        check_recipe(Recipe.model_validate(raw(**sections)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"compress": {"formats": ["onnx-int8", "onnx-mobile"]}},
            r"compress\.formats: onnx-mobile is for label students; for this one: onnx, onnx-int8, "
            r"onnx-int8-static;",
        ),
        ({"compress": {"formats": ["gguf-q8_0"]}}, r"gguf-q8_0 is for text students; for this one"),
        ({"speculate": {}}, r"speculate\.draft: student needs student\.head: text"),
        (
            {"task": {"kind": "classification", "labels": ["a", "b"]}},
            r"tags needs an extraction task, not classification; use head: label",
        ),
        (
            {"task": {"kind": "generation"}},
            r"tags needs an extraction task, not generation; use head: text",
        ),
        (
            {
                "task": {
                    **RAW_TASK,
                    "json_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
                }
            },
            r"student\.head: tags copies strings.*properties\.n is .*integer.*; use head: text",
        ),
        ({"student": {"head": "tags", "from": "teacher"}}, r"student\.from: a tag student reads"),
        ({"student": {"head": "tags", "from": "embedded"}}, r"student\.from: a tag student reads"),
    ],
)
def test_a_recipe_that_cannot_be_tagged_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        parse_recipe({**raw(), **changes})
    assert "\n" not in str(caught.value)


def test_a_language_model_is_no_source_of_a_tag_student(lm_folder: Path) -> None:
    with pytest.raises(UserError, match=r"student\.from: a tag student is an encoder .* llama"):
        check_student(tag_recipe(str(lm_folder)))


def test_nor_is_one_that_cannot_be_cut_to_a_size(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"student\.from: a tag student is an encoder .* gpt2"):
        check_student(tag_recipe(str(tmp_path)))


def test_a_search_judges_by_what_weights_are_kept_by(encoder_folder: Path) -> None:
    section = SearchSection()
    assert section.choose_by == "divergence"
    assert measure_of(tag_recipe(str(encoder_folder)), section) == AGREEMENT
