"""Text students of a trimmed vocabulary: p(v | v is kept), live and from every exact cache."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.models.divergence import divergence
from stillhouse.models.head import Head
from stillhouse.models.loading import load_causal_lm
from stillhouse.models.restricted import Kept
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    sparsify,
)
from stillhouse.plan_student import job_of
from stillhouse.stages import STAGES
from stillhouse.train.batches import Collator, encode_chats
from stillhouse.train.cached_teacher import CachedTeacher, with_head
from stillhouse.train.capture import run_capture
from stillhouse.train.features_wiring import Learned
from stillhouse.train.kept import whole_of
from stillhouse.train.on_policy import WRITERS, WRITTEN_BY
from stillhouse.train.outputs import Counts, Needs, StepAt, count
from stillhouse.train.planning import check_recipe
from stillhouse.train.planning_signals import capture_format
from stillhouse.train.preflight import check_student
from stillhouse.train.reading import Reading
from stillhouse.train.signal_binding import Bound, Learnt, bind_signals
from stillhouse.train.stage import run_train
from stillhouse.train.students import Student, build_student
from stillhouse.train.wiring import build_objective
from tiny_models import byte_bpe, loud_llama

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sure of something, its head padded beyond its tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    model = loud_llama(tokenizer, 2, 0.5)
    model.resize_token_embeddings(len(tokenizer) + 40, mean_resizing=False)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.save_pretrained(folder)
    return folder


def recipe_for(folder: Path, *, vocabulary: Any = "task", **more: Any) -> Recipe:
    train = {"batch_size": 8, "learning_rate": 5e-3, "epochs": 1, "evals": 1}
    student = {"head": "text", "from": f"hf:{folder}", "layers": 1, "max_tokens": 64}
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "generation"},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{folder}"},
            "student": {**student, "vocabulary": vocabulary, **more.pop("student", {})},
            "train": {**train, **more.pop("train", {})},
            **more,
        }
    )


def sets_of(dataset: Path) -> list[list[Example]]:
    return [list(read_records(dataset / f"{n}.jsonl", Example)) for n in ("train", "held_out")]


def student_for(recipe: Recipe, examples: list[Example]) -> Student:
    texts = [message.content for example in examples for message in example.messages]
    return build_student(recipe.student, recipe.task, recipe.student.source, texts, 0)


def naive(teacher: Path, student: Student, batch: dict[str, Tensor]) -> Tensor:
    """log p(v | v kept) [N, V'] one target at a time, from the whole teacher's plain softmax."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    own, other = student.tokenizer.get_vocab(), AutoTokenizer.from_pretrained(teacher).get_vocab()
    kept = [other[piece] for piece, _ in sorted(own.items(), key=lambda item: item[1])]
    found = []
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
    ):
        there = [kept[token] for token in ids[mask.bool()].tolist()]
        with torch.no_grad():
            p = model(torch.tensor([there])).logits[0].double().softmax(-1)
        for at in range(1, len(there)):
            if labels[at] != -100:
                share = p[at - 1, kept]
                found.append((share / share.sum()).log())
    return torch.stack(found)


def bound_for(
    recipe: Recipe, dataset: Path, work: Path, examples: list[list[Example]]
) -> tuple[Student, Bound]:
    run_capture(recipe, dataset, work / "ask", work, Silent())
    student = student_for(recipe, examples[0])
    sets = [Learnt(part, encode_chats(part, student.tokenizer, 64)) for part in examples]
    bound = bind_signals(recipe, student, recipe.teacher.model, work, (sets[0], sets[1]))
    return student, bound


