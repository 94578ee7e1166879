"""Label likelihoods: against a forward pass per label written straight from the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import UserError
from stillhouse.core.records import Message
from stillhouse.models.chat import answer_ids, end_ids, prompt_ids, prompt_text
from stillhouse.models.label_likelihood import LabelScorer
from stillhouse.models.label_trie import branches, ended_sequences
from stillhouse.models.prefix_cache import PrefixReader, common_prefix

Chat = Callable[[str], tuple[Message, ...]]
TEXTS = ["a delight", "dull beyond words, from start to end", "", "so-so"]


@torch.inference_mode()
def naive_scores(
    model: Any, prompts: Sequence[Sequence[int]], sequences: Sequence[Sequence[int]]
) -> torch.Tensor:
    """One forward pass per prompt, label and token; no cache, no batch, no padding."""
    rows = []
    for prompt in prompts:
        row = []
        for sequence in sequences:
            total = 0.0
            for d, token in enumerate(sequence):
                ways = sorted({s[d] for s in sequences if len(s) > d and s[:d] == sequence[:d]})
                logits = model(input_ids=torch.tensor([[*prompt, *sequence[:d]]])).logits[0, -1]
                total += float(logits[ways].log_softmax(-1)[ways.index(token)])
            row.append(total)
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "labels",
    [
        ("fresh", "rotten"),
        ("rec", "rec.autos", "rec.sport", "sci"),  # one is the beginning of others
        ("label-a", "label-b", "label-c"),  # nothing to choose at the first token
    ],
)
def test_scores_equal_the_definition(
    llama: Any, tokenizer: Any, chat: Chat, labels: tuple[str, ...]
) -> None:
    scorer = LabelScorer(llama, tokenizer, labels)
    chats = [chat(text) for text in TEXTS]
    got = scorer.score(chats)
    expected = naive_scores(llama, prompt_ids(tokenizer, chats), scorer.sequences)
    assert got.shape == (len(TEXTS), len(labels))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(len(TEXTS)), rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(llama: Any, tokenizer: Any, chat: Chat) -> None:
    labels = ("rec", "rec.autos", "sci")
    chats = [chat(text) for text in TEXTS]
    whole = LabelScorer(llama, tokenizer, labels).score(chats)
    reused = LabelScorer(llama, tokenizer, labels)
    for i, one in enumerate(chats):
        torch.testing.assert_close(reused.score([one])[0], whole[i], rtol=0, atol=1e-4)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(
        reused.score([chats[i] for i in order]), whole[order], rtol=0, atol=1e-4
    )


def test_shared_prefix_is_read_once_and_changes_nothing(
    llama: Any, tokenizer: Any, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = llama.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    reader = PrefixReader(llama, 0)
    monkeypatch.setattr(llama, "forward", spy)
    prompts = prompt_ids(tokenizer, [chat(text) for text in TEXTS])
    shared = common_prefix(prompts)
    read = [reader.read(prompts), reader.read(prompts[:2])]
    assert seen[0] == (1, shared)
    assert [shape[0] for shape in seen] == [1, 4, 2]
    assert seen[1][1] == max(map(len, prompts)) - shared
    for i, prompt in enumerate(prompts):
        plain = forward(input_ids=torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(read[0].logits[i], plain, rtol=0, atol=1e-4)
        if i < 2:
            torch.testing.assert_close(read[1].logits[i], plain, rtol=0, atol=1e-4)


def test_other_chats_after_the_first_are_read_afresh(
    llama: Any, tokenizer: Any, chat: Chat
) -> None:
    reader = PrefixReader(llama, 0)
    reader.read(prompt_ids(tokenizer, [chat(text) for text in TEXTS]))
    other = prompt_ids(
        tokenizer, [(Message(role="user", content=f"Quite another task: {t}"),) for t in TEXTS]
    )
    got = reader.read(other).logits
    for i, prompt in enumerate(other):
        plain = llama(input_ids=torch.tensor([prompt])).logits[0, -1]
        torch.testing.assert_close(got[i], plain, rtol=0, atol=1e-4)


def test_models_with_another_kind_of_cache_are_read_plainly(tokenizer: Any, chat: Chat) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=8,
            initializer_range=0.3,
        )
    ).eval()
    scorer = LabelScorer(model, tokenizer, ("rec", "rec.autos", "sci"))
    chats = [chat(text) for text in TEXTS]
    expected = naive_scores(model, prompt_ids(tokenizer, chats), scorer.sequences)
    torch.testing.assert_close(scorer.score(chats), expected, rtol=0, atol=1e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_common_prefix_is_shared_and_leaves_a_token(prompts: list[list[int]]) -> None:
    size = common_prefix(prompts)
    assert all(p[:size] == prompts[0][:size] and len(p) > size for p in prompts)
    longer = all(len(p) > size + 1 and p[: size + 1] == prompts[0][: size + 1] for p in prompts)
    assert not longer


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
def test_every_label_is_told_apart_by_its_choices(plain: list[tuple[int, ...]]) -> None:
    names = [str(index) for index in range(len(plain))]
    sequences = ended_sequences(names, plain, [1])
    nodes = branches(sequences)
    choices = [tuple(node.taken[label] for node in nodes) for label in range(len(plain))]
    assert len(set(choices)) == len(plain)
    # under uniform choices the probabilities of all labels sum to one
    total = sum(
        torch.tensor([1 / len(n.ways) for n in nodes if n.taken[c] >= 0]).prod().item()
        for c in range(len(plain))
    )
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("plain", "ends"), [([(5, 6), (5, 6)], [1]), ([(5,), (5, 6)], [])])
def test_labels_that_look_alike_are_an_error(plain: list[tuple[int, ...]], ends: list[int]) -> None:
    with pytest.raises(UserError, match="cannot tell 'a' and 'b' apart"):
        ended_sequences(("a", "b"), plain, ends)


def test_prompts_follow_the_template_or_the_bare_text(tokenizer: Any, chat: Chat) -> None:
    messages = chat("x")
    text = prompt_text(tokenizer, messages)
    assert text.startswith("<system>You label")
    assert text.endswith("<end><assistant>")
    bare = type("Bare", (), {"chat_template": None})()
    assert prompt_text(bare, messages) == "\n\n".join(m.content for m in messages)


def test_template_that_refuses_system_messages_gets_them_in_the_user_turn(chat: Chat) -> None:
    from jinja2.exceptions import TemplateError

    class Strict:
        chat_template = "yes"

        def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
            if turns[0]["role"] == "system":
                raise TemplateError("no system role")
            return "|".join(turn["content"] for turn in turns)

    assert prompt_text(Strict(), chat("x")).startswith("You label film reviews with one word.\n\nR")
    with pytest.raises(UserError, match="chat template"):
        prompt_text(Strict(), chat("x")[:1])


def test_answers_continue_the_prompt(tokenizer: Any) -> None:
    prompt = "<user>hi<end><assistant>"
    ids = answer_ids(tokenizer, "fresh", prompt)
    assert tokenizer.decode(ids) == "fresh"
    assert end_ids(tokenizer) == [1]
