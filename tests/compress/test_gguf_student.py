"""A GGUF artefact opened as a student: it answers as the float student does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.compress.gguf_export import FILE, export_gguf
from stillhouse.core.artefact import ARTEFACT
from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, Message, Query
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.gguf_student import GgufStudent
from stillhouse.models.student import open_student
from tiny_models import byte_bpe

pytest.importorskip("xllamacpp")
LABELS = ("positive", "posit", "n\u00e9gatif")  # one begins another; one has a split character
CLASSES = ClassificationTask(kind="classification", labels=LABELS, prompt="{text}")
TEXT = GenerationTask(kind="generation")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def make(folder: Path, *, template: bool, longest: int) -> Path:
    """A student of two layers whose answers are far from one another, and its artefact."""
    tokenizer = byte_bpe()
    tokenizer.model_max_length = longest
    if not template:
        tokenizer.chat_template = None
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            max_position_embeddings=160,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.4)
    model.save_pretrained(folder / "float")
    tokenizer.save_pretrained(folder / "float")
    export_gguf(folder / "float", folder / "gguf", "f32", task=CLASSES)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("chat"), template=True, longest=60)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("plain"), template=False, longest=10**30)


def query(name: str, text: str, system: str = "") -> Query:
    head = [Message(role="system", content=system)] if system else []
    return Query(id=name, messages=(*head, Message(role="user", content=text)))


QUERIES = (
    query("a", "the cast is wonderful"),
    query("b", "a tired script", system="Judge."),
    query("c", "dull, lifeless and far too long " * 12),  # loses its head
)


def answers(completer: Completer, asked: Sequence[Query], sampling: Sampling) -> list[Completion]:
    async def go() -> list[Completion]:
        found = await asyncio.gather(*(completer.complete(one, sampling) for one in asked))
        return [one for each in found for one in each]

    return asyncio.run(go())


@pytest.mark.parametrize("made", ["chat", "plain"])
def test_labels_and_greedy_text_are_the_float_students(
    made: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(made)
    queries = QUERIES if made == "chat" else QUERIES[:2]
    compressed = open_student(folder / "gguf", CLASSES, "text", 2)
    assert isinstance(compressed, GgufStudent)
    assert compressed.info.notes["precision"] == "f32"
    floats = open_student(folder / "float", CLASSES, "text", 2, "cpu")
    got = answers(compressed, queries, Sampling(labels=LABELS))
    for one, other in zip(got, answers(floats, queries, Sampling(labels=LABELS)), strict=True):
        assert (one.text, one.prompt_tokens) == (other.text, other.prompt_tokens)
        assert one.label_logprobs is not None
        assert one.label_logprobs == pytest.approx(other.label_logprobs, abs=0.01)
    greedy = Sampling(max_tokens=12, logprobs=2)
    for one, other in zip(
        answers(compressed, queries, greedy), answers(floats, queries, greedy), strict=True
    ):
        assert (one.text, one.prompt_tokens) == (other.text, other.prompt_tokens)
        assert one.finish_reason == other.finish_reason
    for completer in (compressed, floats):
        asyncio.run(completer.aclose())


def test_an_extraction_that_is_not_json_is_written_under_the_schema(chat: Path) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    task = ExtractionTask(kind="extraction", json_schema=schema)
    student = open_student(chat / "gguf", task, "text", 1)
    (found,) = answers(student, QUERIES[:1], Sampling(max_tokens=40, json_schema=schema))
    assert isinstance(json.loads(found.text)["ok"], bool)
    drawn = answers(student, QUERIES[:1], Sampling(n=2, max_tokens=4, sampling_temperature=1.0))
    again = answers(student, QUERIES[:1], Sampling(n=2, max_tokens=4, sampling_temperature=1.0))
    assert [one.text for one in drawn] == [one.text for one in again]
    assert [one.sample for one in drawn] == [0, 1]
    asyncio.run(student.aclose())


def test_an_edited_artefact_is_refused(chat: Path, tmp_path: Path) -> None:
    for name in (FILE, "Modelfile", ARTEFACT):
        (tmp_path / name).write_bytes((chat / "gguf" / name).read_bytes())
    with (tmp_path / FILE).open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    with pytest.raises(UserError, match=rf"{FILE}: was changed"):
        open_student(tmp_path, TEXT, "text", 1)
    (tmp_path / FILE).write_bytes((chat / "gguf" / FILE).read_bytes())
    damaged = json.loads((tmp_path / ARTEFACT).read_text())
    damaged["settings"]["positions"] = 0
    (tmp_path / ARTEFACT).write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"damaged: settings\.positions"):
        open_student(tmp_path, TEXT, "text", 1)


def test_a_chat_that_the_template_cannot_render_fails_alone(tmp_path: Path) -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            max_position_embeddings=64,
            eos_token_id=2,
        )
    )
    model.save_pretrained(tmp_path / "float")
    tokenizer.save_pretrained(tmp_path / "float")
    export_gguf(tmp_path / "float", tmp_path / "gguf", "f16")
    student = open_student(tmp_path / "gguf", TEXT, "text", 1)
    turns = (Message(role="assistant", content="x"), Message(role="user", content="y"))
    odd = Query(id="odd", messages=turns)
    with pytest.raises(UnanswerableQueryError, match="query odd"):
        answers(student, [odd], Sampling(max_tokens=2))
    assert answers(student, QUERIES[:1], Sampling(max_tokens=2))[0].query_id == "a"
    asyncio.run(student.aclose())
