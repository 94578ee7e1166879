"""On-policy training: who writes, what is written, what is minimised; a kill changes nothing."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from scipy import stats
from transformers import GenerationConfig

from stillhouse.core.errors import RecipeError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_on_policy import OnPolicySection
from stillhouse.core.runfolder import hash_folder
from stillhouse.train.batches import Collator, encode_chats
from stillhouse.train.features_wiring import Learned
from stillhouse.train.objectives import text_objective
from stillhouse.train.on_policy import WRITERS, WRITTEN_BY, OnPolicy, Writing, rewritten, sample
from stillhouse.train.outputs import CausalReader, Counts, StepAt, count
from stillhouse.train.planning import check_recipe
from stillhouse.train.reading import Reading
from stillhouse.train.stage import run_train
from stillhouse.train.students import build_student
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.wiring import build_objective
from tiny_models import byte_bpe, loud_llama, review_examples, text_recipe, write_jsonl

KILLED_RUN = Path(__file__).with_name("killed_run.py")
TOKENIZER = byte_bpe()
PAD, END = int(TOKENIZER.pad_token_id), int(TOKENIZER.eos_token_id)


def _writing(ends: tuple[int, ...] = (END,), longest: int = 200, **section: Any) -> Writing:
    return Writing(OnPolicySection(**{"max_new_tokens": 6, **section}), 3, ends, PAD, longest)


def _batch(count: int = 4) -> dict[str, torch.Tensor]:
    rows = encode_chats(review_examples(count), TOKENIZER, 200).rows
    return Collator(PAD)(rows.items)


def _loud(layers: int = 2) -> Any:
    return loud_llama(TOKENIZER, layers, 0.7)


def _policy(model: Any, teacher: Any, **section: Any) -> OnPolicy:
    return OnPolicy(
        text_objective(0.5, 2.0, LiveTeacher(teacher, CausalReader())),
        text_objective(1.0, 2.0, LiveTeacher(teacher, CausalReader())),
        teacher,
        _writing(**section),
    )


def test_shares_of_micro_batches_are_those_asked_for() -> None:
    model = _loud(1)
    policy = _policy(model, model, student_fraction=0.5, teacher_fraction=0.2)
    n = 4000
    found = Counter(policy.writer(StepAt(i // 2, i % 2)) for i in range(n))
    for writer, share in (("student", 0.5), ("teacher", 0.2), ("data", 0.3)):
        # five standard deviations of a binomial share
        assert abs(found[writer] / n - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert policy.writer(StepAt(7, 1, rank=0)) == policy.writer(StepAt(7, 1, rank=3))


def test_what_is_written_follows_the_prompt_and_ends_as_data_does() -> None:
    batch, model = _batch(), _loud()
    before = torch.get_rng_state()
    model.train()
    got = rewritten(model, batch, _writing(sampling_temperature=3.0), seed=1)
    assert model.training
    assert torch.equal(before, torch.get_rng_state())
    for row in range(len(batch["labels"])):
        old = batch["input_ids"][row][: int((batch["labels"][row] != -100).int().argmax())]
        length = int(got["attention_mask"][row].sum())
        labels, ids = got["labels"][row], got["input_ids"][row]
        assert torch.equal(ids[: len(old)], old)
        assert (labels[: len(old)] == -100).all()
        assert torch.equal(labels[len(old) : length], ids[len(old) : length])
        assert 1 <= length - len(old) <= 6
        assert (labels[length:] == -100).all()
        assert END not in ids[len(old) : length - 1]
    again = rewritten(model, batch, _writing(sampling_temperature=3.0), seed=1)
    other = rewritten(model, batch, _writing(sampling_temperature=3.0), seed=2)
    assert torch.equal(got["input_ids"], again["input_ids"])
    assert not (
        got["input_ids"].shape == other["input_ids"].shape
        and torch.equal(got["input_ids"], other["input_ids"])
    )


def test_no_row_is_longer_than_the_student_reads() -> None:
    batch = _batch()
    longest = int(batch["attention_mask"].sum(-1).max())
    got = rewritten(_loud(), batch, _writing(ends=(), longest=longest, max_new_tokens=50), seed=1)
    assert got["input_ids"].shape[1] <= longest


def test_a_row_that_fills_up_a_batch_gets_no_targets() -> None:
    batch = _batch(3)
    batch["labels"][1] = -100
    got = rewritten(_loud(), {**batch, "domain": torch.tensor([4, 5, 6])}, _writing(), seed=1)
    assert (got["labels"][1] == -100).all()
    assert (got["labels"][[0, 2]] != -100).any(-1).all()
    assert got["domain"].tolist() == [4, 5, 6]


def test_draws_follow_the_models_distribution() -> None:
    """Two tokens at a time, cached and left-padded, against the exact joint distribution."""
    model, draws = _loud().double(), 3000
    prompts = [torch.tensor([5, 9, 11]), torch.tensor([7])]
    writing = _writing(ends=(), max_new_tokens=2, sampling_temperature=1.4)
    asked = [prompts[i % 2] for i in range(2 * draws)]
    out = sample(model, asked, writing, seed=11)
    for which, prompt in enumerate(prompts):
        pairs = Counter(tuple(new.tolist()) for new in out[which::2])
        with torch.no_grad():
            first = (model(prompt[None]).logits[0, -1] / 1.4).softmax(-1)
            top = first.topk(8).indices.tolist()
            follow = torch.stack([torch.cat([prompt, torch.tensor([t])]) for t in top])
            second = (model(follow).logits[:, -1] / 1.4).softmax(-1)
        wanted: dict[tuple[int, int], float] = {}
        for (i, a), b in itertools.product(enumerate(top), range(second.shape[-1])):
            wanted[a, b] = float(first[a] * second[i, b])
        large = {pair: p for pair, p in wanted.items() if p * draws >= 5}
        seen = np.array([pairs[pair] for pair in large] + [0.0])
        seen[-1] = draws - seen.sum()
        expected = np.array([*(p * draws for p in large.values()), 0.0])
        expected[-1] = draws - expected.sum()
        assert len(large) > 3
        assert stats.chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.3, "min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"min_p": 0.1},
        {"suppress_tokens": [*range(200)], "no_repeat_ngram_size": 1, "typical_p": 0.5},
    ],
)
def test_a_models_own_generation_settings_do_not_bend_what_is_drawn(
    own: dict[str, Any], adapted: bool
) -> None:
    """Total variation between n draws and softmax: its mean is at most sum sqrt(q (1 - q) / n) / 2
    (Jensen), and one draw moves it by at most 1 / n, so that it exceeds its mean by
    sqrt(ln(1e9) / 2 n) once in 1e9 (McDiarmid)."""
    model, draws = _loud(), 5000
    before = GenerationConfig(**own, eos_token_id=END, pad_token_id=PAD)
    model.generation_config = before
    inner = model
    if adapted:
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    prompt = torch.tensor([5, 9, 11])
    with torch.no_grad():
        q = model(prompt[None]).logits[0, -1].double().softmax(-1)
    out = sample(model, [prompt] * draws, _writing(ends=(), max_new_tokens=1), seed=3)
    seen = torch.bincount(torch.stack(out)[:, 0], minlength=len(q)) / draws
    mean = (q * (1 - q) / draws).sqrt().sum() / 2
    over = math.sqrt(math.log(1e9) / (2 * draws))
    assert (seen - q).abs().sum() / 2 <= mean + over
    assert inner.generation_config is before
    assert model.generation_config is before


def test_only_ids_that_both_models_and_the_tokenizer_have_are_written() -> None:
    """Otherwise as softmax over those ids: the bound is the one above."""
    torch.manual_seed(0)
    model, draws, limit = _loud(), 5000, len(TOKENIZER)
    model.resize_token_embeddings(limit + 40, mean_resizing=False)
    torch.nn.init.normal_(model.get_input_embeddings().weight[limit:], std=3.0)
    prompt = torch.tensor([5, 9, 11])
    with torch.no_grad():
        logits = model(prompt[None]).logits[0, -1].double()
    assert logits.softmax(-1)[limit:].sum() > 0.2
    q = logits[:limit].softmax(-1)
    writing = _writing(ends=(), max_new_tokens=1)._replace(ids=limit)
    drawn = torch.stack(sample(model, [prompt] * draws, writing, seed=3))[:, 0]
    assert drawn.max() < limit
    seen = torch.bincount(drawn, minlength=limit) / draws
    mean = (q * (1 - q) / draws).sqrt().sum() / 2
    assert (seen - q).abs().sum() / 2 <= mean + math.sqrt(math.log(1e9) / (2 * draws))


@pytest.mark.parametrize("wide", ["student", "teacher"])
@pytest.mark.parametrize("writer", ["student", "teacher"])
def test_a_padded_head_writes_what_the_other_model_reads(
    wide: str, writer: str, tmp_path: Path
) -> None:
    for name in ("student", "teacher"):
        model = _loud(2)
        if name == wide:
            model.resize_token_embeddings(len(TOKENIZER) + 600, mean_resizing=False)
            rows = model.get_input_embeddings().weight
            torch.nn.init.normal_(rows[len(TOKENIZER) :], std=3.0, generator=torch.manual_seed(1))
        model.save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    policy = {"student_fraction": 0.0, "teacher_fraction": 0.0, "max_new_tokens": 6}
    recipe = text_recipe(tmp_path / "teacher", on_policy={**policy, f"{writer}_fraction": 1.0})
    section = {**recipe.student.model_dump(by_alias=True), "from": f"hf:{tmp_path / 'student'}"}
    recipe = Recipe.model_validate(
        {**recipe.model_dump(mode="json", by_alias=True), "student": section}
    )
    student = build_student(recipe.student, recipe.task, section["from"], [], 0)
    rows = encode_chats(review_examples(4), TOKENIZER, 100).rows
    teacher, cpu = f"hf:{tmp_path / 'teacher'}", torch.device("cpu")
    reading = Reading(recipe.train.alpha, teacher, cpu, False, Learned(rows, ()))
    objective = build_objective(recipe, student, reading)
    written = objective.prepare(student.model, Collator(PAD)(rows.items), StepAt(0))
    assert WRITERS[int(written[WRITTEN_BY])] == writer
    assert written["input_ids"].max() < len(TOKENIZER)
    loss = objective.loss(student.model, written, Counts(*count(written).unbind()))
    loss.backward()
    assert loss.isfinite()


def test_a_short_prompt_has_the_room_of_the_longest_beside_it() -> None:
    prompts = [torch.tensor([5] * 20), torch.tensor([5, 9])]
    writing = _writing(ends=(), longest=24, max_new_tokens=50)
    assert [len(new) for new in sample(_loud(), prompts, writing, seed=1)] == [4, 4]
    assert [len(new) for new in sample(_loud(), prompts[1:], writing, seed=1)] == [22]


def test_a_student_batch_is_scored_by_the_teacher_alone() -> None:
    student, teacher, batch = _loud(2), _loud(1), _batch()
    policy = _policy(student, teacher, student_fraction=1.0)
    step = StepAt(0)
    written = policy.prepare(student, batch, step)
    assert WRITERS[int(written[WRITTEN_BY])] == "student"
    counts = Counts(*count(written).unbind())
    assert int(counts.targets) == int((written["labels"] != -100).sum())
    got = policy.loss(student, written, counts)
    total = 0.0
    for row in range(len(written["labels"])):
        length = int(written["attention_mask"][row].sum())
        ids = written["input_ids"][row][None, :length]
        with torch.no_grad():
            q = (student(ids).logits[0] / 2.0).double().log_softmax(-1)
            p = (teacher(ids).logits[0] / 2.0).double().log_softmax(-1)
        for at in range(1, length):
            if written["labels"][row, at] != -100:
                total += float((p[at - 1].exp() * (p[at - 1] - q[at - 1])).sum())
    assert got.item() == pytest.approx(4.0 * total / int(counts.targets), rel=1e-5)


def test_data_and_teacher_batches_keep_their_hard_targets() -> None:
    student, teacher, batch = _loud(2), _loud(1), _batch()
    counts = Counts(*count(batch).unbind())
    data = _policy(student, teacher, student_fraction=1e-9)
    kept = data.prepare(student, batch, StepAt(0))
    assert kept is batch
    assert data.loss(student, batch, counts) == data.given.loss(student, batch, counts)
    afresh = _policy(student, teacher, student_fraction=0.0, teacher_fraction=1.0)
    written = afresh.prepare(student, batch, StepAt(0))
    counts = Counts(*count(written).unbind())
    assert WRITERS[int(written[WRITTEN_BY])] == "teacher"
    assert afresh.loss(student, written, counts) == afresh.given.loss(student, written, counts)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_write_and_learn() -> None:
    student, teacher, batch = _loud(2), _loud(1), _batch()
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(student, config)
    policy = _policy(adapted, teacher, student_fraction=1.0)
    written = policy.prepare(adapted, batch, StepAt(0))
    policy.loss(adapted, written, Counts(*count(written).unbind())).backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert gradients
    assert all(g is not None for g in gradients.values())
    assert any(g.abs().sum() > 0 for g in gradients.values() if g is not None)


def test_a_student_learns_from_its_own_samples() -> None:
    student, teacher, batch = _loud(2), _loud(1), _batch(8)
    policy = _policy(student, teacher, student_fraction=1.0, max_new_tokens=4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    def divergence() -> float:
        """On fresh samples of the student's own."""
        with torch.no_grad():
            written = policy.prepare(student, batch, StepAt(10_000))
            sums = policy.held_out(student, written)
        return float(sums.divergence / sums.items)

    before = divergence()
    for step in range(40):
        written = policy.prepare(student, batch, StepAt(step))
        policy.loss(student, written, Counts(*count(written).unbind())).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert divergence() < 0.5 * before


