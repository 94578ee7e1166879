"""A text student for onnxruntime-genai: it answers as the float student does, or is refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.compress import genai_export
from stillhouse.compress.exporters import EXPORTERS, ExportRequest
from stillhouse.core.artefact import read_artefact
from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import EXTRAS, available
from stillhouse.core.records import Completion, Message, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.artefact_student import open_any
from stillhouse.models.completer import Sampling
from tiny_models import TEXTS, byte_bpe

here = pytest.mark.skipif(
    not all(available(module) for module in EXTRAS["genai"]),
    reason="needs onnxruntime-genai: pip install 'stillhouse[genai]'",
)
# One begins another; two part after their first piece.
LABELS = ("positive", "posit", "positively")
TASK = ClassificationTask(kind="classification", labels=LABELS)


def save(folder: Path, head: int = 16) -> Path:
    tokenizer = byte_bpe()
    tokenizer.model_max_length = 60
    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=head, intermediate_size=96,
            max_position_embeddings=160, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.15)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("genai") / "student")


def request(student: Path, folder: Path) -> ExportRequest:
    return ExportRequest(student, folder, TASK, "text", "tiny", texts=TEXTS, calibration=())


@pytest.fixture(scope="module")
def made(student: Path) -> Path:
    out = student.parent / "int8"
    out.mkdir()
    EXPORTERS["genai-int8"](request(student, out))
    return out


def answers(folder: Path, texts: Sequence[str], sampling: Sampling) -> list[Completion]:
    async def ask() -> list[Completion]:
        opened = open_any(folder, TASK, "text", 4, "cpu")
        queries = [
            Query(id=str(i), messages=(Message(role="user", content=text),))
            for i, text in enumerate(texts)
        ]
        found = await asyncio.gather(*(opened.complete(q, sampling) for q in queries))
        await opened.aclose()
        return [one for each in found for one in each]

    return asyncio.run(ask())


@here
@pytest.mark.full
def test_labels_and_text_are_nearly_the_float_students(student: Path, made: Path) -> None:
    artefact = read_artefact(made)
    assert (artefact.kind, artefact.precision, artefact.head) == ("genai", "int8", "text")
    assert artefact.settings["mean_kl_nats"] < 0.02
    texts = [*TEXTS[:4], "dull, lifeless and far too long " * 12]  # loses its head
    closed = Sampling(labels=LABELS)
    pairs = zip(answers(made, texts, closed), answers(student, texts, closed), strict=True)
    for mine, theirs in pairs:
        assert mine.prompt_tokens == theirs.prompt_tokens
        assert mine.label_logprobs == pytest.approx(theirs.label_logprobs, abs=0.1)
    free = Sampling(max_tokens=6, logprobs=3)
    pairs = zip(answers(made, texts, free), answers(student, texts, free), strict=True)
    for mine, theirs in pairs:
        assert mine.prompt_tokens == theirs.prompt_tokens
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        first, other = mine.logprobs[0], theirs.logprobs[0]
        assert dict(first.top)[first.token] == first.logprob == max(dict(first.top).values())
        if first.token == other.token:
            assert first.logprob == pytest.approx(other.logprob, abs=0.1)
        assert len(first.top) == 3


@here
@pytest.mark.full
def test_draws_follow_the_seed(made: Path) -> None:
    def texts(seed: int) -> list[str]:
        sampling = Sampling(max_tokens=8, sampling_temperature=1.0, n=3, seed=seed)
        return [one.text for one in answers(made, TEXTS[:1], sampling)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(set(texts(1))) > 1


@here
@pytest.mark.full
def test_what_the_runtime_cannot_run_is_refused_in_a_line(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = save(tmp_path / "narrow", head=8)
    with pytest.raises(UserError, match="cannot run what its builder wrote"):
        EXPORTERS["genai-int8"](request(narrow, tmp_path / "a"))
    monkeypatch.setattr(genai_export, "MOST_KL", {"int8": -1.0})
    with pytest.raises(UserError, match="comes out of the export changed"):
        EXPORTERS["genai-int8"](request(student, tmp_path / "b"))
    assert not (tmp_path / "b" / "artefact.json").exists()
    monkeypatch.setattr(genai_export, "BUILDER", "no_such_module")
    with pytest.raises(UserError, match=r"builder cannot write it: .*no_such_module"):
        EXPORTERS["genai-int8"](request(student, tmp_path / "c"))


def test_a_missing_runtime_is_a_pip_line(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'stillhouse\[genai\]'"):
        EXPORTERS["genai-int8"](request(student, tmp_path))
