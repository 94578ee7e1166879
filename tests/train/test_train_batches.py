"""Tokenised examples, exact prompt boundaries, padded batches, and their order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import DataError
from stillhouse.core.records import Example, Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.train.batches import (
    Collator,
    LengthGroupedSampler,
    encode_chats,
    encode_labels,
    padding_share,
)
from tiny_models import TEXTS, byte_bpe, review_examples, wordpiece

TASK = ClassificationTask(
    kind="classification", labels=("positive", "negative"), prompt="Review: {text}\nVerdict:"
)


def _chat(answer: str, *contents: str) -> Example:
    roles = ("system", "user") if len(contents) == 2 else ("user",)
    prompt = tuple(Message(role=r, content=c) for r, c in zip(roles, contents, strict=True))
    return Example(
        id="x",
        messages=(*prompt, Message(role="assistant", content=answer)),
        task="task",
        group="g",
        teacher="t",
        teacher_revision="1",
    )


def test_loss_is_on_the_completion_and_its_end_alone() -> None:
    tokenizer = byte_bpe()
    row = encode_chats([_chat("a warm film", "be brief", TEXTS[0])], tokenizer, 200).rows[0]
    ids, labels = row["input_ids"], row["labels"]
    learned = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == "a warm film<|end|>"
    assert labels[-len(learned) :] == learned
    before = tokenizer.decode(ids[: -len(learned)])
    assert before == (
        f"<|start|>system\nbe brief<|end|>\n<|start|>user\n{TEXTS[0]}<|end|>\n<|start|>assistant\n"
    )
    asked = tokenizer.apply_chat_template(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXTS[0]}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert ids[: len(asked)] == asked, "trained on the very tokens it is asked with"


def test_a_long_prompt_loses_its_head_and_is_counted() -> None:
    tokenizer = byte_bpe()
    short, long = _chat("yes", "a film"), _chat("yes", " ".join(TEXTS))
    whole = encode_chats([short, long], tokenizer, 500)
    cut = encode_chats([short, long], tokenizer, 30)
    assert (whole.cut, cut.cut) == (0, 1)
    assert cut.rows[0] == whole.rows[0]
    assert len(cut.rows[1]["input_ids"]) == 30
    assert cut.rows[1]["input_ids"] == whole.rows[1]["input_ids"][-30:]
    assert tokenizer.decode([t for t in cut.rows[1]["labels"] if t != -100]) == "yes<|end|>"


def test_label_examples_read_the_varying_text_only() -> None:
    tokenizer = wordpiece()
    plain = review_examples(2)
    wrapped = [
        e.model_copy(
            update={"messages": (*TASK.messages_for(e.messages[0].content), e.messages[-1])}
        )
        for e in plain
    ]
    rows = encode_labels(wrapped, TASK, tokenizer, 48).rows
    assert [row["input_ids"] for row in rows.items] == [
        tokenizer(e.messages[0].content)["input_ids"] for e in plain
    ]
    assert [row["labels"] for row in rows.items] == [0, 1]
    assert rows[1]["teacher_probabilities"] == plain[1].label_probabilities
    assert encode_labels(wrapped, TASK, tokenizer, 5).cut == 1


def test_a_label_outside_the_task_is_named() -> None:
    bad = review_examples(1)[0].model_copy(update={"label": "mixed"})
    with pytest.raises(DataError, match=r"example r0: has no label of the task \(got 'mixed'\)"):
        encode_labels([bad], TASK, wordpiece(), 48)


def test_batches_are_padded_on_the_right() -> None:
    tokenizer = byte_bpe()
    rows = encode_chats([_chat("yes", "a"), _chat("no no", TEXTS[0])], tokenizer, 200).rows
    batch = Collator(tokenizer.pad_token_id)(rows.items)
    shape = (2, max(rows.lengths))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == shape
    assert batch["labels"].shape == shape
    assert batch["attention_mask"].sum(1).tolist() == rows.lengths
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    labels = Collator(0)(encode_labels(review_examples(3), TASK, wordpiece(), 48).rows.items)
    assert labels["labels"].tolist() == [0, 1, 0]
    torch.testing.assert_close(
        labels["teacher_logits"].exp()[0], torch.tensor(review_examples(1)[0].label_probabilities)
    )
    bare = encode_labels(review_examples(2, beliefs=False), TASK, wordpiece(), 48).rows.items
    assert "teacher_logits" not in Collator(0)(bare)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=200),
    batch=st.integers(1, 16),
    epoch=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_example_once_an_epoch_in_an_order_of_seed_and_epoch(
    lengths: list[int], batch: int, epoch: int
) -> None:
    one, two = (LengthGroupedSampler(lengths, batch, seed=3) for _ in range(2))
    one.set_epoch(epoch)
    two.set_epoch(epoch)
    order = list(one)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(two)


def test_grouping_removes_most_padding_and_epochs_differ() -> None:
    lengths = [int(x) for x in torch.randint(5, 60, (2000,), generator=torch.manual_seed(0))]
    sampler = LengthGroupedSampler(lengths, 16, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert padding_share(lengths, range(2000), 16) > 0.4
    assert padding_share(lengths, first, 16) < 0.05
    firsts = [lengths[i] for i in first[::16]]
    assert firsts != sorted(firsts), "batches of all lengths come in turn"
