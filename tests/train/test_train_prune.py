"""Pruning: which weights go, that they stay away, and that what is saved is a plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut_families import model_of
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    TrainerCallback,
)

from stillhouse.core.errors import UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_prune import PruneSection
from stillhouse.train.further import open_trained
from stillhouse.train.prune import Pruning, prunable_names, run_prune
from stillhouse.train.prune_weights import (
    input_norms,
    keep_highest,
    keep_pattern,
    prunable,
    prune_weights,
)
from stillhouse.train.quantize import distil_quantized
from stillhouse.train.sparsity import follows_pattern, measure_sparsity
from stillhouse.train.stage import run_train
from tiny_models import TEXTS, byte_bpe, text_recipe, tiny_llama

KEEP = Pruning.callbacks


def label_recipe(folder: Path, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "classification", "labels": ["positive", "negative"]},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{folder}"},
            "student": {"head": "label", "from": f"hf:{folder}", "layers": 2, "max_tokens": 48},
            "train": {"batch_size": 8, "learning_rate": 5e-3, "epochs": 1, "evals": 1},
            **more,
        }
    )


@pytest.fixture(scope="module")
def trained(
    encoder_folder: Path, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A label student that was trained."""
    work = tmp_path_factory.mktemp("trained")
    run_train(label_recipe(encoder_folder), dataset_folder, None, work, Silent())
    return work / "student"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_lowest_scores_go() -> None:
    score = torch.tensor([[5.0, 1.0, 4.0, 2.0], [3.0, 9.0, 0.5, 8.0]])
    kept = keep_highest(score, 0.5, by_output=False)
    assert kept.tolist() == [[True, False, True, False], [False, True, False, True]]
    kept = keep_highest(score, 0.25, by_output=True)
    assert kept.tolist() == [[True, False, True, True], [True, True, False, True]]
    assert (
        keep_highest(torch.ones(2, 4), 0.5, by_output=True).tolist()
        == [[True] * 2 + [False] * 2] * 2
    )
    score = torch.tensor([[5.0, 1.0, 4.0, 2.0, 1.0, 1.0, 3.0, 1.0]])
    assert keep_pattern(score, 2, 4).tolist() == [
        [True, False, True, False, True, False, True, False]
    ]


@pytest.mark.parametrize(
    ("share", "pattern"), [(0.5, None), (0.8, None), (0.5, (2, 4)), (0.75, (1, 4))]
)
def test_matrices_of_the_layers_lose_their_share_and_nothing_else_does(
    share: float, pattern: tuple[int, int] | None
) -> None:
    model = model_of("llama", 60)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    prune_weights(model, share=share, pattern=pattern)
    names = {f"{name}.weight" for name, _ in prunable(model)}
    assert len(names) == 4 * 7
    for name, weight in model.state_dict().items():
        if name not in names:
            assert torch.equal(weight, before[name]), name
            continue
        zeros = float((weight == 0).float().mean())
        assert zeros == pytest.approx(share, abs=1e-3)
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        if pattern is None:
            assert before[name][~kept].abs().max() <= before[name][kept].abs().min()
        else:
            groups = kept.reshape(len(kept), -1, pattern[1]).sum(-1)
            assert bool((groups == pattern[0]).all())


def test_importance_by_activation_is_the_norm_of_the_inputs() -> None:
    model, tokenizer = tiny_llama(byte_bpe(), layers=2), byte_bpe()
    found = input_norms(model, tokenizer, TEXTS, 3)
    texts = [TEXTS[0], TEXTS[2], TEXTS[5]]  # from the first to the last
    seen: dict[str, list[np.ndarray]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(name, []).append(given[0][0].numpy())
        )
        for name, layer in prunable(model)
    ]
    with torch.no_grad():
        for text in texts:  # one at a time: no padding
            model.model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    for hook in hooks:
        hook.remove()
    for name, rows in seen.items():
        wanted = np.sqrt(np.square(np.concatenate(rows)).sum(0))
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-4)
    prune_weights(model, share=0.5, norms=found)
    name, layer = next(iter(prunable(model)))
    assert bool(((layer.weight == 0).sum(1) == layer.in_features // 2).all()), name


def test_inputs_that_a_pattern_does_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="48 inputs, which 5 does not divide"):
        prune_weights(model_of("llama", 60), share=0.6, pattern=(2, 5))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "4:4"}, "keeps all"),
        ({"kind": "2:4", "share": 0.3}, "leave share out"),
        ({"kind": "blocks"}, "kind"),
        ({"importance": "activation"}, "single weights"),
        ({"share": 1.0}, "share"),
    ],
)
def test_sections_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PruneSection.model_validate(given)


