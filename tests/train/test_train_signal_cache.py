"""Capture and training from the cache: exactness by format, refusals, kills, ranks."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.core.errors import RunFolderError, StillhouseError, UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_signals import CaptureSection
from stillhouse.core.records import Example
from stillhouse.core.runfolder import hash_folder
from stillhouse.models.divergence import forward_kl
from stillhouse.models.loading import load_causal_lm
from stillhouse.models.signals import SampledSignal, SparseSignal
from stillhouse.train.batches import SIGNAL_ROWS, Collator, Encoded, encode_chats
from stillhouse.train.cached_teacher import CachedSignals, CachedTeacher, with_head
from stillhouse.train.capture import run_capture
from stillhouse.train.history import Report
from stillhouse.train.objectives import TermsObjective, Weighted, text_objective
from stillhouse.train.outputs import CausalReader, Counts, Needs
from stillhouse.train.signal_binding import Learnt, bind_signals
from stillhouse.train.stage import run_train
from stillhouse.train.students import Student, build_student
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response
from stillhouse.train.verify_signals import verify_signals
from tiny_models import TEXTS, byte_bpe, review_examples, tiny_llama, write_jsonl

KILLED = Path(__file__).with_name("killed_capture.py")
Captured = Callable[..., tuple[Recipe, Path]]


def recipe_for(teacher: Path, student: Path | None = None, **more: Any) -> Recipe:
    train = {"batch_size": 8, "learning_rate": 5e-3, "epochs": 1, "evals": 2, "signals": "cache"}
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "generation"},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{teacher}", "batch_size": 5},
            "student": {"head": "text", "from": f"hf:{student or teacher}", "max_tokens": 64},
            "train": {**train, **more.pop("train", {})},
            **more,
        }
    )


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the teacher's tokenizer."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    tiny_llama(tokenizer, 2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def capture(
    lm_folder: Path,
    student_folder: Path,
    dataset_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Captured:
    """Captures once for each section."""
    made: dict[str, tuple[Recipe, Path]] = {}

    def get(**section: Any) -> tuple[Recipe, Path]:
        train = section.pop("train", {})
        name = json.dumps([section, train], sort_keys=True)
        if name not in made:
            recipe = recipe_for(lm_folder, student_folder, capture=section, train=train)
            work = tmp_path_factory.mktemp("capture")
            run_capture(recipe, dataset_folder, work / "ask", work, Silent())
            made[name] = (recipe, work)
        return made[name]

    return get


class Opened:
    """A cache bound to its dataset, with the live teacher beside it."""

    def __init__(self, recipe: Recipe, folder: Path, dataset: Path) -> None:
        self.student: Student = build_student(
            recipe.student, recipe.task, recipe.student.source, TEXTS, 0
        )
        self.encoded: list[Encoded] = []
        sets = []
        for name in ("train", "held_out"):
            examples = list(read_records(dataset / f"{name}.jsonl", Example))
            self.encoded.append(encode_chats(examples, self.student.tokenizer, 64))
            sets.append(Learnt(examples, self.encoded[-1]))
        teacher = recipe.teacher.model
        bound = bind_signals(recipe, self.student, teacher, folder, (sets[0], sets[1]))
        self.signals: CachedSignals = with_head(bound.signals, teacher, "cpu")
        self.train, self.held_out = bound.train.rows, bound.held_out.rows
        self.teacher = load_causal_lm(teacher).model
        self.collate = Collator(int(self.student.tokenizer.pad_token_id))

    def batch(self, *numbers: int, held_out: bool = False) -> dict[str, Tensor]:
        rows = self.held_out if held_out else self.train
        return self.collate([rows[number] for number in numbers])

    def cached(self, temperature: float = 1.0) -> TermsObjective:
        terms = (Weighted(Response(0.7, temperature)),)
        return TermsObjective(CausalReader(), terms, CachedTeacher(self.signals))

    def live(self, temperature: float = 1.0) -> TermsObjective:
        return text_objective(0.7, temperature, LiveTeacher(self.teacher, CausalReader()))


@pytest.mark.parametrize(
    ("section", "temperature"),
    [
        ({"format": "hidden"}, 2.0),
        ({"format": "top_k", "k": 10_000, "dtype": "float32"}, 2.0),
        ({"format": "dense", "dtype": "float32"}, 2.0),
    ],
)
def test_exact_formats_give_the_live_loss_and_gradient(
    capture: Captured, dataset_folder: Path, section: dict[str, Any], temperature: float
) -> None:
    opened = Opened(*capture(**section), dataset_folder)
    batch = opened.batch(9, 2, 40, 3, 4)
    losses = []
    for objective in (opened.cached(temperature), opened.live(temperature)):
        opened.student.model.zero_grad()
        loss = objective.loss(opened.student.model, batch, Counts(7, 1, 1))
        loss.backward()
        weight = opened.student.model.get_input_embeddings().weight
        losses.append((loss.detach(), weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for number in (0, 1):
        batch = opened.batch(number, 5, held_out=True)
        got = opened.cached().held_out(opened.student.model, batch)
        wanted = opened.live().held_out(opened.student.model, batch)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_top_k_keeps_the_likeliest_and_their_tail(capture: Captured, dataset_folder: Path) -> None:
    opened = Opened(*capture(format="top_k", k=5), dataset_folder)
    batch = opened.batch(7, 1)
    stored = CachedTeacher(opened.signals).view(batch, Needs(logits=True)).signal
    assert isinstance(stored, SparseSignal)
    logits = CausalReader().read(opened.teacher, batch, Needs(logits=True)).logits
    assert logits is not None
    top = logits.log_softmax(-1).topk(5)
    assert torch.equal(stored.token_ids.sort().values, top.indices.sort().values)
    torch.testing.assert_close(stored.log_probs, top.values.detach(), atol=4e-3, rtol=0)
    torch.testing.assert_close(
        stored.log_probs.exp().sum(-1) + stored.tail_log_mass.exp(),
        torch.ones(len(logits)),
        atol=3e-3,
        rtol=0,
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_targets_hold_the_belief_in_the_mean(
    capture: Captured, dataset_folder: Path, temperature: float
) -> None:
    """All rows of one set together: n rows of S systematic draws, |mean - p| < 5 deviations of
    the mean, each at most sqrt(p (1 - p) / (n S))."""
    train = {"distillation_temperature": temperature}
    opened = Opened(*capture(format="sampled", samples=12, train=train), dataset_folder)
    batch = opened.batch(*range(60))
    signal_ = CachedTeacher(opened.signals).view(batch, Needs(logits=True)).signal
    assert isinstance(signal_, SampledSignal)
    assert signal_.distillation_temperature == temperature
    torch.testing.assert_close(signal_.weights.sum(-1), torch.ones(signal_.positions))
    with torch.no_grad():
        logits = CausalReader().read(opened.teacher, batch, Needs(logits=True)).logits
    assert logits is not None
    p = (logits / temperature).softmax(-1)
    drawn = torch.zeros_like(p).scatter_add_(-1, signal_.token_ids, signal_.weights)
    bound = 5 * (p * (1 - p) / 12).sum(0).sqrt() / len(p) + 1e-6
    assert ((drawn - p).mean(0).abs() <= bound).all()


def test_the_held_out_divergence_of_a_sample_is_honest(
    capture: Captured, dataset_folder: Path
) -> None:
    """Cross-entropy plus stored information against the dense divergence, within five standard
    errors of its rows, though trained at T = 2."""
    opened = Opened(
        *capture(format="sampled", train={"distillation_temperature": 2.0}), dataset_folder
    )
    batch = opened.batch(*range(16), held_out=True)
    model = opened.student.model.eval()
    with torch.no_grad():
        got = opened.cached(2.0).held_out(model, batch)
        wanted = opened.live(2.0).held_out(model, batch)
        p = CausalReader().read(opened.teacher, batch, Needs(logits=True)).logits.log_softmax(-1)
        q = CausalReader().read(model, batch, Needs(logits=True)).logits.log_softmax(-1)
    ratio = p - q
    spread = (p.exp() * (ratio - (p.exp() * ratio).sum(-1, keepdim=True)) ** 2).sum(-1)
    error = (spread / 64).sum().sqrt() + 1e-3 * len(p)  # float16 of the stored information
    assert abs(float(got.divergence - wanted.divergence)) < 5 * float(error)
    assert float(wanted.divergence) > 0
    torch.testing.assert_close(got[1:], wanted[1:])


def test_a_class_cache_is_the_examples_beliefs(
    encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "traffic": {"path": "x"},
            "teacher": {"model": "embedded"},
            "student": {"head": "label", "from": f"hf:{encoder_folder}", "max_tokens": 48},
            "train": {"batch_size": 8, "epochs": 1, "evals": 2, "signals": "cache"},
        }
    )
    cache = tmp_path / "capture"
    run_capture(recipe, dataset_folder, tmp_path, cache, Silent())
    results = []
    for name, folder in (("cache", cache), ("live", None)):
        work = tmp_path / name
        run_train(recipe, dataset_folder, None, work, Silent(), signals=folder)
        results.append(json.loads((work / "history.json").read_text()))
    for cached, live in zip(*results, strict=True):
        assert cached["held_out_divergence"] == pytest.approx(
            live["held_out_divergence"], abs=1e-6, nan_ok=True
        ) or (cached["held_out_divergence"] is live["held_out_divergence"] is None)
    other = recipe.model_copy(
        update={"task": recipe.task.model_copy(update={"labels": ("negative", "positive")})}
    )
    with pytest.raises(UserError, match="with other tokens"):
        run_train(other, dataset_folder, None, tmp_path / "o", Silent(), signals=cache)


def test_rows_do_not_depend_on_the_number_of_ranks(capture: Captured, dataset_folder: Path) -> None:
    """A batch split over ranks reads, rank by rank, the rows it reads whole; and a rank reads its
    own rows alone."""
    opened = Opened(*capture(format="sampled"), dataset_folder)
    teacher = CachedTeacher(opened.signals)
    numbers = [11, 3, 58, 4, 5, 30, 0, 17]

    def rows(*chosen: int) -> list[tuple[tuple[int, float], ...]]:
        seen = teacher.view(opened.batch(*chosen), Needs(logits=True)).signal
        assert isinstance(seen, SampledSignal)
        pairs = zip(seen.token_ids.tolist(), seen.weights.tolist(), strict=True)
        return [tuple((i, w) for i, w in zip(*row, strict=True) if w) for row in pairs]

    whole = rows(*numbers)
    for world in (2, 4):
        share = len(numbers) // world
        parts = [numbers[rank * share : (rank + 1) * share] for rank in range(world)]
        assert [row for part in parts for row in rows(*part)] == whole


def test_only_the_rows_of_a_batch_are_touched(
    capture: Captured, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(*capture(format="sampled"), dataset_folder)
    cache = opened.signals.train
    touched: list[int] = []
    slices = cache._slice

    def watched(shard: int, start: int, end: int) -> dict[str, Tensor]:
        found = slices(shard, start, end)
        touched.append(len(found["in_row"]))
        return found

    monkeypatch.setattr(cache, "_slice", watched)
    batch = opened.batch(3, 4, 20)
    CachedTeacher(opened.signals).view(batch, Needs(logits=True))
    assert sum(touched) == len(CausalReader().targets(batch))
    assert len(touched) == 2  # neighbours in one piece


def test_draws_do_not_depend_on_batches_or_shards(
    lm_folder: Path, dataset_folder: Path, capture: Captured, tmp_path: Path
) -> None:
    recipe, one = capture(format="sampled")
    small = recipe.model_copy(
        update={
            "capture": recipe.capture.model_copy(update={"shard_mb": 0.001}),
            "teacher": recipe.teacher.model_copy(update={"batch_size": 2}),
        }
    )
    run_capture(small, dataset_folder, tmp_path, tmp_path, Silent())
    first, second = Opened(recipe, one, dataset_folder), Opened(small, tmp_path, dataset_folder)
    assert len(second.signals.train.manifest.shards) > 5
    batch = first.batch(*range(60))
    seen = [
        CachedTeacher(o.signals).view(batch, Needs(logits=True)).signal for o in (first, second)
    ]
    same = (seen[0].token_ids == seen[1].token_ids).all(-1).float().mean()
    assert same > 0.97  # the teacher's last bits depend on the batch


def test_training_from_the_cache_loads_no_teacher_and_resumes(
    capture: Captured, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache = capture(format="hidden")
    work = tmp_path / "whole"
    with monkeypatch.context() as patched:
        patched.setattr("stillhouse.train.reading.load_causal_lm", None)
        run_train(recipe, dataset_folder, None, work, Silent(), signals=cache)
    assert json.loads((work / "train.json").read_text())["signals"] == "cache"
    # Answers to training examples are looked at without a stored belief.
    said = json.loads((work / "convergence.json").read_text())
    (data,) = (one for one in said["findings"] if one["name"] == "too_little_data")
    assert "was not looked at" not in data["seen"]
    live = recipe.model_copy(update={"train": recipe.train.model_copy(update={"signals": "live"})})
    run_train(live, dataset_folder, None, tmp_path / "live", Silent())
    curves = [json.loads((f / "history.json").read_text()) for f in (work, tmp_path / "live")]
    for one, other in zip(*curves, strict=True):
        for name, value in one.items():
            assert value is None or value == pytest.approx(other[name], rel=1e-4, abs=1e-5)


def kill(recipe: Recipe, dataset: Path, work: Path, death: str) -> None:
    path = work.parent / "recipe.json"
    path.write_text(recipe.model_dump_json(by_alias=True))
    done = subprocess.run(
        [sys.executable, str(KILLED), str(path), str(dataset), str(work), death],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.full
def test_a_killed_capture_keeps_its_shards_and_ends_with_the_same_bytes(
    capture: Captured, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe, _ = capture(format="sampled")
    small = recipe.model_copy(
        update={"capture": recipe.capture.model_copy(update={"shard_mb": 0.002})}
    )
    run_capture(small, dataset_folder, tmp_path, tmp_path / "whole", Silent())
    work = tmp_path / "killed"
    kill(small, dataset_folder, work, "facts:3")  # shard 3 is written, its facts are not
    kept = {path: path.stat().st_mtime_ns for path in (work / "train").glob("shard-0000[01].*")}
    assert len(kept) == 4
    (work / "train" / "shard-00001.safetensors").write_bytes(b"torn")
    assert not (work / "train" / "signals.json").exists()
    run_capture(small, dataset_folder, tmp_path, work, Silent())
    assert hash_folder(work) == hash_folder(tmp_path / "whole")
    first = work / "train" / "shard-00000.safetensors"
    assert first.stat().st_mtime_ns == kept[first]


def fails(recipe: Recipe, dataset: Path, cache: Path, tmp_path: Path) -> str:
    with pytest.raises(StillhouseError) as caught:
        run_train(recipe, dataset, None, tmp_path / "never", Silent(), signals=cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "never" / "checkpoints").exists()
    return str(caught.value)


def test_a_cache_of_something_else_is_refused(
    capture: Captured,
    lm_folder: Path,
    student_folder: Path,
    dataset_folder: Path,
    tmp_path: Path,
) -> None:
    recipe, cache = capture(format="sampled")

    other = tmp_path / "other"
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(other)
    torch.manual_seed(9)
    tiny_llama(tokenizer, 3).save_pretrained(other)
    told = fails(recipe_for(other, student_folder), dataset_folder, cache, tmp_path)
    assert "another teacher" in told

    # The same name, other weights in it.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in lm_folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    manifest = cache / "train" / "signals.json"
    renamed = tmp_path / "cache"
    for path in cache.rglob("*"):
        if path.is_file():
            (renamed / path.relative_to(cache)).parent.mkdir(parents=True, exist_ok=True)
            (renamed / path.relative_to(cache)).write_bytes(path.read_bytes())
    for name in ("train", "held_out"):
        raw = json.loads((cache / name / "signals.json").read_text())
        raw["key"]["teacher"] = f"hf:{moved}"
        (renamed / name / "signals.json").write_text(json.dumps(raw))
    run_train(
        recipe_for(moved, student_folder), dataset_folder, None, tmp_path / "w", Silent(),
        signals=renamed,
    )  # fmt: skip
    tiny_llama(byte_bpe(), 3).save_pretrained(moved)
    told = fails(recipe_for(moved, student_folder), dataset_folder, renamed, tmp_path)
    assert "another revision of the teacher" in told
    assert manifest.exists()

    shorter = recipe.model_copy(
        update={"student": recipe.student.model_copy(update={"max_tokens": 40})}
    )
    assert "cut at another length" in fails(shorter, dataset_folder, cache, tmp_path)

    templated = tmp_path / "templated"
    tokenizer = byte_bpe()
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", " ")
    tokenizer.save_pretrained(templated)
    tiny_llama(tokenizer, 2).save_pretrained(templated)
    told = fails(recipe_for(lm_folder, templated), dataset_folder, cache, tmp_path)
    assert "another chat template" in told

    respelt = tmp_path / "respelt"
    tokenizer = byte_bpe()
    tokenizer.add_tokens(["gripping film"])
    tokenizer.save_pretrained(respelt)
    tiny_llama(tokenizer, 2).save_pretrained(respelt)
    told = fails(recipe_for(lm_folder, respelt), dataset_folder, cache, tmp_path)
    assert "another tokenizer" in told

    warmer = recipe_for(lm_folder, student_folder, train={"distillation_temperature": 3.0})
    assert "drawn at T = 2" in fails(warmer, dataset_folder, cache, tmp_path)

    more = tmp_path / "more"
    write_jsonl(more / "train.jsonl", list(review_examples(61)))
    write_jsonl(more / "held_out.jsonl", list(review_examples(16, 61)))
    assert "holds nothing of example r60" in fails(recipe, more, cache, tmp_path)

    changed = list(review_examples(60))
    said = changed[4].messages[0].model_copy(update={"content": "another film"})
    changed[4] = changed[4].model_copy(update={"messages": (said, changed[4].messages[1])})
    write_jsonl(more / "train.jsonl", list(changed))
    write_jsonl(more / "held_out.jsonl", list(review_examples(16, 60)))
    assert "holds example r4 with other tokens" in fails(recipe, more, cache, tmp_path)


def test_a_damaged_cache_is_refused(
    capture: Captured, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe, cache = capture(format="sampled")
    copy = tmp_path / "cache"
    for path in cache.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(cache)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(cache)).write_bytes(path.read_bytes())
    shard = copy / "train" / "shard-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-9] ^= 1
    shard.write_bytes(raw)
    assert "is not what was captured" in fails(recipe, dataset_folder, copy, tmp_path)
    shard.write_bytes(raw[:-5])
    assert "is not what was captured" in fails(recipe, dataset_folder, copy, tmp_path)
    shard.unlink()
    assert "is not what was captured" in fails(recipe, dataset_folder, copy, tmp_path)
    manifest = copy / "train" / "signals.json"
    manifest.write_text("{}")
    assert "is damaged" in fails(recipe, dataset_folder, copy, tmp_path)
    manifest.unlink()
    with pytest.raises(RunFolderError, match="no finished signal cache"):
        run_train(recipe, dataset_folder, None, tmp_path / "n", Silent(), signals=copy)


@pytest.mark.parametrize(
    ("section", "most"),
    [
        ({"format": "hidden"}, 1e-9),
        ({"format": "dense"}, 1e-5),
        ({"format": "top_k", "k": 8}, 3.0),
        ({"format": "sampled"}, None),
    ],
)
def test_verify_measures_what_was_lost(
    capture: Captured, dataset_folder: Path, section: dict[str, Any], most: float | None
) -> None:
    recipe, cache = capture(**section)
    if most is None:
        # E KL(drawn || p) <= log(1 + E chi^2) = log(1 + (V - 1) / draws), by Jensen's inequality
        draws = CaptureSection(format="sampled").samples
        most = math.log1p(
            (Opened(recipe, cache, dataset_folder).teacher.config.vocab_size - 1) / draws
        )
    for one in verify_signals(recipe, dataset_folder, cache, 5):
        assert one.mean_kl is not None
        assert one.p95_kl is not None
        assert -1e-9 <= one.mean_kl < most
        assert one.mean_kl <= one.p95_kl or one.p95_kl < 1e-6
        assert one.same_rows is not None
        assert one.same_rows > 0.8 or one.format == "hidden"  # float32, to the last bit
        assert 0 < one.compared_rows < one.rows
        assert one.bytes_per_row > 0


def test_a_batch_without_a_divergence_at_hand_is_not_silently_wrong(
    capture: Captured, dataset_folder: Path
) -> None:
    opened = Opened(*capture(format="sampled"), dataset_folder)
    batch = opened.batch(1, 2)
    assert batch[SIGNAL_ROWS].tolist() == [1, 2]
    with pytest.raises(ValueError, match="draws are of the teacher at 2"):
        opened.cached(1.0).loss(opened.student.model, batch, Counts(1, 1, 1))
    with pytest.raises(ValueError, match="insides"):
        CachedTeacher(opened.signals).view(batch, Needs(hidden_states=True))


def test_the_reference_divergence_is_the_dense_one(capture: Captured, dataset_folder: Path) -> None:
    """`hidden` against the definition, written out."""
    opened = Opened(*capture(format="hidden"), dataset_folder)
    batch = opened.batch(0, 8, held_out=True)
    with torch.no_grad():
        got = opened.cached().held_out(opened.student.model, batch).divergence
        p = CausalReader().read(opened.teacher, batch, Needs(logits=True)).logits
        q = CausalReader().read(opened.student.model, batch, Needs(logits=True)).logits
    torch.testing.assert_close(got, forward_kl(p, q).total, rtol=1e-5, atol=1e-5)


def test_training_from_a_cache_goes_on_where_it_stopped(
    capture: Captured, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, cache = capture(format="sampled")
    run_train(recipe, dataset_folder, None, tmp_path / "whole", Silent(), signals=cache)

    def stop(self: Report, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == 6:  # of 8; a checkpoint is at 4
            raise KeyboardInterrupt
        return control

    with monkeypatch.context() as patched:
        patched.setattr(Report, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run_train(recipe, dataset_folder, None, tmp_path / "stopped", Silent(), signals=cache)
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-4").exists()
    run_train(recipe, dataset_folder, None, tmp_path / "stopped", Silent(), signals=cache)
    assert hash_folder(tmp_path / "stopped") == hash_folder(tmp_path / "whole")
