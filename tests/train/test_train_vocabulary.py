"""Trimmed tokenizers cut as before, spell anything, and load as plain ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillhouse.core.errors import UserError
from stillhouse.train.vocabulary import Trimmed, check_trims, merge_steps, trim_tokenizer
from tiny_models import TEXTS, byte_bpe, fallback_bpe, unigram, wordpiece

KINDS = {
    "wordpiece": wordpiece(),
    "bpe": byte_bpe(),
    "fallback": fallback_bpe(),
    "unigram": unigram(),
    "unigram-bytes": unigram(byte_fallback=True),
}
SOME = TEXTS[:3]
TRIMMED = {kind: trim_tokenizer(source, SOME) for kind, source in KINDS.items()}


def _same(kind: str, trimmed: Trimmed, text: str) -> bool:
    source = KINDS[kind]
    old = source(text)["input_ids"]
    return [trimmed.kept[i] for i in trimmed.tokenizer(text)["input_ids"]] == old


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_task_are_cut_as_before(kind: str) -> None:
    trimmed = TRIMMED[kind]
    assert len(trimmed.tokenizer) == len(trimmed.kept) < len(KINDS[kind])
    assert all(_same(kind, trimmed, text) for text in SOME)
    names = trimmed.tokenizer.convert_ids_to_tokens(list(range(len(trimmed.kept))))
    assert names == KINDS[kind].convert_ids_to_tokens(list(trimmed.kept))
    assert trimmed.tokenizer.special_tokens_map == KINDS[kind].special_tokens_map


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_text_of_kept_pieces_is_cut_as_before(kind: str, data: st.DataObject) -> None:
    trimmed = TRIMMED[kind]
    words = sorted({word for text in SOME for word in text.split()})
    text = " ".join(data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=12)))
    old = KINDS[kind](text)["input_ids"]
    if set(old) <= set(trimmed.kept):
        assert _same(kind, trimmed, text)


@pytest.mark.parametrize("kind", ["bpe", "fallback", "unigram-bytes"])
@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_bytes_still_spell_everything(kind: str, text: str) -> None:
    tokenizer = TRIMMED[kind].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == KINDS[kind].decode(
        KINDS[kind](text)["input_ids"]
    )


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@given(text=st.text(alphabet="abcdefghijklmnopqrstuvwxyz .,:", max_size=60))
@settings(max_examples=100, deadline=None)
def test_characters_still_spell_what_was_spelt(kind: str, text: str) -> None:
    tokenizer = TRIMMED[kind].tokenizer
    if KINDS[kind].unk_token_id not in KINDS[kind](text)["input_ids"]:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_wordpiece_keeps_other_scripts_only_where_the_task_has_them() -> None:
    source = KINDS["wordpiece"]
    assert "é" not in TRIMMED["wordpiece"].tokenizer.get_vocab()
    with_accent = trim_tokenizer(source, [*SOME, "é"]).tokenizer.get_vocab()
    assert {"é", "##é"} <= with_accent.keys()


@pytest.mark.parametrize(("kind", "limit"), [("wordpiece", 80), ("bpe", 290)])
def test_a_limit_is_kept_and_takes_the_most_frequent(kind: str, limit: int) -> None:
    trimmed = trim_tokenizer(KINDS[kind], TEXTS, limit)
    assert len(trimmed.kept) <= limit
    assert limit - len(trimmed.kept) < 3
    often = {"wordpiece": "and", "bpe": "Ġand"}[kind]
    assert often in trimmed.tokenizer.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_tokenizer_is_saved(kind: str, tmp_path) -> None:
    trimmed = trim_tokenizer(KINDS[kind], SOME, max_tokens=12)
    trimmed.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == trimmed.tokenizer.get_vocab()
    assert loaded.model_max_length == 12
    assert loaded.chat_template == KINDS[kind].chat_template
    for text in [*TEXTS, "an unlikely word"]:
        assert loaded(text)["input_ids"] == trimmed.tokenizer(text)["input_ids"]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "auto_map" not in config


def test_control_pieces_of_a_unigram_vocabulary_stay_where_they_are() -> None:
    for kind in ("unigram", "unigram-bytes"):
        source, trimmed = KINDS[kind], TRIMMED[kind].tokenizer
        assert trimmed.pad_token_id == source.pad_token_id
        assert trimmed.unk_token_id == source.unk_token_id
        assert trimmed.mask_token_id == len(trimmed) - 1


def test_an_unknown_character_costs_as_much_in_a_trimmed_unigram_vocabulary() -> None:
    """`a` is no piece: to spell it as unknown costs the lowest score and 10 more, here that of a
    piece which the task does not use; without it, the cut below would be the cheaper one."""
    scores = {"<unk>": 0.0, "ab": -14.0, "cd": -14.0, "efg": -14.0, "bcdefg": -5.0, "zzz": -30.0}
    backend = Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    source = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert source.tokenize("abcdefg") == ["ab", "cd", "efg"]
    trimmed = trim_tokenizer(source, ["abcdefg", "bcdefg"]).tokenizer
    assert trimmed.tokenize("abcdefg") == ["ab", "cd", "efg"]


def test_kinds_that_cannot_be_trimmed_are_told_without_a_text() -> None:
    for tokenizer in KINDS.values():
        check_trims(tokenizer)
    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match=r"WordLevel.*use full|use full"):
        check_trims(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"))


def test_merges_are_consistent() -> None:
    spec = json.loads(TRIMMED["bpe"].tokenizer.backend_tokenizer.to_str())["model"]
    vocab = spec["vocab"]
    assert spec["merges"]
    assert all(a in vocab and b in vocab and a + b in vocab for a, b in spec["merges"])


def test_merge_steps_follow_the_ranks() -> None:
    ranks = {("b", "c"): 0, ("a", "bc"): 1, ("a", "b"): 2}
    assert merge_steps("abc", ranks) == {"a", "b", "c", "bc", "abc"}
    assert merge_steps("ab", ranks) == {"a", "b", "ab"}


def test_a_limit_below_the_characters_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.vocabulary.*use at least \d+"):
        trim_tokenizer(KINDS["bpe"], SOME, 256)


def test_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        trim_tokenizer(KINDS["bpe"], [])