@pytest.mark.parametrize("kind", ["unstructured", "2:4"])
def test_zeros_survive_healing_saving_and_loading(
    kind: str, trained: Path, encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    section = {"kind": kind, "epochs": 3, "importance": "activation"}
    recipe = label_recipe(encoder_folder, prune=section)
    outcome = run_prune(recipe, trained, dataset_folder, None, work=tmp_path, progress=Silent())
    assert outcome.summary["sparsity"] == pytest.approx(0.5, abs=1e-3)
    facts = read(tmp_path / "prune.json")
    before, after = weights(trained), weights(tmp_path / "student")
    names = prunable_names(trained, "label")
    assert names < set(before)
    zeros = sum(int((after[name] == 0).sum()) for name in names)
    assert zeros / sum(after[name].numel() for name in names) == pytest.approx(
        facts["after"]["sparsity"], abs=1e-6
    )
    moved = [
        name for name in names if not torch.equal(after[name], before[name] * (after[name] != 0))
    ]
    assert moved  # it healed: what stayed has learned
    assert facts["healing_helped"]
    assert facts["after"]["size_bytes"] == facts["before"]["size_bytes"]
    assert facts["after"]["packed_share"] < facts["before"]["packed_share"]
    assert "no smaller" in facts["note"]
    looks = facts["held_out"]
    assert looks["after"]["divergence"] < looks["shaped"]["divergence"]
    if kind == "2:4":
        assert facts["pattern_holds"]
        assert follows_pattern(tmp_path / "student", names, 2, 4)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert torch.equal(dict(loaded.named_parameters())[sorted(names)[0]], after[sorted(names)[0]])
    assert not (tmp_path / "checkpoints").exists()


def test_a_structured_student_is_smaller_and_keeps_its_trained_head(
    trained: Path, encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    section = {"kind": "structured", "share": 0.3, "epochs": 1, "cut": {"prefer": "width"}}
    recipe = label_recipe(encoder_folder, prune=section)
    run_prune(recipe, trained, dataset_folder, None, work=tmp_path, progress=Silent())
    facts = read(tmp_path / "prune.json")
    left = facts["parameters"]["after"] / facts["parameters"]["before"]
    assert left == pytest.approx(0.7, abs=0.02)
    assert facts["after"]["size_bytes"] < 0.8 * facts["before"]["size_bytes"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert model.config.id2label == {0: "positive", 1: "negative"}
    too_much = label_recipe(encoder_folder, prune={"share": 0.97})
    with pytest.raises(UserError, match=r"prune\.share"):
        run_prune(too_much, trained, dataset_folder, None, work=tmp_path / "b", progress=Silent())


def test_a_text_student_heals_under_its_own_teacher(
    lm_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = text_recipe(lm_folder, alpha=1.0, epochs=1, batch_size=12, evals=1)
    run_train(recipe, dataset_folder, None, tmp_path / "train", Silent())
    pruned = recipe.model_copy(update={"prune": PruneSection(kind="2:4", epochs=1)})
    student = tmp_path / "train" / "student"
    work = tmp_path / "prune"
    run_prune(pruned, student, dataset_folder, None, work=work, progress=Silent())
    assert read(work / "prune.json")["pattern_holds"]
    measured = measure_sparsity(work / "student", prunable_names(work / "student", "text"))
    assert measured.pruned == 0.5
    assert measured.whole < 0.5
    AutoModelForCausalLM.from_pretrained(work / "student")


class Killed(TrainerCallback):
    """Stops a run after its first look, as a kill would."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.full
def test_a_killed_healing_goes_on_to_the_same_weights(
    trained: Path,
    encoder_folder: Path,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = label_recipe(encoder_folder, prune={"kind": "unstructured", "epochs": 1})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_prune(recipe, trained, dataset_folder, None, work=whole, progress=Silent())
    with monkeypatch.context() as patched:
        patched.setattr(
            "stillhouse.train.prune.Pruning.callbacks",
            lambda self, model: (*KEEP(self, model), Killed()),
        )
        with pytest.raises(KeyboardInterrupt):
            run_prune(recipe, trained, dataset_folder, None, work=cut, progress=Silent())
    run_prune(recipe, trained, dataset_folder, None, work=cut, progress=Silent())
    first, second = weights(whole / "student"), weights(cut / "student")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_that_learned_to_be_quantized_is_a_plain_float_one(
    trained: Path, encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    recipe = label_recipe(encoder_folder)
    folder = distil_quantized(
        recipe, trained, dataset_folder, None, work=tmp_path, progress=Silent(), epochs=3
    )
    facts = read(tmp_path / "quantization_aware.json")
    assert facts["scheme"]["activations"] is True
    assert facts["held_out"]["after"]["divergence"] < facts["held_out"]["shaped"]["divergence"]
    assert facts["training_helped"]
    before, after = weights(trained), weights(folder)
    assert before.keys() == after.keys()
    assert all(weight.dtype == torch.float32 for weight in after.values())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model.classifier) is torch.nn.Linear


def test_a_student_of_other_labels_is_refused(trained: Path, encoder_folder: Path) -> None:
    recipe = label_recipe(encoder_folder)
    task = recipe.task.model_copy(update={"labels": ("negative", "positive")})
    other = recipe.model_copy(update={"task": task})
    with pytest.raises(UserError, match="the task's labels are"):
        open_trained(trained, other)


def test_training_that_does_not_help_is_thrown_away(
    trained: Path, encoder_folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    section = {"kind": "2:4", "epochs": 1, "learning_rate": 3.0}
    recipe = label_recipe(encoder_folder, prune=section)
    run_prune(recipe, trained, dataset_folder, None, work=tmp_path, progress=Silent())
    facts = read(tmp_path / "prune.json")
    assert not facts["healing_helped"]
    assert facts["held_out"]["after"] == facts["held_out"]["shaped"]
    before, after = weights(trained), weights(tmp_path / "student")
    assert all(torch.equal(after[name], before[name] * (after[name] != 0)) for name in after)
