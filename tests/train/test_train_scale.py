"""Packing, checkpointing and several processes: the same training, whatever is laid out how."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stillhouse.core.errors import RecipeError, StillhouseError, UserError
from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_distributed import DistributedSection
from stillhouse.core.records import Example, Message
from stillhouse.train.batches import Collator, LengthGroupedSampler, Rows, encode_chats
from stillhouse.train.launch import arguments
from stillhouse.train.objectives import text_objective
from stillhouse.train.outputs import CausalReader, Counts, count
from stillhouse.train.packing import PackingCollator, check_packing, packed_rows
from stillhouse.train.planning import check_recipe
from stillhouse.train.schedule import plan_schedule
from stillhouse.train.stage import run_train
from stillhouse.train.teachers import LiveTeacher
from tiny_models import byte_bpe, loud_llama, review_examples, text_recipe, write_jsonl

TOKENIZER = byte_bpe()
PAD = int(TOKENIZER.pad_token_id)


def _examples(count: int, offset: int = 0) -> list[Example]:
    """Every third has a longer answer than the others have texts."""
    return [
        e.model_copy(
            update={"messages": (e.messages[0], Message(role="assistant", content="so dull " * 20))}
        )
        if i % 3 == 0
        else e
        for i, e in enumerate(review_examples(count, offset))
    ]


def _rows(n: int = 9) -> Rows:
    return encode_chats(_examples(n), TOKENIZER, 200).rows


def _loud(layers: int) -> Any:
    return loud_llama(TOKENIZER, layers, 0.5)


# Packing


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_rows_are_filled_and_nothing_is_lost(lengths: list[int]) -> None:
    rows = packed_rows(lengths, 40)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= 40
    assert sum(u <= 20 for u in used) <= 1, "two rows at most half full would be one"


def test_packed_batches_train_as_unpacked_ones_do() -> None:
    model, rows = _loud(2).double(), _rows()
    teacher = LiveTeacher(_loud(1).double(), CausalReader())
    found = []
    for collate in (Collator(PAD), PackingCollator(PAD)):
        batch = collate(rows.items)
        counts = Counts(*count(batch).unbind())
        model.zero_grad()
        loss = text_objective(0.6, 2.0, teacher).loss(model, batch, counts)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients, counts, batch["input_ids"].shape))
    plain, packed = found
    assert packed[3][0] < plain[3][0]
    assert packed[0] == pytest.approx(plain[0], rel=1e-9)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(packed[1][name], gradient, rtol=1e-6, atol=1e-12)
    assert [int(c) for c in packed[2]] == [int(c) for c in plain[2]]


def test_no_packed_example_sees_another() -> None:
    model, rows = _loud(2), _rows(4)
    check_packing(model, rows, PAD)
    batch = PackingCollator(PAD)(rows.items)
    assert any(int((row == 0).sum()) > 1 for row in batch["position_ids"])

    class Leaking(torch.nn.Module):
        """Adds the mean over the row to each place."""

        device = torch.device("cpu")

        def forward(
            self, input_ids: torch.Tensor, position_ids: Any = None, use_cache: bool = False
        ) -> Any:
            out = model(input_ids=input_ids, position_ids=position_ids)
            out.logits = out.logits + out.logits.mean(1, keepdim=True)
            return out

    with pytest.raises(UserError, match=r"train\.packing.*see one another"):
        check_packing(Leaking(), rows, PAD)


# Recipes


def _recipe(folder: Path, **train: Any) -> Recipe:
    return text_recipe(folder, **{"learning_rate": 5e-3, "patience": None, **train})


@pytest.fixture(scope="module")
def given_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scale")
    _loud(4).save_pretrained(root / "model")
    TOKENIZER.save_pretrained(root / "model")
    # 13 = 3 whole batches and one example: the last is filled up where processes are many
    write_jsonl(root / "data/train.jsonl", [*_examples(13)])
    write_jsonl(root / "data/held_out.jsonl", [*_examples(5, 13)])
    return root


def _run(given_: Path, work: Path, **train: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    work.mkdir(parents=True, exist_ok=True)
    run_train(_recipe(given_ / "model", **train), given_ / "data", None, work, Silent())
    history = json.loads((work / "history.json").read_text())
    facts = json.loads((work / "train.json").read_text())
    return history, facts


def _same(one: list[dict[str, Any]], two: list[dict[str, Any]], rel: float = 1e-5) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a["step"] == b["step"]
        for name in ("loss", "held_out_divergence", "held_out_cross_entropy"):
            assert (a[name] is None) == (b[name] is None)
            if a[name] is not None:
                assert a[name] == pytest.approx(b[name], rel=rel, abs=1e-7)


@pytest.fixture(scope="module")
def alone(given_: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return _run(given_, given_ / "alone", micro_batch_size=2)


def test_packing_and_checkpointing_change_no_loss(given_: Path, alone: Any, tmp_path: Path) -> None:
    packed, facts = _run(given_, tmp_path / "p", micro_batch_size=2, packing=True)
    _same(packed, alone[0])
    assert facts["padding_share"] <= alone[1]["padding_share"] < 0.5
    kept, _ = _run(given_, tmp_path / "c", micro_batch_size=2, gradient_checkpointing=True)
    _same(kept, alone[0])


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.full)])
def test_two_processes_train_as_one_does(
    given_: Path, alone: Any, tmp_path: Path, strategy: str
) -> None:
    spread = {"processes": 2, "strategy": strategy}
    history, facts = _run(given_, tmp_path / "two", micro_batch_size=2, distributed=spread)
    assert facts["processes"] == 2
    _same(history, alone[0])
    mine = load_file(tmp_path / "two/student/model.safetensors")
    for name, weight in load_file(given_ / "alone/student/model.safetensors").items():
        torch.testing.assert_close(mine[name], weight, rtol=1e-3, atol=1e-5)
    assert not (tmp_path / "two/job.json").exists()
    assert not (tmp_path / "two/workers.log").exists()


@pytest.mark.parametrize(
    ("strategy", "then"),
    [pytest.param(s, 1, marks=pytest.mark.full) for s in ("fsdp2", "ddp")],
)
def test_a_run_goes_on_with_another_number_of_processes(
    given_: Path, alone: Any, tmp_path: Path, strategy: str, then: int
) -> None:
    """Two processes, all killed after a checkpoint; then one."""
    work = tmp_path / "cut"
    work.mkdir()
    spread = {"processes": 2, "strategy": strategy}
    recipe = _recipe(given_ / "model", micro_batch_size=2, distributed=spread)
    write_json(tmp_path / "recipe.json", recipe.model_dump(mode="json", by_alias=True))
    code = (
        "import sys; from pathlib import Path; from stillhouse.core.recipe import Recipe\n"
        "from stillhouse.core.progress import Silent\n"
        "from stillhouse.train.stage import run_train\n"
        "recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "run_train(recipe, Path(sys.argv[2]), None, Path(sys.argv[3]), Silent())\n"
    )
    where = [str(tmp_path / "recipe.json"), str(given_ / "data"), str(work)]
    process = subprocess.Popen([sys.executable, "-c", code, *where])
    deadline = time.monotonic() + 120
    while not list(work.glob("checkpoints/*/trainer_state.json")):
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait_for_workers(work)
    done = (work / "train.json").exists()
    train = {"processes": then, "strategy": strategy}
    history, facts = _run(given_, work, micro_batch_size=2, distributed=train)
    assert done or facts["processes"] == then
    _same(history, alone[0], rel=1e-4)


def _wait_for_workers(work: Path) -> None:
    """Until no process has the folder in its command line: they end with the one that began."""
    deadline = time.monotonic() + 30
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes()
            except OSError:
                continue
            if str(work).encode() in text and int(path.parent.name) != os.getpid():
                found.append(text)
        if not found:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.full
def test_a_workers_error_is_the_stages(given_: Path, tmp_path: Path) -> None:
    spread = {"processes": 2}
    with pytest.raises(RecipeError, match=r"train\.batch_size: cannot be dealt out to 2 proc"):
        _run(given_, tmp_path / "w", micro_batch_size=4, distributed=spread)
    shutil.copytree(given_ / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()
    recipe = _recipe(tmp_path / "broken", micro_batch_size=2, distributed=spread)
    with pytest.raises(UserError, match="broken"):
        run_train(recipe, given_ / "data", None, tmp_path / "b", Silent())


@pytest.mark.full
def test_training_that_goes_off_in_a_worker_is_said(given_: Path, tmp_path: Path) -> None:
    spread = {"processes": 2}
    with pytest.raises(StillhouseError, match="training went off"):
        _run(given_, tmp_path / "o", micro_batch_size=2, learning_rate=1e30, distributed=spread)


def test_every_process_count_deals_out_the_same_steps() -> None:
    lengths = [3, 9, 4, 4, 8, 1, 2, 7, 7, 5, 6, 2, 3]
    plain = list(LengthGroupedSampler(lengths, 4, 1))
    filled = list(LengthGroupedSampler(lengths, 4, 1, multiple=4))
    assert len(filled) == 16 == len(LengthGroupedSampler(lengths, 4, 1, multiple=4))
    assert [i for i in filled if i >= 0] == plain
    assert filled[13:] == [-1 - plain[12]] * 3
    for processes in (1, 2, 4):
        schedule = plan_schedule(13, 4, 1, 2.0, 2, processes=processes)
        assert (schedule.steps, schedule.batch) == (8, 4)
    batch = Collator(PAD)([_rows(3)[0], _rows(3)[-2]])
    real = Collator(PAD)([_rows(3)[0]])
    assert count(batch).tolist() == count(real).tolist()


def test_commands_of_one_and_of_several_machines() -> None:
    one = arguments(DistributedSection(processes=4), Path("/run/train"))
    assert "--standalone" in one
    assert "--nproc-per-node=4" in one
    several = DistributedSection(processes=8, nodes=2, rendezvous="box1:29400")
    many = arguments(several, Path("/run/train"))
    assert {"--nnodes=2", "--rdzv-endpoint=box1:29400", "--rdzv-backend=c10d"} <= set(many)


def test_what_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    spread = {"processes": 2, "strategy": "fsdp2"}
    with pytest.raises(RecipeError, match=r"strategy: adapters are small"):
        check_recipe(_recipe(tmp_path, distributed=spread, lora={}))
    with pytest.raises(RecipeError, match=r"strategy: train\.terms are not"):
        check_recipe(_recipe(tmp_path, distributed=spread, terms=[{"kind": "hidden"}]))
    nodes = {"processes": 2, "nodes": 2, "rendezvous": "h:1"}
    with pytest.raises(RecipeError, match=r"hard_label_twin.*one student"):
        check_recipe(_recipe(tmp_path, distributed=nodes, hard_label_twin=True))


def test_packing_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.packing.*on_policy"):
        check_recipe(_recipe(tmp_path, packing=True, on_policy={}))
    label = _recipe(tmp_path, packing=True, alpha=0).model_dump(mode="json", by_alias=True)
    label["task"] = {"kind": "classification", "labels": ["a", "b"]}
    label["student"]["head"] = "label"
    with pytest.raises(RecipeError, match=r"train\.packing.*one text a row"):
        check_recipe(Recipe.model_validate(label))
    check_recipe(_recipe(tmp_path, packing=True))
