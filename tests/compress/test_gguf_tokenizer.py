"""Tokenizers in GGUF files: llama.cpp cuts as the student does, or the export is refused."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from stillhouse.compress.gguf_ollama import modelfile, turn_format
from stillhouse.compress.gguf_proof import CHATS, PROBES, prove
from stillhouse.compress.gguf_tokenizer import _PATTERNS, vocabulary_of
from stillhouse.core.errors import UserError
from tiny_models import TEMPLATE, TEXTS, byte_bpe, fallback_bpe, wordpiece

pytest.importorskip("gguf")
SYSTEMLESS = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def rewritten(tokenizer: PreTrainedTokenizerFast, **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer with parts of its tokenizer.json replaced; `model__x` inside the model."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    for key, value in parts.items():
        if key.startswith("model__"):
            spec["model"][key.removeprefix("model__")] = value
        else:
            spec[key] = value
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        chat_template=tokenizer.chat_template,
        **tokenizer.special_tokens_map,
    )


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": False,
                "use_regex": False,
            },
        ],
    }


def trained(pre_tokenizer: dict[str, Any]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has learnt the probes by heart, so that each cut shows."""
    empty = rewritten(byte_bpe(), pre_tokenizer=pre_tokenizer).backend_tokenizer
    empty.train_from_iterator(
        [*PROBES, *PROBES],
        BpeTrainer(
            vocab_size=3000,
            special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=empty,
        chat_template=TEMPLATE,
        pad_token="<|pad|>",
        bos_token="<|start|>",
        eos_token="<|end|>",
    )


def sentencepiece(prefix: bool) -> PreTrainedTokenizerFast:
    """What a converted SentencePiece vocabulary is: every way to make a piece, ranked by piece."""
    pieces = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = sorted({c for text in TEXTS for c in text.replace(" ", "\u2581")} | set("\u2581:,"))
    words = ["th", "the", "\u2581the", "\u2581t", "mo", "mov", "fi", "film", "lm", "ing", "in"]
    words += ["\u2581a", "or", "ring", "\u2581\u2581", "st", "sto", "stor", "story", "ry"]
    for piece in letters + words:
        pieces.setdefault(piece, len(pieces))
    merges = [
        [word[:cut], word[cut:]]
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in pieces and word[cut:] in pieces
    ]
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    ]
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "\u2581"})
    spec = json.loads(fallback_bpe().backend_tokenizer.to_str())
    spec["normalizer"] = {"type": "Sequence", "normalizers": steps}
    spec["model"] |= {"vocab": pieces, "merges": merges}
    spec["added_tokens"] = [
        {
            "id": number,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for piece, number in itertools.islice(pieces.items(), 3)
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}"
        "{% endfor %}",
    )


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_goes_by_scores(prefix: bool) -> None:
    tokenizer = sentencepiece(prefix)
    carried = vocabulary_of(tokenizer, len(tokenizer) + 3, [2])
    assert (carried.model, carried.merges, carried.space_prefix) == ("llama", (), prefix)
    assert carried.types[:4] == (2, 3, 3, 6)
    assert carried.types[-3:] == (5, 5, 5)
    proof = prove(tokenizer, carried, TEXTS)
    assert proof.texts >= 25
    assert proof.chats == len(CHATS)


def test_trained_merges_go_as_they_are() -> None:
    tokenizer = fallback_bpe()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    carried = vocabulary_of(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    assert (carried.pre, carried.scores, carried.plain) == ("sarvam-moe", (), True)
    assert prove(tokenizer, carried, TEXTS).merges_system is False
    spec = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    both = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, spec]}
    spaced = rewritten(tokenizer, normalizer=both)
    with pytest.raises(UserError, match="puts a space before a text"):
        vocabulary_of(spaced, len(spaced), [5])