def test_a_live_teacher_says_softmax_over_the_kept_columns(
    teacher: Path, dataset_folder: Path
) -> None:
    recipe = recipe_for(teacher)
    examples = sets_of(dataset_folder)[0]
    student = student_for(recipe, examples)
    assert 280 < student.plan.vocabulary < student.plan.vocabulary_before - 40
    rows = encode_chats(examples, student.tokenizer, 64).rows
    told: dict[str, float] = {}
    source = f"hf:{teacher}"
    reading = Reading(
        1.0, source, CPU, False, Learned(rows, ()), held_out=rows, told=told.__setitem__
    )
    objective: Any = build_objective(recipe, student, reading)
    batch = Collator(int(student.tokenizer.pad_token_id))([rows[n] for n in (3, 1, 8)])
    signal = objective.teacher.view(batch, Needs(last_hidden=True)).signal
    assert isinstance(signal, HiddenSignal)
    log_p = naive(teacher, student, batch)
    got = signal.dense().logits.double().log_softmax(-1)
    torch.testing.assert_close(got, log_p, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        logits = student.model(batch["input_ids"]).logits
    q = logits[:, :-1][batch["labels"][:, 1:] != -100].double().log_softmax(-1)
    wanted = (log_p.exp() * (log_p - q)).sum()
    got = objective.held_out(student.model, batch).divergence
    torch.testing.assert_close(got.double(), wanted, atol=1e-3, rtol=1e-4)
    assert 0 < told["teacher"] < 1
    model = load_causal_lm(source).model  # on disk it is as it was
    assert model.config.vocab_size == student.plan.vocabulary_before


@pytest.mark.parametrize(
    "section",
    [
        {"format": "auto"},
        {"format": "dense", "dtype": "float32"},
        {"format": "top_k", "k": 10_000, "dtype": "float32"},
    ],
)
def test_a_cache_over_the_whole_vocabulary_gives_the_same(
    teacher: Path, dataset_folder: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    recipe = recipe_for(teacher, capture=section, train={"signals": "cache"})
    examples = sets_of(dataset_folder)
    student, bound = bound_for(recipe, dataset_folder, tmp_path, examples)
    wanted = {"auto": "hidden"}.get(section["format"], section["format"])
    assert bound.signals.train.layout.format == wanted
    assert bound.left_out == 0
    cached = CachedTeacher(with_head(bound.signals, recipe.teacher.model, "cpu"))
    collate = Collator(int(student.tokenizer.pad_token_id))
    for part in (bound.train, bound.held_out):
        batch = collate([part.rows[n] for n in (9, 2, 4)])
        signal = cached.view(batch, Needs(last_hidden=True)).signal
        log_p = naive(teacher, student, batch)
        if isinstance(signal, SparseSignal):
            assert signal.vocabulary_size == student.plan.vocabulary == signal.token_ids.shape[-1]
            got = torch.zeros_like(log_p).scatter(-1, signal.token_ids, signal.log_probs.double())
        else:
            assert isinstance(signal, HiddenSignal | DenseSignal)
            dense = signal.dense() if isinstance(signal, HiddenSignal) else signal
            got = dense.logits.double().log_softmax(-1)
        torch.testing.assert_close(got, log_p, atol=1e-3, rtol=1e-3)


def test_top_k_renormalises_what_is_kept_and_the_tail() -> None:
    """Rows that keep 0 to all of their entries; a slot that is free names another kept token with
    an even share of the tail, so that nothing is named twice and all sums to one."""
    v, k = 60, 6
    torch.manual_seed(3)
    logits = 3 * torch.randn(200, v)
    kept = torch.randperm(v)[:25].sort().values
    sparse = sparsify(DenseSignal(logits), k)
    found = Kept(kept).only(sparse)
    assert isinstance(found, SparseSignal)
    assert found.vocabulary_size == 25
    place = {int(old): new for new, old in enumerate(kept)}
    counts = set()
    for row in range(200):
        p = {
            int(t): math.exp(x)
            for t, x in zip(sparse.token_ids[row], sparse.log_probs[row], strict=True)
        }
        named = {place[t]: value for t, value in p.items() if t in place}
        tail = math.exp(sparse.tail_log_mass[row])
        total = sum(named.values()) + tail
        got = {
            int(t): math.exp(x)
            for t, x in zip(found.token_ids[row], found.log_probs[row], strict=True)
        }
        assert len(got) == found.token_ids.shape[-1]  # distinct
        counts.add(len(named))
        for token, value in got.items():
            even = tail / (25 - len(named))
            assert value == pytest.approx(named.get(token, even) / total, rel=1e-4)
        rest = math.exp(found.tail_log_mass[row])
        assert sum(got.values()) + rest == pytest.approx(1, abs=1e-5)
    assert len(counts) > 3
    q = torch.randn(200, 25)
    assert divergence(found, q).total.isfinite()


def test_top_k_is_exact_where_all_is_stored_and_the_mass_is_right() -> None:
    torch.manual_seed(4)
    logits = 2 * torch.randn(30, 40)
    kept = Kept(torch.tensor([1, 5, 6, 17, 39]))
    p = logits.double().softmax(-1)[:, kept.ids]
    whole = kept.only(sparsify(DenseSignal(logits), 40))
    assert isinstance(whole, SparseSignal)
    got = torch.zeros(30, 5).scatter(-1, whole.token_ids, whole.log_probs.exp())
    torch.testing.assert_close(got.double(), p / p.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)
    head = Head(logits.T.contiguous())  # hidden = one-hot: the same logits
    signals = [DenseSignal(logits), HiddenSignal(torch.eye(30), Head(logits.T.contiguous()))]
    assert head.only(kept.ids).weight.shape == (5, 30)
    for signal in (*signals, sparsify(DenseSignal(logits), 40)):
        torch.testing.assert_close(kept.mass(signal).double(), p.sum(-1), atol=1e-5, rtol=1e-4)
    lost = SparseSignal(
        torch.tensor([[0, 2]]),
        torch.tensor([[-0.7, -0.7]]).log_softmax(-1),
        torch.tensor([-torch.inf]),
        40,
    )
    nothing = kept.only(lost)
    assert isinstance(nothing, SparseSignal)
    total = nothing.log_probs.exp().sum() + nothing.tail_log_mass.exp()
    assert float(total) == pytest.approx(1)
    with pytest.raises(ValueError, match="draws"):
        kept.only(SampledSignal(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)))


def _trained(recipe: Recipe, dataset: Path, work: Path, signals: Path | None = None) -> Any:
    run_train(recipe, dataset, None, work, Silent(), signals=signals)
    return json.loads((work / "train.json").read_text())


def test_live_and_cache_train_the_same_student(
    teacher: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    live = recipe_for(teacher)
    check_recipe(live)
    check_student(live)
    cache = recipe_for(teacher, train={"signals": "cache"}, capture={"format": "hidden"})
    run_capture(cache, dataset_folder, tmp_path / "ask", tmp_path / "cache", Silent())
    first = _trained(live, dataset_folder, tmp_path / "live")
    second = _trained(cache, dataset_folder, tmp_path / "cached", tmp_path / "cache")
    curves = [
        json.loads((tmp_path / name / "history.json").read_text()) for name in ("live", "cached")
    ]
    for one, other in zip(*curves, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float):
                assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name
    for facts in (first, second):
        assert facts["cut_otherwise"] == {"train": 0, "held_out": 0}
        assert len(facts["mass_on_kept_pieces"]) == 1
    masses = [next(iter(f["mass_on_kept_pieces"].values())) for f in (first, second)]
    assert masses[0] == pytest.approx(masses[1], abs=1e-4)
    folder = tmp_path / "live" / "student"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    assert model.config.vocab_size == len(tokenizer) == first["student"]["plan"]["vocabulary"]
    for example in sets_of(dataset_folder)[0]:
        ids = tokenizer(example.completion)["input_ids"]
        assert tokenizer.decode(ids) == example.completion
        assert model(torch.tensor([ids])).logits.isfinite().all()


def test_a_size_and_a_task_vocabulary_train_on_policy(
    teacher: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    policy = {"student_fraction": 0.4, "teacher_fraction": 0.4, "max_new_tokens": 4}
    student = {"size": 0.6, "layers": None}
    recipe = recipe_for(teacher, student=student, train={"on_policy": policy, "divergence": "jsd"})
    check_student(recipe)
    facts = _trained(recipe, dataset_folder, tmp_path)
    assert facts["student"]["plan"]["vocabulary"] < facts["student"]["plan"]["vocabulary_before"]


@pytest.mark.parametrize("writer", ["student", "teacher"])
def test_what_is_written_is_of_the_students_ids_and_ends(
    teacher: Path, dataset_folder: Path, writer: str
) -> None:
    policy = {"student_fraction": 0.0, "teacher_fraction": 0.0, "max_new_tokens": 8}
    recipe = recipe_for(teacher, train={"on_policy": {**policy, f"{writer}_fraction": 1.0}})
    examples = sets_of(dataset_folder)[0][:6]
    student = student_for(recipe, examples)
    rows = encode_chats(examples, student.tokenizer, 64).rows
    reading = Reading(1.0, f"hf:{teacher}", CPU, False, Learned(rows, ()))
    objective: Any = build_objective(recipe, student, reading)
    end = int(student.tokenizer.eos_token_id)
    settings = objective.teacher.generation_config
    assert settings.eos_token_id in (end, [end])
    written = objective.prepare(
        student.model, Collator(int(student.tokenizer.pad_token_id))(rows.items), StepAt(0)
    )
    assert WRITERS[int(written[WRITTEN_BY])] == writer
    assert written["input_ids"].max() < student.plan.vocabulary
    assert objective.loss(student.model, written, Counts(*count(written).unbind())).isfinite()


def test_examples_that_are_cut_otherwise_are_counted_refused_or_left_out(
    teacher: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    """A vocabulary of some examples, used on the others."""
    recipe = recipe_for(teacher, train={"signals": "cache"}, capture={"format": "hidden"})
    examples = sets_of(dataset_folder)
    run_capture(recipe, dataset_folder, tmp_path / "ask", tmp_path, Silent())
    words = [e for e in examples[0] if "wonderful" in e.messages[0].content]
    student = student_for(recipe, words)

    def bind(train: list[Example], held_out: list[Example]) -> Bound:
        sets = [Learnt(p, encode_chats(p, student.tokenizer, 64)) for p in (train, held_out)]
        return bind_signals(recipe, student, recipe.teacher.model, tmp_path, (sets[0], sets[1]))

    with pytest.raises(UserError, match=r"student\.vocabulary: \d+ of 60 training examples are"):
        bind(*examples)
    bound = bind(words, examples[1])
    assert 0 < bound.left_out < 16
    assert len(bound.watched_on) == len(bound.held_out.rows) == 16 - bound.left_out
    others = [e for e in examples[1] if e not in bound.watched_on]
    with pytest.raises(UserError, match=r"all \d+ held-out examples"):
        bind(words, others)


def test_without_a_template_the_piece_that_begins_an_answer_is_kept(teacher: Path) -> None:
    """The answer follows its prompt after a space, which its first piece takes in."""
    recipe = recipe_for(teacher)
    whole = AutoTokenizer.from_pretrained(teacher)
    whole.chat_template = None
    joined = sorted(piece for piece in whole.get_vocab() if re.fullmatch(r"Ġ[a-z]{3,}", piece))
    words = [piece[1:] for piece in joined]
    assert len(words) >= 8
    turns = [
        ({"role": "user", "content": "Q:"}, {"role": "assistant", "content": w}) for w in words
    ]
    origin = {"task": "t", "group": "g", "teacher": "t", "teacher_revision": "1"}
    chats = [
        Example.model_validate({"id": str(n), "messages": turn, **origin})
        for n, turn in enumerate(turns)
    ]
    texts = [message.content for chat in chats for message in chat.messages]
    student = build_student(
        recipe.student, recipe.task, recipe.student.source, texts, 0, plain=True
    )
    of = whole_of(recipe, student, str(teacher))
    assert of is not None
    of.reads.tokenizer.chat_template = None
    rows = encode_chats(chats, student.tokenizer, 64).rows
    assert set(joined) <= student.tokenizer.get_vocab().keys()
    assert of.differing(rows, chats) == []


def test_another_tokenizer_is_refused(teacher: Path, dataset_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_for(teacher)
    examples = sets_of(dataset_folder)[0]
    student = student_for(recipe, examples)
    student.tokenizer.add_tokens(["<|mine|>"])
    rows = encode_chats(examples, student.tokenizer, 64).rows
    with pytest.raises(UserError, match=r"train\.alpha: .*does not have 1 of"):
        build_objective(
            recipe, student, Reading(1.0, f"hf:{teacher}", CPU, False, Learned(rows, ()))
        )


def test_a_teacher_that_reads_ids_elsewhere_is_refused(
    teacher: Path, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3n has a second table of token ids: here, one that a hook adds."""
    recipe = recipe_for(teacher)
    examples = sets_of(dataset_folder)[0]
    student = student_for(recipe, examples)
    rows = encode_chats(examples, student.tokenizer, 64).rows
    loaded = load_causal_lm(f"hf:{teacher}")
    table = torch.randn(len(byte_bpe()) + 40, 16, generator=torch.manual_seed(0))

    def second_table(module: Any, args: Any, out: Tensor) -> Tensor:
        return out + table[args[0]]

    loaded.model.get_input_embeddings().register_forward_hook(second_table)
    monkeypatch.setattr("stillhouse.train.reading.load_causal_lm", lambda *_, **__: loaded)
    with pytest.raises(UserError, match="reads token ids elsewhere"):
        build_objective(
            recipe, student, Reading(1.0, f"hf:{teacher}", CPU, False, Learned(rows, ()))
        )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"capture": {"format": "sampled"}, "train": {"signals": "cache"}}, r"capture\.format"),
        (
            {
                "teacher": {"model": "openai:m", "token_logprobs": 5},
                "train": {"signals": "cache"},
            },
            r"student\.vocabulary",
        ),
        (
            {
                "train": {
                    "teachers": {
                        "members": [
                            {
                                "model": "openai-compatible:m",
                                "base_url": "http://127.0.0.1:1/v1",
                            }
                        ]
                    }
                }
            },
            r"student\.vocabulary.*local teachers alone",
        ),
        ({"train": {"terms": [{"kind": "hidden"}]}}, r"train\.terms.*whole vocabulary"),
    ],
)
def test_what_cannot_be_restricted_is_refused_before(
    teacher: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        check_recipe(recipe_for(teacher, **more))
    assert "\n" not in str(caught.value)


def test_one_capture_serves_students_of_any_trimming(teacher: Path) -> None:
    stage = next(stage for stage in STAGES if stage.name == "capture")
    hidden, cache = {"format": "hidden"}, {"signals": "cache"}
    keys = [
        stage.section(recipe_for(teacher, vocabulary=v, capture=c, train=cache, student=s))
        for v, c, s in (
            ("full", hidden, {}),
            ("task", hidden, {}),
            (300, hidden, {"size": 0.5, "layers": None}),
            ("task", {"format": "auto"}, {}),
        )
    ]
    assert all(key == keys[0] for key in keys)
    assert capture_format(recipe_for(teacher, vocabulary="full", train=cache)) == "sampled"
    assert capture_format(recipe_for(teacher, train=cache)) == "hidden"


def test_the_plan_counts_the_teachers_rows(teacher: Path) -> None:
    plain = job_of(recipe_for(teacher, vocabulary="full"))
    small = job_of(recipe_for(teacher, vocabulary=300))
    assert plain is not None
    assert small is not None
    assert plain.teacher is not None
    assert small.teacher is not None
    assert small.teacher.vocabulary == small.shape.vocabulary == 300
    assert plain.teacher.count() - small.teacher.count() == (
        (plain.teacher.vocabulary - 300) * plain.teacher.hidden
    )
