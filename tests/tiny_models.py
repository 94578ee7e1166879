"""Tiny models and tokenizers of the real families, made here: nothing is loaded from outside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, Message, Record

TEXTS = [
    "a gripping and moving film from start to finish",
    "dull, lifeless and far too long",
    "the cast is wonderful and the story moves",
    "a tired script and a boring plot",
    "funny, warm and wonderfully acted",
    "it never comes alive: a boring, boring film",
]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that knows whole words, some pieces and all lower-case characters."""
    words = sorted({w for text in TEXTS for w in text.replace(",", "").replace(":", "").split()})
    characters = [chr(c) for c in range(97, 123)] + list(".,:!?é")
    pieces = ["##ly", "##ing", "##ful", "wonder", "mov", "un", "##like"]
    vocab = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    vocab += [f"##{c}" for c in characters]
    vocab += [w for w in [*words, *pieces] if w not in vocab]
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(vocab)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 3), ("[SEP]", 4)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        [*TEXTS, "user system assistant positive negative", *TEXTS],
        BpeTrainer(
            vocab_size=420,
            special_tokens=["<|pad|>", "<|start|>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|start|>",
        eos_token="<|end|>",
        chat_template=TEMPLATE,
    )


def fallback_bpe() -> PreTrainedTokenizerFast:
    """BPE over whole texts, spaces written as U+2581, unknown characters in bytes: Gemma's way."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.train_from_iterator(
        TEXTS, BpeTrainer(vocab_size=200, special_tokens=["<pad>", "<unk>"], show_progress=False)
    )
    spec = json.loads(backend.to_str())
    pieces: dict[str, int] = spec["model"]["vocab"]
    for byte in range(256):
        pieces[f"<0x{byte:02X}>"] = len(pieces)
    spec["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")


def unigram(byte_fallback: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram as XLM-RoBERTa has it, control pieces first: words, parts of words
    and characters, the longer the likelier; with bytes for unknown characters, or without."""
    words = sorted({word for text in TEXTS for word in text.split()})
    parts = sorted({word[k : k + 3] for word in words for k in range(1, len(word))} - set(words))
    characters = sorted({chr(c) for c in range(33, 127)} | {"\u2581", "\u00e9"})
    vocab: dict[str, float] = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>"], 0.0)
    for score, pieces in ((-4.0, [f"\u2581{word}" for word in words]), (-7.0, parts)):
        vocab |= {p: score - 0.01 * i for i, p in enumerate(pieces) if len(p) > 1}
    vocab |= {character: -11.0 - 0.01 * i for i, character in enumerate(characters)}
    vocab["\u2581rarest"] = -20.0
    if byte_fallback:
        vocab |= {f"<0x{byte:02X}>": -14.0 for byte in range(256)}
    backend = Tokenizer(models.Unigram(list(vocab.items()), unk_id=3, byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def tiny_bert(
    tokenizer: PreTrainedTokenizerFast, layers: int = 4, dropout: float = 0.0
) -> BertModel:
    """A BERT of a few thousand weights."""
    torch.manual_seed(1)
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=48,
            pad_token_id=0,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    ).eval()


def tiny_llama(tokenizer: PreTrainedTokenizerFast, layers: int = 4) -> LlamaForCausalLM:
    """A Llama of a few thousand weights, head tied."""
    torch.manual_seed(2)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).eval()


def loud_llama(tokenizer: PreTrainedTokenizerFast, layers: int, std: float) -> LlamaForCausalLM:
    """A tiny Llama whose next-token distributions are far from uniform."""
    model = tiny_llama(tokenizer, layers)
    draw = torch.manual_seed(layers)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=std, generator=draw)
    return model


def text_recipe(folder: Path, **train: Any) -> Recipe:
    """A student of two layers that learns to write from the model in a folder."""
    return Recipe.model_validate(
        {
            "name": "t",
            "seed": 7,
            "task": {"kind": "generation"},
            "traffic": {"path": "x"},
            "teacher": {"model": f"hf:{folder}"},
            "student": {"head": "text", "from": f"hf:{folder}", "layers": 2, "max_tokens": 100},
            "train": {"batch_size": 4, "epochs": 2, "evals": 2, "learning_rate": 1e-3, **train},
        }
    )


def review_examples(count: int, offset: int = 0, beliefs: bool = True) -> list[Example]:
    """Examples whose label is readable from the text."""
    words = {
        "positive": ["gripping", "wonderful", "funny", "warm", "moving"],
        "negative": ["dull", "boring", "tired", "lifeless", "long"],
    }
    found = []
    for number in range(offset, offset + count):
        label = ("positive", "negative")[number % 2]
        word = words[label][number // 2 % 5]
        text = f"the {word} film" + " and the story" * (number % 4)
        sure = 0.7 + 0.025 * (number % 10)
        found.append(
            Example(
                id=f"r{number}",
                messages=(
                    Message(role="user", content=text),
                    Message(role="assistant", content=label),
                ),
                task="task",
                group=f"g{number}",
                teacher="fake",
                teacher_revision="1",
                label=label,
                label_probabilities=((sure, 1 - sure) if label == "positive" else (1 - sure, sure))
                if beliefs
                else None,
            )
        )
    return found


def write_jsonl(path: Path, records: list[Record]) -> None:
    """Records as they stand on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(json.loads(r.to_json())) + "\n" for r in records))


def save_drawn(
    folder: Path,
    kind: Any,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str],
    *,
    seed: int,
    spread: float,
) -> Path:
    """Save a classifier whose weights are drawn so wide that its answers differ.

    Args:
        kind: an Auto class of transformers.
    """
    config.id2label = dict(enumerate(labels))  # num_labels follows
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.normal_(std=spread)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