@pytest.mark.parametrize(("pattern", "skips"), list(_PATTERNS), ids=list(_PATTERNS.values()))
def test_each_pattern_has_its_name(pattern: str, skips: bool) -> None:
    tokenizer = rewritten(trained(split(pattern)), model__ignore_merges=skips)
    carried = vocabulary_of(tokenizer, len(tokenizer), [2])
    assert prove(tokenizer, carried, TEXTS).tokens > 300
    if carried.pre == "qwen2":
        return
    wrong = carried._replace(pre="qwen2")
    with pytest.raises(UserError, match="cuts a text in another way"):
        prove(tokenizer, wrong)


def test_smollm_reads_digits_one_by_one() -> None:
    steps = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    tokenizer = rewritten(byte_bpe(), pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    carried = vocabulary_of(tokenizer, len(tokenizer), [2])
    assert carried.pre == "smollm"
    assert prove(tokenizer, carried, ["1234 and 5"]).tokens


def test_a_template_without_system_messages_and_composed_text() -> None:
    tokenizer = rewritten(byte_bpe(), normalizer={"type": "NFC"})
    tokenizer.chat_template = SYSTEMLESS
    carried = vocabulary_of(tokenizer, len(tokenizer), [2])
    assert carried.composes
    assert prove(tokenizer, carried, ["cafe\u0301"]).merges_system
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="chat template"):
        prove(tokenizer, vocabulary_of(tokenizer, len(tokenizer), [2]))


@pytest.mark.parametrize(
    ("tokenizer", "ends", "problem"),
    [
        (wordpiece(), [4], "BPE vocabularies"),
        (byte_bpe(), [], "no end token"),
        (byte_bpe(), [1, 2, 3, 4], "at most three"),
        (rewritten(byte_bpe(), normalizer={"type": "Lowercase"}), [2], "no such normalizer"),
        (rewritten(byte_bpe(), pre_tokenizer=split(r"\s+")), [2], "no rule that cuts words"),
        (rewritten(byte_bpe(), model__ignore_merges=True), [2], "no rule that cuts words"),
        (
            rewritten(
                byte_bpe(),
                pre_tokenizer={
                    "type": "ByteLevel",
                    "add_prefix_space": True,
                    "use_regex": True,
                    "trim_offsets": True,
                },
            ),
            [2],
            "a space before every text",
        ),
    ],
)
def test_what_llama_cannot_cut_is_refused(
    tokenizer: PreTrainedTokenizerFast, ends: list[int], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        vocabulary_of(tokenizer, len(tokenizer), ends)
    if ends == [2]:
        with pytest.raises(UserError, match="and the model 99 rows"):
            vocabulary_of(byte_bpe(), 99, ends)


CHATML_WITH_DEFAULT = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|start|>system\nBe {{ '{{' }}good}}.<|end|>\n{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_a_template_of_fixed_texts_is_said_to_ollama() -> None:
    tokenizer = byte_bpe()
    tokenizer.chat_template = CHATML_WITH_DEFAULT
    found = turn_format(tokenizer)
    assert found is not None
    assert found.unsystem == "<|start|>system\nBe {{good}}.<|end|>\n"
    assert found.around["user"] == ("<|start|>user\n", "<|end|>\n")
    text = modelfile("student.gguf", tokenizer, ["<|end|>"], 128, 64)
    assert text.startswith('FROM ./student.gguf\nTEMPLATE """{{ if ne (index .Messages 0).Role')
    assert '{{ "<|start|>user\\n" }}{{ .Content }}{{ "<|end|>\\n" }}' in text
    assert 'PARAMETER stop "<|end|>"' in text
    assert "PARAMETER num_ctx 128\nPARAMETER num_predict 64" in text
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    assert turn_format(tokenizer) is None
    assert "raw: true" in modelfile("student.gguf", tokenizer, [], 128, 64)
    tokenizer.chat_template = None
    assert '"\\n\\n"' in modelfile("student.gguf", tokenizer, [], 128, 64)
