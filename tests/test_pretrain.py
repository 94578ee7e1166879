"""A corpus recipe from start to end: stages, kills, what is refused, and the student that comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
)
from typer.testing import CliRunner

from corpora import corpus_recipe, write_corpus
from stillhouse.cli import app
from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_corpus_file import load_corpus_recipe
from stillhouse.core.recipe_file import load_recipe
from stillhouse.core.recipe_train import StudentSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.plan_nets import corpus_plan_lines, plan_corpus
from stillhouse.pretrain import pretrain_report, run_pretrain
from stillhouse.train import corpus_train
from stillhouse.train.students import build_student
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without a language head, as MiniLM's package has it."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = wordpiece()
    tokenizer.save_pretrained(folder)
    tiny_bert(tokenizer, dropout=0.1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer).save_pretrained(folder)
    return folder


DISTILBERT: dict[str, Any] = {
    "objective": {"terms": [{"kind": "hidden", "layers": "last", "count": 1, "loss": "cosine"}]},
    "teacher": {"adapt": {"epochs": 1, "evals": 1}},
}


def test_distilbert_in_small_from_start_to_end(encoder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", languages=True)
    recipe = corpus_recipe(
        corpus, encoder, "masked_lm", **DISTILBERT,
        corpus={"language": "language"}, train={"untaught_twin": True},
    )  # fmt: skip
    root = tmp_path / "run"
    results = run_pretrain(recipe, root, Silent())
    assert [one.name for one in results] == ["corpus", "teacher", "train", "evaluate"]
    report = pretrain_report(recipe, root)
    assert json.loads((root / "report.json").read_text()) == report
    assert set(report["languages"]) == {"en", "fr"}
    student = report["test"]["student"]
    kept = student["retention"]["perplexity"]
    assert kept["low"] <= kept["estimate"] <= kept["high"]
    assert student["divergence"]["estimate"] > 0
    assert {"teacher", "student", "start", "twin"} == set(report["test"])
    assert report["parameters"]["student"] < report["parameters"]["teacher"]
    history = json.loads((root / "train" / "history.json").read_text())
    assert any("hidden" in (row["terms"] or {}) for row in history)
    assert all(one.skipped for one in run_pretrain(recipe, root, Silent()))

    # The result is plain: transformers loads it, and a task's recipe starts from it.
    loaded, info = AutoModelForMaskedLM.from_pretrained(
        root / "train" / "student", output_loading_info=True
    )
    assert isinstance(loaded, BertForMaskedLM)
    assert not info["missing_keys"]
    task = ClassificationTask(kind="classification", labels=("a", "b"))
    section = StudentSection.model_validate(
        {"head": "label", "from": f"hf:{root / 'train' / 'student'}", "max_tokens": 24}
    )
    made = build_student(section, task, section.source, ["a film"], 0)
    own = made.model.base_model.get_input_embeddings().weight
    assert torch.equal(own, loaded.base_model.get_input_embeddings().weight)


def test_tinyllama_in_small(llama: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    questions = tmp_path / "q.jsonl"
    rows = [
        {"prompt": "the film is", "choices": [" gripping", " dull"], "answer": number % 2}
        for number in range(6)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = corpus_recipe(
        corpus, llama, "causal_lm",
        student={"from": "scratch", "layers": None, "config": {"num_hidden_layers": 1}},
        evaluate={"zero_shot": str(questions)},
    )  # fmt: skip
    root = tmp_path / "run"
    run_pretrain(recipe, root, Silent())
    report = pretrain_report(recipe, root)
    assert report["plan"]["layers"] == 1
    before, after = (
        report["test"][name]["perplexity"]["estimate"] for name in ("start", "student")
    )
    assert after < before
    assert report["zero_shot"]["teacher"]["questions"] == 6
    assert AutoModelForCausalLM.from_pretrained(root / "train" / "student").config.use_cache


@pytest.mark.full
def test_a_killed_student_ends_with_the_same_weights(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    recipe = corpus_recipe(corpus, encoder, "masked_lm", **DISTILBERT)
    run_pretrain(recipe, tmp_path / "whole", Silent())

    class Killed(BaseException):
        pass

    say = corpus_train.Report.on_step_end

    def die(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.max_steps > 8 and state.global_step == state.max_steps - 2:
            raise Killed
        return say(self, args, state, control, **more)

    monkeypatch.setattr(corpus_train.Report, "on_step_end", die)
    with pytest.raises(Killed):
        run_pretrain(recipe, tmp_path / "killed", Silent())
    monkeypatch.undo()
    assert list((tmp_path / "killed" / "train.partial" / "checkpoints").glob("checkpoint-*"))
    run_pretrain(recipe, tmp_path / "killed", Silent(), last="train")
    one, two = (
        (tmp_path / name / "train" / "student" / "model.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert one == two


def test_mobilebert_learns_layer_by_layer(encoder: Path, tmp_path: Path) -> None:
    """Another family from scratch, feature maps through a learned map, attention, stages."""
    corpus = write_corpus(tmp_path / "c.jsonl")
    recipe = corpus_recipe(
        corpus, encoder, "masked_lm",
        teacher={"adapt": {"epochs": 1, "evals": 1}},
        student={
            "from": "scratch", "layers": None,
            "config": {
                "model_type": "mobilebert", "hidden_size": 32, "num_hidden_layers": 2,
                "embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 32,
                "num_attention_heads": 2, "max_position_embeddings": 48,
            },
        },
        objective={
            "terms": [
                {"kind": "hidden", "layers": "skip"},
                {"kind": "attention", "layers": "skip"},
            ],
            "progressive": {"until": 0.5},
        },
    )  # fmt: skip
    run_pretrain(recipe, tmp_path / "run", Silent(), last="train")
    plan = json.loads((tmp_path / "run" / "train" / "plan.json").read_text())
    assert plan["architecture"] == "MobileBertForMaskedLM"


def test_a_plan_says_what_comes_and_trains_nothing(encoder: Path, tmp_path: Path) -> None:
    recipe = corpus_recipe(
        write_corpus(tmp_path / "c.jsonl"), encoder, "masked_lm",
        teacher={"adapt": {"epochs": 1, "evals": 1}}, student={"vocabulary": "corpus"},
        train={"epochs": 2, "evals": 1},
    )  # fmt: skip
    root = tmp_path / "run"
    plan = plan_corpus(recipe, root, Silent())
    assert not (root / "teacher").exists()
    assert not (root / "train").exists()
    lines = dict(corpus_plan_lines(json.loads((root / "plan.json").read_text())))
    run_pretrain(recipe, root, Silent())
    report = pretrain_report(recipe, root)
    assert plan["teacher_parameters"] == report["parameters"]["teacher"]
    assert plan["student"]["parameters"] == report["parameters"]["student"]
    assert plan["student"]["vocabulary"] == report["plan"]["vocabulary"]
    assert plan["vocabulary"] == report["plan"]["vocabulary_before"]
    assert (plan["rows"], plan["tokens"], plan["steps"]) == (
        report["training"]["rows"]["train"],
        report["training"]["tokens"]["train"],
        report["training"]["steps"],
    )
    adapted = json.loads((root / "teacher" / "train.json").read_text())
    assert plan["adapt_steps"] == adapted["steps"]
    assert f"{plan['steps']:,} steps" in lines["training"]


@pytest.mark.parametrize("kind", ["masked_lm", "causal_lm"])
def test_a_student_of_a_size(kind: str, encoder: Path, llama: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    masked = kind == "masked_lm"
    recipe = corpus_recipe(
        write_corpus(tmp_path / "c.jsonl"), encoder if masked else llama, kind,
        student={"from": "teacher", "layers": None, "size": 0.6, "cut": {"depth": "last"}},
        teacher={"adapt": {"epochs": 1, "evals": 1}}, train={"untaught_twin": True, "epochs": 1},
    )  # fmt: skip
    root = tmp_path / "run"
    run_pretrain(recipe, root, Heard())
    shown = [at for at, line in enumerate(said) if "asked for 60.0%" in line]
    adapted = next(at for at, line in enumerate(said) if "train the teacher" in line)
    assert len(shown) == 2  # before the teacher is adapted, and before the first step
    assert shown[0] < adapted < shown[1]
    report = pretrain_report(recipe, root)
    plan = report["plan"]
    share = plan["parameters"] / plan["cut"]["source_parameters"]
    assert share == pytest.approx(0.6, rel=0.02)
    assert plan["parameters"] == plan["cut"]["parameters"] == report["parameters"]["student"]
    assert plan["parameters_before"] == plan["cut"]["source_parameters"]
    assert report["parameters"]["start"] == report["parameters"]["twin"] == plan["parameters"]
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(root / "train" / "student", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.num_hidden_layers == len(plan["layers_kept"])
    measure = "pseudo_perplexity" if masked else "perplexity"
    before, after = (report["test"][name][measure]["estimate"] for name in ("start", "student"))
    assert after < before


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("masked_lm", 0.6),
        ("causal_lm", None),
        pytest.param("masked_lm", None, marks=pytest.mark.full),
        pytest.param("causal_lm", 0.6, marks=pytest.mark.full),
    ],
)
def test_a_student_of_the_corpus_pieces(
    kind: str, size: float | None, encoder: Path, llama: Path, tmp_path: Path
) -> None:
    """Its teacher believes in the kept pieces alone; the whole teacher is scored beside it."""
    masked = kind == "masked_lm"
    corpus = write_corpus(tmp_path / "c.jsonl")
    recipe = corpus_recipe(
        corpus, encoder if masked else llama, kind,
        student={"from": "teacher", "vocabulary": "corpus"}
        | ({"layers": None, "size": size} if size else {}),
        teacher={"adapt": {"epochs": 1, "evals": 1}} if masked else {},
        train={"untaught_twin": True, "epochs": 1, "evals": 1},
    )  # fmt: skip
    root = tmp_path / "run"
    run_pretrain(recipe, root, Silent())
    report = pretrain_report(recipe, root)
    plan, facts = report["plan"], report["training"]
    assert plan["vocabulary"] < plan["vocabulary_before"]
    assert report["parameters"]["student"] == plan["parameters"]
    if size:
        assert plan["parameters"] / plan["cut"]["source_parameters"] == pytest.approx(0.6, rel=0.02)
        assert plan["cut"]["after"]["vocabulary"] == plan["vocabulary"]
    assert 0 < facts["mass_on_kept_pieces"] <= 1
    assert facts["cut_otherwise"]["train"] == 0
    measure = "pseudo_perplexity" if masked else "perplexity"
    own, whole = report["test"]["teacher"], report["whole_teacher"]
    assert own["accuracy"]["estimate"] >= whole["accuracy"]["estimate"] - 1e-9
    assert own[measure]["estimate"] <= whole[measure]["estimate"]  # fewer pieces to doubt between
    shares = [report["test"]["student"]["accuracy"]["estimate"], whole["accuracy"]["estimate"]]
    if shares[1]:
        assert whole["retention"]["estimate"] == pytest.approx(shares[0] / shares[1])
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    folder = root / "train" / "student"
    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert loaded.get_output_embeddings().weight.shape[0] == len(tokenizer) == plan["vocabulary"]
    source = AutoTokenizer.from_pretrained(encoder if masked else llama)
    for line in corpus.read_text().splitlines():
        text = json.loads(line)["text"]
        again, before = (one.decode(one(text)["input_ids"]) for one in (tokenizer, source))
        assert again == before
        assert masked or again == text


def test_a_student_of_another_family_and_fewer_pieces(encoder: Path, tmp_path: Path) -> None:
    recipe = corpus_recipe(
        write_corpus(tmp_path / "c.jsonl"), encoder, "masked_lm",
        teacher={"adapt": {"epochs": 1, "evals": 1}},
        student={
            "from": "scratch", "layers": None, "vocabulary": "corpus",
            "config": {
                "model_type": "mobilebert", "hidden_size": 32, "num_hidden_layers": 2,
                "embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 32,
                "num_attention_heads": 2, "max_position_embeddings": 48,
            },
        },
        train={"epochs": 1, "evals": 1},
    )  # fmt: skip
    run_pretrain(recipe, tmp_path / "run", Silent(), last="train")
    folder = tmp_path / "run" / "train"
    plan = json.loads((folder / "plan.json").read_text())
    loaded = AutoModelForMaskedLM.from_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    assert loaded.config.vocab_size == len(tokenizer) == plan["vocabulary"]
    assert loaded.config.pad_token_id == tokenizer.pad_token_id


def test_a_corpus_too_small_for_the_split_is_one_line(encoder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl", count=12)
    recipe = corpus_recipe(corpus, encoder, "masked_lm")
    with pytest.raises(UserError, match="too few for the split") as caught:
        run_pretrain(recipe, tmp_path / "run", Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "corpus").exists()


def test_a_teacher_without_a_language_head_must_be_adapted(encoder: Path, tmp_path: Path) -> None:
    recipe = corpus_recipe(write_corpus(tmp_path / "c.jsonl"), encoder, "masked_lm")
    with pytest.raises(UserError, match=r"add teacher\.adapt"):
        run_pretrain(recipe, tmp_path / "run", Silent())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"layers": 9}}, "the source has 4 layers"),
        ({"student": {"layers": None, "size": 0.001}}, r"student\.size: the smallest cut"),
        ({"objective": {"terms": [{"kind": "hidden", "layers": "last", "count": 3}]}}, "at most 2"),
        (
            {"student": {"from": "scratch", "layers": None, "config": {"hiden_size": 8}}},
            "is no setting of a bert model",
        ),
    ],
)
def test_a_student_that_cannot_be_is_refused_before_the_teacher_is_trained(
    changes: dict[str, Any], said: str, encoder: Path, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    adapt = {"teacher": {"adapt": {}}}
    with pytest.raises(UserError, match=said):
        run_pretrain(
            corpus_recipe(corpus, encoder, "masked_lm", **adapt, **changes),
            tmp_path / "run",
            Silent(),
        )
    assert not (tmp_path / "run" / "teacher.partial" / "checkpoints").exists()


def test_too_few_pieces_are_refused_before_the_teacher_is_trained(
    llama: Path, tmp_path: Path
) -> None:
    recipe = corpus_recipe(
        write_corpus(tmp_path / "c.jsonl"), llama, "causal_lm",
        student={"vocabulary": 256}, teacher={"adapt": {}},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"student\.vocabulary: .*use at least \d+$") as caught:
        run_pretrain(recipe, tmp_path / "run", Silent())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "teacher.partial" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"soft": 0, "hard": 0}}, "one of them must be above 0"),
        ({"objective": {"sofd": 1}}, "did you mean 'soft'"),
        ({"objective": {"terms": [{"kind": "hidden", "lose": "mse"}]}}, "did you mean 'loss'"),
        (
            {
                "objective": {
                    "kind": "causal_lm",
                    "terms": [{"kind": "similarity", "pool": "first"}],
                }
            },
            r"terms\.0\.pool: the first token of a causal_lm sees no other",
        ),
        ({"student": {"config": {"num_hidden_layers": 1}}}, "config: is for from: scratch"),
        ({"student": {"from": "scratch", "layers": None, "size": "light"}}, "its shape in config"),
        ({"student": {"cut": {"prefer": "width"}}}, "read with size"),
        ({"evaluate": {"zero_shot": "q.jsonl"}}, "masked_lm does not give"),
        ({"teacher": {"model": "gpt-4o"}}, "must be hf:ID_OR_PATH"),
    ],
)
def test_recipes_are_strict(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        corpus_recipe(tmp_path / "c.jsonl", tmp_path, "masked_lm", **changes)


def test_each_kind_of_recipe_names_the_other_command(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: c\ncorpus: {path: x}\n")
    (tmp_path / "t.yaml").write_text("name: t\ntraffic: {path: x}\n")
    with pytest.raises(RecipeError, match="stillhouse pretrain"):
        load_recipe(tmp_path / "c.yaml")
    with pytest.raises(RecipeError, match="stillhouse run"):
        load_corpus_recipe(tmp_path / "t.yaml")
    (tmp_path / "i.yaml").write_text("name: i\nimages: {train: x, test: y}\n")
    for load in (load_recipe, load_corpus_recipe):
        with pytest.raises(RecipeError, match="stillhouse images"):
            load(tmp_path / "i.yaml")


def test_the_command_prints_the_figures(llama: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c.jsonl")
    recipe = corpus_recipe(corpus, llama, "causal_lm", train={"epochs": 1, "evals": 1})
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(recipe.model_dump(mode="json", by_alias=True)))
    done = CliRunner().invoke(app, ["pretrain", str(path), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "perplexity" in done.output
    assert "times as fast" in done.output