@pytest.mark.full
def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _loud(4).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    write_jsonl(tmp_path / "data/train.jsonl", [*review_examples(12)])
    write_jsonl(tmp_path / "data/held_out.jsonl", [*review_examples(4, 12)])
    recipe = text_recipe(folder, on_policy={"max_new_tokens": 5}, micro_batch_size=2)
    (tmp_path / "whole").mkdir()
    run_train(recipe, tmp_path / "data", None, tmp_path / "whole", Silent())
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(by_alias=True))
    killed = [sys.executable, str(KILLED_RUN), "train", "recipe.json", "data", "cut", "step:4"]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums in another order end otherwise
    done = subprocess.run(
        killed, cwd=tmp_path, capture_output=True, text=True, check=False, env=one
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_train(recipe, tmp_path / "data", None, tmp_path / "cut", Silent())
    assert hash_folder(tmp_path / "cut") == hash_folder(tmp_path / "whole")
    plain = text_recipe(folder, micro_batch_size=2)
    (tmp_path / "plain").mkdir()
    run_train(plain, tmp_path / "data", None, tmp_path / "plain", Silent())
    losses = [json.loads((tmp_path / n / "history.json").read_text()) for n in ("whole", "plain")]
    assert losses[0] != losses[1]


def test_a_server_that_reads_along_scores_what_a_student_writes(tmp_path: Path) -> None:
    """The plan takes a teacher that is asked over an API where a server reads along."""
    recipe = text_recipe(tmp_path, on_policy={}).model_dump(mode="json", by_alias=True)
    server = {"model": "openai-compatible:m", "base_url": "http://127.0.0.1:1/v1"}
    recipe["teacher"] = {"model": "openai:gpt-4.1"}
    recipe["train"]["teachers"] = {"members": [server]}
    check_recipe(Recipe.model_validate(recipe))
    recipe["train"]["on_policy"] = {"teacher_fraction": 0.5}
    with pytest.raises(RecipeError, match="a server only reads along"):
        check_recipe(Recipe.model_validate(recipe))


def test_impossible_recipes_are_refused_before_anything_is_paid(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.on_policy.*alpha: 0"):
        check_recipe(text_recipe(tmp_path, on_policy={}, alpha=0))
    label = text_recipe(tmp_path, on_policy={}).model_dump(mode="json", by_alias=True)
    label["task"] = {"kind": "classification", "labels": ["a", "b"]}
    label["student"]["head"] = "label"
    with pytest.raises(RecipeError, match=r"train\.on_policy.*writes no text"):
        check_recipe(Recipe.model_validate(label))
    with pytest.raises(ValidationError, match="not sum to more than 1"):
        OnPolicySection(student_fraction=0.8, teacher_fraction=0.4)
    with pytest.raises(ValidationError, match="leave on_policy out"):
        OnPolicySection(student_fraction=0.0)
