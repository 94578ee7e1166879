"""The speculate stage on tiny models: what is written, what is refused, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from stillhouse import cli_speculate
from stillhouse.cli import app
from stillhouse.cli_speculate import EXIT_GATE
from stillhouse.compress.speculate_llama import Draft, LlamaTarget
from stillhouse.compress.speculate_lossless import Divergence, GreedyCheck
from stillhouse.compress.speculate_report import (
    DraftReport,
    RuntimeReport,
    SpeculateReport,
    Way,
    drafted,
    report_lines,
)
from stillhouse.compress.speculate_serve import (
    ONE_VOCABULARY,
    Served,
    llama_server_command,
    speculative_config,
    vllm_command,
)
from stillhouse.compress.speculate_stage import Models, _serve, run_speculate
from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import write_json
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_speculate import SpeculateSection
from stillhouse.core.statistics import Interval
from stillhouse.models.gguf_file import embedded_gguf
from stillhouse.models.loading import load_causal_lm
from stillhouse.stages import stages_of
from stillhouse.train.embeddings import keep_rows
from stillhouse.train.vocabulary import trim_tokenizer
from tiny_models import byte_bpe, loud_llama, review_examples, text_recipe, write_jsonl

SPECULATE: dict[str, Any] = {
    "prompts": 6,
    "choose_prompts": 2,
    "max_tokens": 8,
    "draft_lengths": [1, 3],
    "lookup_lengths": [2],
    "speed_prompts": 2,
    "speed_repeats": 1,
    "segment": "shop",
    "sampling_test": {"prompts": 4, "fixed_prompts": 1, "seeds": 20, "tokens": 2},
    "serve": {"target": "org/target-70b", "draft": "org/draft-1b"},
}


def recipe_with(folder: Path, **speculate: Any) -> Recipe:
    raw = text_recipe(folder).model_dump(mode="json", by_alias=True)
    return Recipe.model_validate({**raw, "speculate": {**SPECULATE, **speculate}})


def save(folder: Path, layers: int, noise: float = 0.0) -> Path:
    tokenizer = byte_bpe()
    model = loud_llama(tokenizer, 2, 0.4)
    if noise:
        draw = torch.Generator().manual_seed(layers)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * weight.std() * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_stage_measures_and_writes(tmp_path: Path) -> None:
    target = save(tmp_path / "target", 1)
    drafts = {
        "draft": save(tmp_path / "draft", 1, 0.1),
        "undistilled": save(tmp_path / "old", 2, 1),
    }
    examples = review_examples(10)
    write_jsonl(tmp_path / "dataset" / "held_out.jsonl", list(examples))
    queries = [
        e.to_query().model_copy(update={"metadata": {"shop": "ab"[i % 2]}})
        for i, e in enumerate(examples)
    ]
    write_jsonl(tmp_path / "traffic" / "queries.jsonl", list(queries))
    models = Models(
        load_causal_lm(str(target), device="cpu"),
        {name: load_causal_lm(str(path), device="cpu") for name, path in drafts.items()},
        {},
    )
    work = tmp_path / "work"
    outcome = run_speculate(
        recipe_with(target),
        models,
        tmp_path / "dataset",
        tmp_path / "traffic",
        work=work,
        progress=Silent(),
    )
    report = SpeculateReport.model_validate_json((work / "speculate.json").read_text())
    assert report.prompts == report.greedy.prompts == 6
    assert report.lossless
    assert outcome.summary["identical"] == report.greedy.identical
    mine, other = report.drafts["draft"], report.drafts["undistilled"]
    assert mine.acceptance is not None
    assert other.acceptance is not None
    assert mine.acceptance.rate.estimate >= other.acceptance.rate.estimate
    assert other.draft_gains is not None
    assert other.draft_gains.estimate == pytest.approx(
        mine.acceptance.rate.estimate - other.acceptance.rate.estimate
    )
    assert set(mine.by_segment) == {"a", "b"}
    (runtime,) = report.runtimes
    assert set(runtime.ways) == {"alone", "draft", "undistilled", "prompt lookup"}
    assert runtime.over_lookup is not None
    assert {(t.way, t.length) for t in runtime.tried} == {
        ("draft", 1), ("draft", 3), ("undistilled", 1), ("undistilled", 3), ("prompt lookup", 2)
    }  # fmt: skip
    assert runtime.cost is not None
    assert runtime.cost.measured is not None
    config = json.loads((work / "serve" / "speculative_config.json").read_text())
    assert config == {
        "method": "draft_model",
        "model": "org/draft-1b",
        "num_speculative_tokens": mine.length,
    }
    lines = dict(report_lines(report))
    assert lines["greedy answers"].startswith("6 of 6 identical")
    assert lines["verdict"] == report.verdict


def runtime(name: str, gain: tuple[float, float], same: int, of: int = 40) -> RuntimeReport:
    estimate, low = gain
    found = Interval(estimate=estimate, low=low, high=estimate + 0.3, n=40)
    ways = {
        "alone": Way(length=0, tokens_per_second=10, tokens_a_pass=1, speedup=None),
        "draft": Way(length=4, tokens_per_second=20, tokens_a_pass=3, speedup=found),
    }
    return RuntimeReport(
        runtime=name,
        prompts=40,
        tried=(),
        ways=ways,
        over_lookup=None,
        over_undistilled=None,
        identical=same,
        compared=of,
    )


def judged(*runtimes: RuntimeReport, greedy: GreedyCheck | None = None) -> SpeculateReport:
    every = GreedyCheck(prompts=40, identical=40, tokens=400, divergences=())
    draft = DraftReport(
        source="s", parameters=10, mapped=False, length=4, acceptance=None, by_task={},
        by_segment={}, break_even=None,
    )  # fmt: skip
    return SpeculateReport(
        target="t",
        target_parameters=100,
        prompts=40,
        drafts={"draft": draft},
        greedy=greedy or every,
        sampled=None,
        runtimes=runtimes,
        serve={},
    )


TORCH_SLOW = runtime("transformers", (0.9, 0.8), 40)


def test_the_gate_rests_on_the_runtime_that_gains_and_names_it() -> None:
    found = judged(TORCH_SLOW, runtime("llama.cpp", (2.1, 1.9), 40))
    assert found.passed
    assert found.verdict == (
        "pass: lossless in transformers and llama.cpp; "
        "in llama.cpp 2.10 [1.90, 2.40] x the target alone"
    )
    # A gain that is shown counts before a larger one that is not.
    unsure = judged(runtime("transformers", (2.5, 0.7), 40), runtime("llama.cpp", (1.5, 1.2), 40))
    assert unsure.passed
    assert unsure.best.runtime == "llama.cpp"


def test_the_gate_fails_where_a_greedy_answer_differs_in_either_runtime() -> None:
    fast = runtime("llama.cpp", (2.1, 1.9), 39)
    lossy = judged(TORCH_SLOW, fast)
    assert (lossy.lossless, lossy.faster, lossy.passed) == (False, True, False)
    assert lossy.verdict == "FAIL: llama.cpp: 1 of 40 greedy answers differ from the target's"
    assert not drafted(lossy).lossless
    # The faster runtime is sound and the slower one is not: no pass either.
    tie = Divergence(id="a", token=3, alone=1, drafted=2, gap=1e-6, rounding=1e-5, tie=True)
    other = judged(
        runtime("transformers", (0.9, 0.8), 39),
        runtime("llama.cpp", (2.1, 1.9), 40),
        greedy=GreedyCheck(prompts=40, identical=39, tokens=400, divergences=(tie,)),
    )
    assert not other.passed
    assert other.verdict.startswith("FAIL: transformers: 1 of 40 greedy answers differ")
    # llama.cpp alone was timed: the answers that transformers gave still count.
    alone = judged(runtime("llama.cpp", (2.1, 1.9), 40), greedy=other.greedy)
    assert alone.faults == other.faults
    assert not judged(runtime("llama.cpp", (2.1, 1.9), 0, of=0)).passed


def test_the_gate_fails_without_a_gain_and_says_all_that_is_wrong() -> None:
    slow = judged(TORCH_SLOW, runtime("llama.cpp", (1.1, 0.9), 38))
    assert slow.verdict == (
        "FAIL: llama.cpp: 2 of 40 greedy answers differ from the target's; no runtime shows that "
        "the draft is faster than the target alone (best: llama.cpp, 1.10 [0.90, 1.40] x the "
        "target alone)"
    )


@pytest.mark.parametrize(("same", "code"), [(40, 0), (39, EXIT_GATE)])
def test_the_command_ends_with_the_gates_code(
    same: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judged(TORCH_SLOW, runtime("llama.cpp", (2.1, 1.9), same))

    def run(recipe: Recipe, root: Path, *_: Any, **__: Any) -> list[Any]:
        write_json(root / "speculate" / "speculate.json", found.model_dump(mode="json"))
        return []

    monkeypatch.setattr(cli_speculate, "run_stages", run)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_with(tmp_path).model_dump(mode="json", by_alias=True)))
    root = str(tmp_path / "run")
    made = CliRunner().invoke(app, ["speculate", str(path), "--run-dir", root])
    assert made.exit_code == code, made.output
    assert found.verdict in made.output


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    target = load_causal_lm(str(save(tmp_path / "target", 1)), device="cpu")
    write_jsonl(tmp_path / "held_out.jsonl", list(review_examples(3)))
    with pytest.raises(DataError, match="3 prompts"):
        run_speculate(
            recipe_with(tmp_path, segment=None),
            Models(target, {"draft": target}, {}),
            tmp_path,
            tmp_path,
            work=tmp_path / "work",
            progress=Silent(),
        )


def test_a_recipe_with_the_section_ends_with_the_stage(tmp_path: Path) -> None:
    assert stages_of(recipe_with(tmp_path))[-1].name == "speculate"
    assert "speculate" not in [s.name for s in stages_of(text_recipe(tmp_path))]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"draft_lengths": [3, 1]}, "rising order"),
        ({"draft": "other"}, "must be teacher"),
        ({"speed_prompts": 7}, "not be more than prompts"),
        ({"others": {"kd": "folder"}}, "must be hf:"),
        ({"draft": "hf:x"}, "untrained is of the student"),
        ({"target": "student"}, "cannot be the student"),
    ],
)
def test_sections_that_do_not_fit_are_refused(
    keys: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=says):
        recipe_with(tmp_path, **keys)


def test_files_that_are_named_are_known() -> None:
    section = SpeculateSection(
        draft="hf:a", undistilled=None, others={"kd": "hf:b"}, draft_gguf="d.gguf"
    )
    assert section.files == {"draft": "hf:a", "others.kd": "hf:b", "draft_gguf": "gguf:d.gguf"}


def test_commands_for_servers() -> None:
    served = Served("org/big", "a draft", 5, 2048)
    assert json.loads(vllm_command(served).split("--speculative-config ")[1].strip("'")) == (
        speculative_config(served)
    )
    command = llama_server_command(served, "big.gguf", "small.gguf")
    assert "-md small.gguf --spec-type draft-simple --spec-draft-n-max 5" in command


def test_a_trimmed_draft_is_not_handed_to_servers_without_a_word(tmp_path: Path) -> None:
    target = save(tmp_path / "target", 1)
    loaded = load_causal_lm(str(target), device="cpu")
    trimmed = trim_tokenizer(loaded.tokenizer, ["good film", "bad film"], limit=270)
    small = load_causal_lm(str(target), device="cpu")
    keep_rows(small.model, trimmed.kept)
    small.model.save_pretrained(tmp_path / "small")
    trimmed.tokenizer.save_pretrained(tmp_path / "small")
    draft = load_causal_lm(str(tmp_path / "small"), device="cpu")
    write_jsonl(tmp_path / "dataset" / "held_out.jsonl", list(review_examples(10)))
    recipe = recipe_with(
        target,
        serve={"target": str(target)},
        segment=None,
        undistilled=None,
        sampling_test=None,
    )
    where = {"progress": Silent(), "work": tmp_path / "work"}
    models = Models(loaded, {"draft": draft}, {})
    run_speculate(recipe, models, tmp_path / "dataset", tmp_path, **where)  # type: ignore[arg-type]
    serve = tmp_path / "work" / "serve"
    for name in ("vllm.sh", "llama-server.sh"):
        first, command = (serve / name).read_text().splitlines()
        assert first == ONE_VOCABULARY
        assert not command.startswith("#")
    lines = (serve / "transformers.py").read_text()
    compile(lines, "transformers.py", "exec")
    assert "own = AutoTokenizer.from_pretrained('train/student')" in lines
    assert "tokenizer=tokenizer, assistant_tokenizer=own)" in lines


def test_llama_cpp_is_served_at_its_own_best_length() -> None:
    served = Served("org/big", "draft", 5, 2048)
    made = _serve(served, SpeculateSection(), {"transformers": 5, "llama.cpp": 3})
    assert "--spec-draft-n-max 3 " in made["llama_server"]
    assert made["speculative_config"]["num_speculative_tokens"] == 5
    alone = _serve(served, SpeculateSection(), {"transformers": 5})
    assert "--spec-draft-n-max 5 " in alone["llama_server"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.gguf"):
        LlamaTarget(tmp_path / "none.gguf", 256, 1)


@pytest.mark.model
@pytest.mark.full
def test_llama_cpp_drafts_without_changing_the_answer() -> None:
    path = embedded_gguf()
    prompt = "The capital of France is Paris. The capital of Germany is Berlin. The capital of"
    alone = LlamaTarget(path, 256, 1)
    expected = alone.answer(prompt, 8)
    alone.close()
    for draft in (Draft(3, path), Draft(3)):
        server = LlamaTarget(path, 256, 1, draft)
        found = server.answer(prompt, 8)
        server.close()
        assert (found.text, found.tokens) == (expected.text, expected.tokens)
        assert 0 <= found.accepted <= found.drafted
        assert found.passes == found.tokens - found.accepted
