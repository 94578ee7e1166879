"""An API's stored logprobs as signals: aligned token by token, or a counted hard label."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, Message, TokenLogprob
from stillhouse.models.signals import SparseSignal
from stillhouse.train.cached_teacher import open_signals
from stillhouse.train.capture import run_capture
from stillhouse.train.capture_stored import TokenNames, align
from stillhouse.train.planning import check_recipe
from stillhouse.train.stage import run_train
from tiny_models import TEXTS, byte_bpe, write_jsonl

TOKENIZER = byte_bpe()
NAMES = TokenNames(TOKENIZER)
END = int(TOKENIZER.eos_token_id)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def said(text: str, query: str = "q", end: str | None = None, **more: Any) -> Completion:
    tokens = [
        TokenLogprob(
            token=TOKENIZER.decode([number]),
            logprob=math.log(0.6),
            top=((TOKENIZER.decode([number]), math.log(0.6)), (" film", math.log(0.25))),
        )
        for number in ids_of(text)
    ]
    if end is not None:
        tokens.append(TokenLogprob(token=end, logprob=math.log(0.9)))
    found = {"query_id": query, "text": text, "model": "m", "revision": "r1"}
    return Completion(**found, logprobs=tuple(tokens), **more)


def test_an_answer_of_the_same_tokens_aligns() -> None:
    text = "a boring plot"
    targets = [*ids_of(text), END]
    aligned = align(said(text), text, targets, NAMES)
    assert aligned.reason is None
    film = ids_of(" film")[0]
    assert [max(row, key=row.__getitem__) for row in aligned.kept] == targets
    assert aligned.kept[0] == {targets[0]: math.log(0.6), film: math.log(0.25)}
    assert aligned.kept[-1] == {END: 0.0}  # not listed: a hard label
    for end in ("<|end|>", ""):
        ended = align(said(text, end=end), text, targets, NAMES)
        assert ended.reason is None
        assert len(ended.kept) == len(targets)
    cut = align(said(text), text, targets[:2], NAMES)
    assert cut.reason is None
    assert len(cut.kept) == 2


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (None, "other_text"),
        (said("dull").model_copy(update={"logprobs": None}), "no_logprobs"),
        (said("a dull film"), "other_text"),
        (
            said("dull").model_copy(
                update={"logprobs": (TokenLogprob(token="dull", logprob=-1.0),)}
            ),
            "other_tokens",
        ),
    ],
)
def test_what_does_not_align_says_why(completion: Completion | None, reason: str) -> None:
    targets = [*ids_of("dull"), END]
    if reason == "other_tokens":
        targets = [ids_of("d")[0], ids_of("u")[0], END]
    aligned = align(completion, "dull", targets, NAMES)
    assert (aligned.reason, aligned.kept) == (reason, ())


def test_a_text_of_several_ids_is_no_token() -> None:
    """The bytes of a character that is two tokens decode to the same replacement sign."""
    text = "café ✨"
    aligned = align(said(text), text, [*ids_of(text), END], NAMES)
    assert aligned.reason in ("unknown_token", "other_text")
    assert NAMES.id_of("\ufffd") is None
    assert NAMES.id_of("") is None


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="ascii"), min_size=1, max_size=40))
def test_any_plain_text_aligns_with_its_own_tokens(text: str) -> None:
    ids = ids_of(text)
    aligned = align(said(text), text, [*ids, END], NAMES)
    assert aligned.reason is None
    assert [next(iter(row)) for row in aligned.kept] == [*ids, END]


def recipe_for(lm_folder: Path, **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "task": {"kind": "generation"},
            "traffic": {"path": "x"},
            "teacher": {
                "model": "openai-compatible:m",
                "base_url": "http://127.0.0.1:1/v1",
                "token_logprobs": 2,
                "terms": {"waived_by": "me", "reason": "test"},
                **more.pop("teacher", {}),
            },
            "student": {"head": "text", "from": f"hf:{lm_folder}", "max_tokens": 64},
            "train": {
                "batch_size": 4,
                "epochs": 1,
                "evals": 1,
                "signals": "cache",
                **more.pop("train", {}),
            },
            **more,
        }
    )


def dataset(folder: Path, wrong: int = 0) -> None:
    examples, answers = [], []
    for number in range(12):
        text = TEXTS[number % len(TEXTS)]
        examples.append(
            Example(
                id=f"q{number}",
                messages=(
                    Message(role="user", content=f"say {number}"),
                    Message(role="assistant", content=text),
                ),
                task="task",
                group=f"g{number}",
                teacher="m",
                teacher_revision="r1",
            )
        )
        answers.append(said(text if number >= wrong else text + "!", f"q{number}"))
    write_jsonl(folder / "dataset" / "train.jsonl", list(examples[:9]))
    write_jsonl(folder / "dataset" / "held_out.jsonl", list(examples[9:]))
    write_jsonl(folder / "ask" / "completions.jsonl", list(answers))


def test_a_student_is_trained_from_what_an_api_said(lm_folder: Path, tmp_path: Path) -> None:
    dataset(tmp_path, wrong=1)
    recipe = recipe_for(lm_folder)
    check_recipe(recipe)
    cache = tmp_path / "capture"
    outcome = run_capture(recipe, tmp_path / "dataset", tmp_path / "ask", cache, Silent())
    assert (outcome.summary["format"], outcome.summary["unaligned"]) == ("top_k", 1)
    signals = open_signals(cache)
    assert signals.train.manifest.unaligned == {"other_text": 1}
    stored = signals.train.read([1]).signal
    assert isinstance(stored, SparseSignal)
    targets = [*ids_of(TEXTS[1]), END]
    assert stored.token_ids[:, 0].tolist() == targets
    torch.testing.assert_close(stored.log_probs[0, :2].exp(), torch.tensor([0.6, 0.25]), atol=1e-3,
                               rtol=0)  # fmt: skip
    torch.testing.assert_close(stored.tail_log_mass[0].exp(), torch.tensor(0.15), atol=1e-3, rtol=0)
    assert stored.tail_log_mass[-1] == -torch.inf
    hard = signals.train.read([0]).signal
    assert isinstance(hard, SparseSignal)
    assert (hard.log_probs[:, 0] == 0).all()
    assert all(len(set(row)) == len(row) for row in hard.token_ids.tolist())
    run_train(recipe, tmp_path / "dataset", None, tmp_path / "train", Silent(), signals=cache)
    rows = json.loads((tmp_path / "train" / "history.json").read_text())
    assert math.isfinite(rows[-1]["held_out_divergence"])


def test_too_many_unaligned_answers_are_refused(lm_folder: Path, tmp_path: Path) -> None:
    dataset(tmp_path, wrong=4)
    with pytest.raises(UserError, match=r"most_unaligned.*4 of 12.*4 other_text") as caught:
        run_capture(
            recipe_for(lm_folder), tmp_path / "dataset", tmp_path / "ask", tmp_path / "c", Silent()
        )
    assert "\n" not in str(caught.value)
    allowed = recipe_for(lm_folder, capture={"most_unaligned": 0.5})
    run_capture(allowed, tmp_path / "dataset", tmp_path / "ask", tmp_path / "c", Silent())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"teacher": {"token_logprobs": 0}}, r"teacher\.token_logprobs"),
        ({"capture": {"format": "sampled"}}, r"capture\.format"),
        ({"capture": {"format": "hidden"}}, r"capture\.format"),
        ({"capture": {"read_from": "teacher"}}, r"capture\.read_from"),
        ({"train": {"alpha": 0}}, r"train\.signals"),
        ({"train": {"on_policy": {}}}, r"train\.on_policy"),
        ({"train": {"teachers": {"members": [{"model": "hf:x"}]}}}, r"train\.teachers"),
        ({"train": {"divergence": "reverse_kl"}}, r"train\.divergence"),
        ({"capture": {"samples": 8}}, r"capture\.samples.*does nothing for format top_k"),
        ({"student": {"head": "text", "from": "hf:x", "vocabulary": "task"}}, "vocabulary"),
    ],
)
def test_an_api_cache_that_cannot_work_is_refused_before(
    lm_folder: Path, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        check_recipe(recipe_for(lm_folder, **more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"capture": {"distillation_temperature": 1.0}, "train": {"alpha": 1.0}},
            "cannot stand for",
        ),
        ({"capture": {"read_from": "logprobs"}}, r"teacher\.token_logprobs"),
        ({"train": {"alpha": 0}}, r"train\.signals"),
    ],
)
def test_a_local_cache_that_cannot_work_is_refused_before(
    lm_folder: Path, more: dict[str, Any], says: str
) -> None:
    raw = recipe_for(lm_folder, **more).model_dump(by_alias=True)
    local = {"model": f"hf:{lm_folder}", "token_logprobs": 0}
    with pytest.raises(RecipeError, match=says):
        check_recipe(Recipe.model_validate({**raw, "teacher": local}))


def test_a_label_student_takes_whole_beliefs_alone(lm_folder: Path) -> None:
    raw = recipe_for(lm_folder).model_dump(by_alias=True)
    raw |= {
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "student": {"head": "label", "from": "hf:x"},
        "teacher": {"model": "embedded"},
    }
    check_recipe(Recipe.model_validate(raw))
    with pytest.raises(RecipeError, match=r"capture\.format"):
        check_recipe(Recipe.model_validate({**raw, "capture": {"format": "top_k"}}))
