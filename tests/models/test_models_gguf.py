"""llama.cpp as a completer, on the real model inside its package."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.gguf_completer import open_gguf
from stillhouse.models.gguf_file import embedded_gguf
from stillhouse.models.hf_completer import open_hf_teacher

LABELS = ("positive", "negative")


def query(name: str, text: str) -> Query:
    return Query(id=name, messages=(Message(role="user", content=text),))


def answer(completer: Completer, asked: Query, sampling: Sampling) -> Sequence[Completion]:
    async def go() -> Sequence[Completion]:
        return await completer.complete(asked, sampling)

    return asyncio.run(go())


@pytest.fixture(scope="module")
def model() -> Completer:
    return open_gguf(str(embedded_gguf()), 2)


@pytest.mark.model
def test_labels_have_the_likelihoods_transformers_gives(model: Completer) -> None:
    labels = ("positive", "negative", "posit")  # one begins another: two nodes of the trie
    asked = query("q", "Is 'a dull film' positive or negative?")
    (got,) = answer(model, asked, Sampling(labels=labels))
    (reference,) = answer(open_hf_teacher("embedded", 2, "cpu"), asked, Sampling(labels=labels))
    assert got.label_logprobs is not None
    assert reference.label_logprobs is not None
    assert sum(map(math.exp, got.label_logprobs.values())) == pytest.approx(1, abs=1e-4)
    assert got.text == reference.text
    assert got.prompt_tokens == reference.prompt_tokens
    for label in labels:  # llama.cpp multiplies in 8-bit blocks
        assert got.label_logprobs[label] == pytest.approx(reference.label_logprobs[label], abs=0.25)


@pytest.mark.model
def test_text_logprobs_and_schema(model: Completer) -> None:
    (text,) = answer(model, query("t", "Say hello."), Sampling(max_tokens=3, logprobs=2))
    assert text.completion_tokens == 3
    assert text.finish_reason == "length"
    assert text.logprobs is not None
    assert all(len(token.top) == 2 for token in text.logprobs)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    (found,) = answer(
        model,
        query("j", "Is the sky blue? Answer in JSON."),
        Sampling(max_tokens=80, json_schema=schema),
    )
    assert isinstance(json.loads(found.text)["ok"], bool)


@pytest.mark.model
def test_sampled_labels_are_held_to_the_labels(model: Completer) -> None:
    sampling = Sampling(labels=LABELS, n=2, sampling_temperature=1.0, seed=1)
    samples = answer(model, query("s", "A dull film."), sampling)
    assert [sample.sample for sample in samples] == [0, 1]
    assert {sample.text for sample in samples} <= set(LABELS)


@pytest.mark.model
def test_too_long_a_query_is_a_teacher_error(model: Completer) -> None:
    with pytest.raises(TeacherError, match="query long: llama"):
        answer(model, query("long", "a " * 6000), Sampling(max_tokens=1))


@pytest.mark.model
def test_info_describes_the_file(model: Completer) -> None:
    assert model.info.parameters == 134_515_008
    assert model.info.size_bytes == embedded_gguf().stat().st_size
    assert model.info.local


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        open_gguf(str(tmp_path / "none.gguf"), 1)
    path = tmp_path / "bad.gguf"
    path.write_text("text")
    with pytest.raises(UserError, match="not a GGUF file"):
        open_gguf(str(path), 1)
    path.write_bytes(b"GGUF" + b"\x00" * 40)
    with pytest.raises(UserError, match="damaged GGUF"):
        open_gguf(str(path), 1)
