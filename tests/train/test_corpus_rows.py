"""Rows of a corpus, and the sums that figures are made of, against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from stillhouse.core.corpus import Passage
from stillhouse.core.progress import Silent
from stillhouse.train.corpus_choices import Choices
from stillhouse.train.corpus_report import Asked, by_language, choice_figures, text_figures
from stillhouse.train.corpus_rows import Cutter, frame_of
from stillhouse.train.corpus_scores import Chosen, Counted, Sums, choose, measure_pace, score_texts
from tiny_models import TEXTS, byte_bpe, loud_llama, tiny_llama, wordpiece

BPE, PIECES = byte_bpe(), wordpiece()


def passages(texts: list[str]) -> list[Passage]:
    return [
        Passage(id=str(n), text=text, group=str(n // 2), language=("en", "fr")[n % 2])
        for n, text in enumerate(texts)
    ]


def cutter(kind: str, most: int) -> Cutter:
    tokenizer = BPE if kind == "causal_lm" else PIECES
    return Cutter(tokenizer, kind, most, vocabulary=len(tokenizer), seed=1, mask_share=0.15)


def masked_model() -> BertForMaskedLM:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=48, initializer_range=0.5,
    )  # fmt: skip
    return BertForMaskedLM(config).eval()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8), st.integers(8, 40))
def test_blocks_joined_are_the_texts_joined(texts: list[str], most: int) -> None:
    rows = cutter("causal_lm", most).training(passages(texts))
    joined = [token for item in rows.items for token in item["input_ids"]]
    end = BPE.eos_token_id
    plain = [token for text in texts for token in [*BPE(text)["input_ids"], end]]
    assert plain[: len(joined)] == joined
    assert len(plain) - len(joined) <= 1  # a block of one token foretells nothing
    assert all(len(item["input_ids"]) <= most for item in rows.items)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8), st.integers(8, 40))
def test_pieces_of_a_masked_text_hold_all_of_it(texts: list[str], most: int) -> None:
    scored = cutter("masked_lm", most).scoring(passages(texts))
    before, after = frame_of(PIECES)
    assert (list(before), list(after)) == ([PIECES.cls_token_id], [PIECES.sep_token_id])
    found: dict[int, list[int]] = {}
    for number, item in zip(scored.of, scored.rows.items, strict=True):
        assert len(item["input_ids"]) <= most
        found.setdefault(number, []).extend(item["input_ids"][1:-1])
    for number, text in enumerate(texts):
        assert found[number] == PIECES(text, add_special_tokens=False)["input_ids"]


def test_scores_of_texts_against_a_plain_loop() -> None:
    texts = [" ".join(TEXTS[n:]) for n in range(len(TEXTS))]
    models = {"teacher": loud_llama(BPE, 2, 0.5), "student": loud_llama(BPE, 1, 0.5)}
    scored = cutter("causal_lm", 16).scoring(passages(texts))
    counted = score_texts(models, "causal_lm", scored, BPE, texts=len(texts), progress=Silent())
    for number in range(len(texts)):
        pieces = [i for i, of in enumerate(scored.of) if of == number]
        nats, right, divergence, agreed, targets = 0.0, 0, 0.0, 0, 0
        for piece in pieces:
            ids = torch.tensor([scored.rows[piece]["input_ids"]])
            with torch.no_grad():
                p = models["teacher"](ids).logits[0, :-1].double().log_softmax(-1)
                q = models["student"](ids).logits[0, :-1].double().log_softmax(-1)
            for position, token in enumerate(ids[0, 1:].tolist()):
                nats -= float(q[position, token])
                right += int(q[position].argmax() == token)
                divergence += float((p[position].exp() * (p[position] - q[position])).sum())
                agreed += int(q[position].argmax() == p[position].argmax())
                targets += 1
        student = counted.models["student"]
        assert counted.targets[number] == targets
        assert student.nats[number] == pytest.approx(nats, rel=1e-5)
        assert student.right[number] == right
        assert student.divergence[number] == pytest.approx(divergence, rel=1e-4)
        assert student.agreed[number] == agreed
    assert counted.models["teacher"].divergence == pytest.approx(np.zeros(len(texts)), abs=1e-6)


def test_masked_scores_count_hidden_tokens_alone() -> None:
    model = masked_model()
    scored = cutter("masked_lm", 16).scoring(passages(TEXTS))
    counted = score_texts(
        {"teacher": model}, "masked_lm", scored, PIECES, texts=len(TEXTS), progress=Silent()
    )
    nats = np.zeros(len(TEXTS))
    for piece, number in enumerate(scored.of):
        item = scored.rows[piece]
        with torch.no_grad():
            logits = model(torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)
        for position, token in enumerate(item["labels"]):
            if token != -100:
                nats[number] -= float(logits[position, token])
    assert counted.models["teacher"].nats == pytest.approx(nats, rel=1e-4)


def test_the_likeliest_choice_against_a_plain_loop() -> None:
    model = loud_llama(BPE, 2, 0.5)
    questions = [
        Choices(prompt="the film is", choices=(" gripping", " dull and boring", " warm"), answer=0),
        Choices(prompt="a tired", choices=(" script", " plot"), answer=" plot"),
    ]
    found = choose(model, BPE, questions, 64)
    for number, question in enumerate(questions):
        sums = []
        for choice in question.choices:
            ids = BPE(question.prompt + choice)["input_ids"]
            start = len(BPE(question.prompt)["input_ids"])
            assert ids[:start] == BPE(question.prompt)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[t - 1, ids[t]]) for t in range(start, len(ids))))
        sizes = [len(choice.encode()) for choice in question.choices]
        assert found.by_sum[number] == int(np.argmax(sums))
        assert found.by_bytes[number] == int(np.argmax(np.divide(sums, sizes)))
    assert [question.right for question in questions] == [0, 1]


def test_figures_by_hand() -> None:
    targets = np.array([2.0, 2.0, 4.0, 0.0])
    zero = np.zeros(4)
    teacher = Sums(np.array([2.0, 2.0, 4.0, 0]), np.array([2.0, 1.0, 3.0, 0]), zero, targets)
    student = Sums(2 * teacher.nats, np.array([1.0, 1.0, 1.0, 0]), teacher.nats, zero)
    counted = Counted(targets, {"teacher": teacher, "student": student})
    asked = Asked(0.95, 200, 0)
    groups = ["a", "b", "c", "d"]
    found = text_figures(counted, groups, asked, kind="causal_lm")
    assert found["teacher"]["perplexity"]["estimate"] == pytest.approx(math.e)
    assert found["student"]["perplexity"]["estimate"] == pytest.approx(math.e**2)
    kept = found["student"]["retention"]
    assert kept["accuracy"]["estimate"] == pytest.approx(3 / 6)
    assert kept["perplexity"]["estimate"] == pytest.approx(1 / math.e)
    assert found["student"]["divergence"]["estimate"] == pytest.approx(1.0)
    assert found["student"]["texts"] == 3
    one = by_language(counted, groups, ["en", "fr", "en", "de"], asked, kind="masked_lm")
    assert set(one) == {"en", "fr"}  # nothing of the German text was a target
    assert one["fr"]["student"]["accuracy"] == {"estimate": 0.5, "n": 1}  # one group: no interval


def test_zero_shot_figures_by_hand() -> None:
    asked = Asked(0.95, 200, 0)
    right = [0, 1, 0, 1]
    chosen = {
        "teacher": Chosen([0, 1, 0, 0], [0, 1, 0, 1]),
        "student": Chosen([0, 1, 1, 0], [1, 0, 1, 0]),
    }
    found = choice_figures(chosen, right, ["a", "b", "c", "d"], asked)
    assert found["teacher"]["accuracy"]["estimate"] == 0.75
    assert found["student"]["retention"]["accuracy"]["estimate"] == pytest.approx(2 / 3)
    assert found["student"]["retention"]["accuracy_by_bytes"]["estimate"] == 0


def test_pace_is_tokens_over_seconds() -> None:
    ticks = iter(float(n) for n in range(100))
    scored = cutter("causal_lm", 16).scoring(passages(TEXTS))
    tokens = sum(len(item["input_ids"]) for item in scored.rows.items[:3])
    pace = measure_pace(
        {"teacher": tiny_llama(BPE), "student": tiny_llama(BPE, 1)}, "causal_lm", scored, BPE,
        rows=3, repeats=2, clock=lambda: next(ticks),
    )  # fmt: skip
    assert pace["student"].repeats == (tokens, tokens)
