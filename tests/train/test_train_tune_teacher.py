"""Tuning a teacher: what is trained, what is not, what is never seen, and kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_stage import kill_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery
from stillhouse.core.runfolder import hash_folder
from stillhouse.models.label_likelihood import LabelScorer
from stillhouse.train.batches import encode_chats
from stillhouse.train.frozen import with_hidden_states
from stillhouse.train.layers import upper_part
from stillhouse.train.tune_teacher import run_tune
from tiny_models import byte_bpe, review_examples, tiny_llama, write_jsonl


def _labelled(count: int) -> list[LabelledQuery]:
    return [
        LabelledQuery(id=e.id, messages=e.prompt, reference=str(e.label).upper())
        for e in review_examples(count)
    ]


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    write_jsonl(folder / "labelled.jsonl", list(_labelled(64)))
    return folder


def _recipe(source: Path, **tune: Any) -> Recipe:
    settings = {"epochs": 3, "learning_rate": 2e-2, "batch_size": 8, **tune}
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 3,
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "traffic": {"path": "x", "labelled": "y"},
            "teacher": {"model": f"hf:{source}", "tune": settings},
            "student": {"head": "label", "from": "teacher"},
        }
    )


def _changed(before: Path, after: Path) -> set[str]:
    old = AutoModelForCausalLM.from_pretrained(before).state_dict()
    new = AutoModelForCausalLM.from_pretrained(after).state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_only_the_last_layers_move(lm_folder: Path, traffic: Path, tmp_path: Path) -> None:
    outcome = run_tune(_recipe(lm_folder, layers=2), traffic, tmp_path, Silent())
    changed = _changed(lm_folder, tmp_path / "model")
    assert {n.split(".")[2] for n in changed if "layers" in n} == {"2", "3"}
    assert {n for n in changed if "layers" not in n} == {"model.norm.weight"}
    summary = json.loads((tmp_path / "tune.json").read_text())
    assert summary["n"] + summary["held_back"] == 64
    assert 16 <= summary["held_back"] <= 20
    assert summary["losses"][-1][1] < summary["losses"][0][1]
    assert outcome.summary["layers"] == 2
    assert outcome.measured == {"timings.json"}
    assert not (tmp_path / "checkpoints").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.num_hidden_layers == 4


def test_a_tuned_teacher_knows_the_labels(lm_folder: Path, traffic: Path, tmp_path: Path) -> None:
    run_tune(_recipe(lm_folder, epochs=36), traffic, tmp_path, Silent())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.chat_template == byte_bpe().chat_template
    scorer = LabelScorer(model, tokenizer, ["positive", "negative"])
    examples = review_examples(64)
    best = scorer.score([e.prompt for e in examples]).argmax(-1).tolist()
    right = sum(["positive", "negative"][b] == e.label for b, e in zip(best, examples, strict=True))
    assert right >= 60


def test_kept_hidden_states_give_the_same_teacher(
    lm_folder: Path, traffic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(lm_folder, layers=2)
    run_tune(recipe, traffic, tmp_path / "kept", Silent())
    monkeypatch.setattr("stillhouse.train.frozen.MOST_BYTES", 0)
    run_tune(recipe, traffic, tmp_path / "again", Silent())
    kept, again = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict()
        for name in ("kept", "again")
    )
    for name, weight in kept.items():
        torch.testing.assert_close(again[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_the_upper_part_continues_from_hidden_states() -> None:
    tokenizer = byte_bpe()
    model = tiny_llama(tokenizer)
    rows = encode_chats(review_examples(5), tokenizer, 200).rows
    kept = with_hidden_states(model, rows, 3, tokenizer.pad_token_id)
    assert kept is not None
    assert [len(item["hidden"]) for item in kept.items] == rows.lengths
    ids = torch.tensor([rows[4]["input_ids"]])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with upper_part(model, 3):
            assert model.config.num_hidden_layers == 1
            upper = model(inputs_embeds=kept[4]["hidden"][None], use_cache=False).logits
        assert torch.equal(model(input_ids=ids).logits, whole)
    torch.testing.assert_close(upper, whole)


def test_a_model_that_scales_its_inputs_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_bpe()
    model = tiny_llama(tokenizer)
    forward = model.model.forward

    def scaled(*args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        doubled = None if inputs_embeds is None else inputs_embeds * 2 + 1
        return forward(*args, inputs_embeds=doubled, **kwargs)

    monkeypatch.setattr(model.model, "forward", scaled)
    rows = encode_chats(review_examples(5), tokenizer, 200).rows
    assert with_hidden_states(model, rows, 3, tokenizer.pad_token_id) is None


@pytest.mark.full
def test_a_killed_tuning_ends_with_the_same_bytes(
    lm_folder: Path, traffic: Path, tmp_path: Path
) -> None:
    recipe = _recipe(lm_folder, layers=2)
    run_tune(recipe, traffic, tmp_path / "whole", Silent())
    work = tmp_path / "killed" / "tune"
    work.mkdir(parents=True)
    kill_run(recipe, "tune", traffic, work, "step:11")
    assert list((work / "checkpoints").iterdir())
    run_tune(recipe, traffic, work, Silent())
    timings = {"timings.json"}
    one, two = (hash_folder(folder) for folder in (tmp_path / "whole", work))
    assert {n: h for n, h in one.items() if n not in timings} == {
        n: h for n, h in two.items() if n not in timings
    }


def test_what_cannot_be_tuned_is_one_line(lm_folder: Path, traffic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.tune\.layers: the teacher has 4 layers"):
        run_tune(_recipe(lm_folder, layers=9), traffic, tmp_path / "a", Silent())
    (tmp_path / "b").mkdir()
    bad = _labelled(20)
    bad[3] = bad[3].model_copy(update={"reference": "mixed"})
    write_jsonl(tmp_path / "b" / "labelled.jsonl", list(bad))
    with pytest.raises(DataError, match=r"labelled query r3.*mend traffic\.labelled"):
        run_tune(_recipe(lm_folder, check_fraction=0.01), tmp_path / "b", tmp_path / "c", Silent())
