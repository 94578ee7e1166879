"""The field's own readers take train.jsonl as it stands: `datasets` and TRL's SFTTrainer."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.jsonl import write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Query
from stillhouse.dataset.stage import run_dataset

SAID = ("assistant", "user", "system", "good", "bad", "text", "number", "of", "Judge", ":", ".")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s> {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which some examples have beliefs and others not."""
    root = tmp_path_factory.mktemp("house")
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["good", "bad"], "system": "Judge."},
            "traffic": {"path": "unused"},
            "teacher": {"model": "embedded"},
            "dataset": {"min_examples": 10},
            "student": {"head": "text", "from": "teacher"},
        }
    )
    queries = [
        Query(id=str(i), messages=recipe.task.messages_for(f"text number {i} of {i * i}"))
        for i in range(40)
    ]
    beliefs = {"good": math.log(0.9), "bad": math.log(0.1)}
    completions = [
        Completion(
            query_id=query.id,
            text="good" if i % 3 else "bad",
            model="m",
            revision="r",
            label_logprobs=beliefs if i % 3 else None,
        )
        for i, query in enumerate(queries)
    ]
    write_records(root / "traffic" / "queries.jsonl", queries)
    write_records(root / "ask" / "completions.jsonl", completions)
    (root / "work").mkdir()
    run_dataset(recipe, root / "traffic", root / "ask", root / "work", Silent())
    return root / "work" / "train.jsonl"


def loaded(path: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets", reason="needs datasets (extra dev)")
    datasets.disable_progress_bars()
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))


def test_datasets_loads_the_file(train_file: Path, tmp_path: Path) -> None:
    rows = loaded(train_file, tmp_path)
    assert len(rows) == len(train_file.read_text().splitlines())
    first = rows[0]
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][-1]["content"] == first["label"]
    assert {len(row["label_probabilities"]) for row in rows if row["label_probabilities"]} == {2}


def test_trl_trains_on_the_file(train_file: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs trl (extra dev)")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = loaded(train_file, tmp_path / "cache")
    words = [
        *["good", "bad", "text", "number", "of", "assistant", "user", "system", "Judge", ":", "."],
        "</s>",
    ]
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", *words, *map(str, range(40))])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with warnings.catch_warnings():
        # TRL sets options of transformers by their old names.
        warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(
                output_dir=str(tmp_path / "out"),
                max_steps=2,
                per_device_train_batch_size=4,
                report_to="none",
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
                save_strategy="no",
                max_length=64,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        result = trainer.train()
    assert result.global_step == 2
    assert math.isfinite(result.training_loss)
    ids = trainer.train_dataset[0]["input_ids"]
    assert "good" in tokenizer.decode(ids) or "bad" in tokenizer.decode(ids)
