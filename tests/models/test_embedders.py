"""Embedders: unit rows, determinism, what they find alike; the pooling against naive code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stillhouse.core.errors import UserError
from stillhouse.models.embedders import Embedder, open_embedder
from stillhouse.models.hashing_embedder import DIMENSIONS, HashingEmbedder
from stillhouse.models.loading import load_encoder
from stillhouse.models.sentence_encoder import open_sentence_encoder, pool

CORPUS = [
    "A warm and funny film about two brothers.",
    "Two brothers in a warm, funny film.",
    "The engine of this car is loud and slow.",
    "Slow car with a loud engine.",
    "Interest rates rose again in March.",
]


def test_hashing_gives_unit_rows_and_finds_shared_words() -> None:
    embedder = open_embedder("hashing", CORPUS)
    assert isinstance(embedder, Embedder)
    assert embedder.dimensions == DIMENSIONS
    vectors = embedder.embed(CORPUS)
    assert vectors.shape == (5, DIMENSIONS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5
    assert similar[2, 3] > 0.5
    assert abs(similar[0, 4]) < 0.3


def test_hashing_is_the_same_each_time_and_in_any_company() -> None:
    first, second = HashingEmbedder(CORPUS), HashingEmbedder(CORPUS)
    together = first.embed(CORPUS)
    np.testing.assert_array_equal(together, second.embed(CORPUS))
    np.testing.assert_array_equal(together[2], second.embed([CORPUS[2]])[0])
    assert first.embed([]).shape == (0, DIMENSIONS)


def test_hashing_weighs_rare_words_more() -> None:
    corpus = [f"please sort this mail {word}" for word in ("alpha", "beta", "gamma", "delta")] * 5
    texts = ["please sort this mail alpha", "please sort this mail beta", "alpha"]
    fitted = HashingEmbedder(corpus).embed(texts)
    plain = HashingEmbedder().embed(texts)
    assert fitted[0] @ fitted[1] < plain[0] @ plain[1]
    assert fitted[0] @ fitted[2] > plain[0] @ plain[2]


def test_the_projection_keeps_cosines() -> None:
    # The sketch's error has a standard deviation of about 1 / sqrt(H) at most.
    wide, narrow = HashingEmbedder(CORPUS, dimensions=16 * 512), HashingEmbedder(CORPUS)
    exact, kept = wide.embed(CORPUS), narrow.embed(CORPUS)
    assert np.abs(exact @ exact.T - kept @ kept.T).max() < 4 / DIMENSIONS**0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_has_a_unit_vector(texts: list[str]) -> None:
    vectors = EMBEDDER.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


EMBEDDER = HashingEmbedder(CORPUS)


def test_an_unknown_embedder_is_named() -> None:
    with pytest.raises(UserError, match="bert"):
        open_embedder("bert", [])


@pytest.mark.parametrize(
    "mode", ["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]
)
def test_pooling_agrees_with_the_definition(mode: str) -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 5, 4)
    lengths = [5, 2, 1]
    mask = torch.tensor([[int(t < length) for t in range(5)] for length in lengths])
    for row, (length, got) in enumerate(zip(lengths, pool(states, mask, mode), strict=True)):
        tokens = [states[row, t].double() for t in range(length)]
        expected = {
            "cls": tokens[0],
            "lasttoken": tokens[-1],
            "max": torch.stack(tokens).max(dim=0).values,
            "mean": sum(tokens) / length,
            "mean_sqrt_len_tokens": sum(tokens) / length**0.5,
            "weightedmean": sum((t + 1) * v for t, v in enumerate(tokens))
            / sum(range(1, length + 1)),
        }[mode]
        torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-5)


def make_modules(folder: Path, modules: list[str], pooling: dict[str, object]) -> None:
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for index, kind in enumerate(modules, start=1):
        path = f"{index}_{kind}"
        (folder / path).mkdir(exist_ok=True)
        listed.append(
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
        )
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_a_folder_of_sentence_transformers_is_read_as_it_says(
    student_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sentences"
    loaded = load_encoder(str(student_folder))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    plain = open_sentence_encoder(str(folder), f"hf:{folder}")
    texts = ["one", "another text", "one", ""]
    mean = plain.embed(texts)
    assert mean.shape == (4, 16)
    np.testing.assert_array_equal(mean[0], mean[2])
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, atol=1e-5)
    assert plain.name.startswith(f"hf:{folder}@")

    make_modules(
        folder,
        ["Pooling", "Dense", "Normalize"],
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    )
    weight, bias = torch.randn(3, 32), torch.randn(3)
    save_file(
        {"linear.weight": weight, "linear.bias": bias}, folder / "2_Dense" / "model.safetensors"
    )
    (folder / "2_Dense" / "config.json").write_text(
        json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "q: "}, "default_prompt_name": "query"})
    )
    encoder = open_embedder(f"hf:{folder}", [])
    assert encoder.dimensions == 3
    got = encoder.embed(["another text"])[0]
    with torch.inference_mode():
        batch = loaded.tokenizer(["q: another text"], return_tensors="pt")
        states = loaded.model(**batch).last_hidden_state[0]
        vector = torch.tanh(weight @ torch.cat([states[0], states.mean(dim=0)]) + bias)
    np.testing.assert_allclose(got, (vector / vector.norm()).numpy(), atol=1e-5)

    make_modules(folder, ["Pooling", "CNN"], {"pooling_mode": "mean"})
    with pytest.raises(UserError, match="CNN"):
        open_embedder(f"hf:{folder}", [])
    make_modules(folder, ["Pooling"], {"pooling_mode": "median"})
    with pytest.raises(UserError, match="median"):
        open_embedder(f"hf:{folder}", [])


@pytest.mark.model
def test_minilm_knows_meaning_where_no_word_is_shared() -> None:
    encoder = open_embedder("minilm", [])
    assert encoder.dimensions == 384
    a, b, c = encoder.embed(["The movie was dreadful.", "A terrible film!", "Stocks fell."])
    assert a @ b > a @ c + 0.3
