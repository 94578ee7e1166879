"""Drafts of tiny targets: lossless by transformers, their ids mapped, faults caught, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.generation import utils

from stillhouse.compress.speculate_counts import PromptRounds, acceptance
from stillhouse.compress.speculate_draft import Draft, make_draft
from stillhouse.compress.speculate_ids import map_ids
from stillhouse.compress.speculate_lossless import greedy_check, sampled_check
from stillhouse.compress.speculate_transformers import Answered, Target, open_target
from stillhouse.core.errors import UserError
from stillhouse.core.recipe_speculate import SamplingTestSection
from stillhouse.models.loading import Loaded
from stillhouse.train.embeddings import keep_rows
from stillhouse.train.vocabulary import trim_tokenizer
from tiny_models import TEXTS, byte_bpe, fallback_bpe, loud_llama, wordpiece

TOKENIZER = byte_bpe()
PROMPTS = [TOKENIZER(text)["input_ids"] for text in TEXTS]


def loaded(model: Any, tokenizer: Any = TOKENIZER) -> Loaded:
    return Loaded(model, tokenizer, "tiny", "1", 1, 1)


@pytest.fixture(scope="module")
def target() -> Target:
    return open_target(loaded(loud_llama(TOKENIZER, 2, 0.4)))


def relative(target: Target, noise: float) -> Any:
    """The target's weights, disturbed: a draft that is right now and then."""
    model = copy.deepcopy(target.loaded.model)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=draw)
    return model


@pytest.fixture(scope="module")
def draft(target: Target) -> Any:
    return relative(target, 0.35)


@pytest.mark.parametrize("length", [1, 3, 6])
def test_greedy_answers_are_the_targets_own(target: Target, draft: Any, length: int) -> None:
    helper = make_draft(loaded(draft), target.loaded, target.ends, length)
    rounds = []
    for name, prompt in enumerate(PROMPTS):
        alone = target.answer(prompt, 24)
        drafted = target.answer(prompt, 24, draft=helper)
        assert drafted.tokens == alone.tokens
        assert target.answer(prompt, 24, lookup=4).tokens == alone.tokens
        assert len(alone.rounds) == len(alone.tokens)
        assert len(drafted.rounds) <= len(alone.rounds)
        rounds.append(PromptRounds(str(name), name, "t", None, drafted.rounds))
    found = acceptance(rounds)
    assert found is not None
    assert 0.05 < found.rate.estimate < 0.98  # both happen
    assert helper.clock.tokens - len(PROMPTS) <= helper.clock.steps < helper.clock.tokens
    assert max(r.drafted for p in rounds for r in p.rounds) == length


def test_acceptance_is_what_transformers_own_drafts_have(target: Target, draft: Any) -> None:
    """The bare loop against transformers' `generate` as the assistant: the same rounds."""
    plain = copy.deepcopy(draft)
    plain.generation_config.num_assistant_tokens = 3
    plain.generation_config.num_assistant_tokens_schedule = "constant"
    plain.generation_config.assistant_confidence_threshold = 0.0
    ours = make_draft(loaded(draft), target.loaded, target.ends, 3)
    for prompt in PROMPTS[:3]:
        a = target.answer(prompt, 20, draft=ours)
        b = target.answer(prompt, 20, draft=plain)
        assert a.tokens == b.tokens
        assert [r.accepted for r in a.rounds] == [r.accepted for r in b.rounds]


def trimmed(model: Any, texts: list[str]) -> Loaded:
    cut = trim_tokenizer(TOKENIZER, texts)
    small = copy.deepcopy(model)
    keep_rows(small, cut.kept)
    return loaded(small, cut.tokenizer)


def test_a_trimmed_draft_is_mapped_to_the_targets_ids(target: Target, draft: Any) -> None:
    small = trimmed(draft, TEXTS[:2])
    assert len(small.tokenizer) < len(TOKENIZER)
    helper = make_draft(small, target.loaded, target.ends, 3)
    assert helper.ids is not None
    for old, new in TOKENIZER.get_vocab().items():  # a missing piece is spelt from shorter ones
        own = helper.ids.spelling[new]
        assert "".join(small.tokenizer.convert_ids_to_tokens(list(own))) == old
    accepted = 0
    for prompt in PROMPTS:
        alone = target.answer(prompt, 24)
        drafted = target.answer(prompt, 24, draft=helper)
        assert drafted.tokens == alone.tokens
        accepted += sum(r.accepted for r in drafted.rounds)
    assert accepted > 0


def test_a_trimmed_draft_samples_without_bias(target: Target, draft: Any) -> None:
    helper = make_draft(trimmed(draft, TEXTS[:2]), target.loaded, target.ends, 2)
    section = SamplingTestSection(prompts=30, fixed_prompts=1, seeds=60, tokens=2)
    found = sampled_check(target, helper, PROMPTS * 5, 12, section, seed=1)
    assert found.lossless
    assert 0.0 < found.expected_acceptance < 1.0


@pytest.mark.full
def test_sampled_answers_pass_and_a_broken_verifier_is_caught(
    target: Target, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = make_draft(loaded(draft), target.loaded, target.ends, 3)
    section = SamplingTestSection(prompts=40, fixed_prompts=1, seeds=100, tokens=2)
    sound = sampled_check(target, helper, PROMPTS * 7, 16, section, seed=0)
    assert sound.lossless, sound
    assert {t.name for t in sound.tests} == {"draft leak", "uniform", "prompt 1"}

    def accepts_all(ids: Any, logits: Any, length: int, new: Any, **_: Any) -> Any:
        last = torch.multinomial(new[:, length].softmax(-1), 1)
        return torch.cat([ids[:, -length:], last], 1), torch.tensor(length)

    monkeypatch.setattr(utils, "_speculative_sampling", accepts_all)
    broken = sampled_check(target, helper, PROMPTS * 7, 16, section, seed=0)
    assert not broken.lossless
    leak = next(t for t in broken.tests if t.name == "draft leak")
    assert leak.adjusted < 1e-4


def test_a_seed_decides_a_sampled_answer_and_nothing_else(target: Target, draft: Any) -> None:
    helper = make_draft(loaded(draft), target.loaded, target.ends, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kwargs: dict[str, Any] = {"draft": helper, "sampling_temperature": 1.0}
    a = target.answer(PROMPTS[0], 12, seed=5, **kwargs)
    target.answer(PROMPTS[1], 12, seed=6, **kwargs)  # the draft's cache is of another prompt now
    assert target.answer(PROMPTS[0], 12, seed=5, **kwargs).tokens == a.tokens
    assert torch.equal(torch.get_rng_state(), before)


def test_a_difference_is_a_tie_or_a_fault(target: Target) -> None:
    alone = target.answer(PROMPTS[0], 6)
    other = list(alone.tokens)
    other[2] = (other[2] + 1) % 200
    wrong = Answered(tuple(other), (), 0.0)
    short = Answered(alone.tokens[:3], (), 0.0)
    found = greedy_check(
        target, ["a", "b", "c"], [PROMPTS[0]] * 3, [alone] * 3, [alone, wrong, short]
    )
    assert (found.prompts, found.identical) == (3, 1)
    first, second = found.divergences
    assert (first.id, first.token) == ("b", 2)
    assert first.gap > 0.01
    assert not first.tie
    assert second.token == 3
    assert not found.lossless


def test_confidence_ends_a_draft_and_changes_no_answer(target: Target, draft: Any) -> None:
    sure = make_draft(loaded(draft), target.loaded, target.ends, 6, confidence=0.9)
    free = make_draft(loaded(draft), target.loaded, target.ends, 6)
    for prompt in PROMPTS[:3]:
        assert (
            target.answer(prompt, 16, draft=sure).tokens
            == target.answer(prompt, 16, draft=free).tokens
        )
    assert sure.clock.tokens < free.clock.tokens


@pytest.mark.parametrize("other", [wordpiece, fallback_bpe])
def test_unlike_tokenizers_are_refused(target: Target, other: Any) -> None:
    with pytest.raises(UserError, match=r"speculate\.draft"):
        map_ids(other(), TOKENIZER, 100, len(TOKENIZER))


def test_heads_padded_to_other_widths_are_one_tokenizer() -> None:
    count = len(TOKENIZER)
    assert map_ids(TOKENIZER, TOKENIZER, count, count) is None
    wider = map_ids(TOKENIZER, TOKENIZER, count + 3, count)
    assert wider is not None
    rows = wider.logits(torch.zeros(1, count + 3), count)
    assert rows.shape == (1, count)
    assert bool(rows.isfinite().all())
    assert wider.read([1, 2]) == [1, 2]


def test_a_draft_shows_its_targets_config(target: Target, draft: Any) -> None:
    helper = make_draft(loaded(draft), target.loaded, target.ends, 2)
    assert isinstance(helper, Draft)
    assert helper.config is target.loaded.model.config
