"""Cutting layers and embedding rows: the student computes what the kept parts computed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, BertModel

from stillhouse.core.errors import UserError
from stillhouse.train.embeddings import keep_positions, keep_rows
from stillhouse.train.layers import cut_layers, depth, evenly_spaced
from stillhouse.train.vocabulary import trim_tokenizer
from tiny_models import TEXTS, byte_bpe, tiny_bert, tiny_llama, wordpiece


def test_evenly_spaced_has_both_ends_and_rises() -> None:
    assert evenly_spaced(12, 6) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced(6, 6) == (0, 1, 2, 3, 4, 5)
    assert evenly_spaced(30, 1) == (0,)
    for total in range(1, 40):
        for keep in range(1, total + 1):
            chosen = evenly_spaced(total, keep)
            assert len(set(chosen)) == keep
            assert list(chosen) == sorted(chosen)
            assert chosen[0] == 0
            assert keep == 1 or chosen[-1] == total - 1
    with pytest.raises(UserError, match="has 6 layers"):
        evenly_spaced(6, 7)


def test_a_cut_encoder_equals_its_layers_run_by_hand(tmp_path) -> None:
    tokenizer = wordpiece()
    teacher = tiny_bert(tokenizer)
    batch = tokenizer(TEXTS[:2], return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = teacher.embeddings(batch["input_ids"])
        mask = torch.where(batch["attention_mask"][:, None, None] > 0, 0.0, torch.finfo().min)
        for index in (0, 3):
            hidden = teacher.encoder.layer[index](hidden, mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        assert cut_layers(teacher, 2) == (0, 3)
        assert depth(teacher) == teacher.config.num_hidden_layers == 2
        got = teacher(**batch).last_hidden_state
        teacher.save_pretrained(tmp_path)
        again = BertModel.from_pretrained(tmp_path).eval()(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(got[real], hidden[real])
    torch.testing.assert_close(again, got)


def test_a_cut_language_model_loads_plainly_and_generates(tmp_path) -> None:
    tokenizer = byte_bpe()
    model = tiny_llama(tokenizer)
    cut_layers(model, [1, 3])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    batch = tokenizer(TEXTS[:1], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
        cached = model.generate(**batch, max_new_tokens=5, do_sample=False)
        plain = model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="layers 0 to 3"):
        cut_layers(tiny_bert(wordpiece()), [0, 4])


def test_trimmed_rows_give_the_same_hidden_states() -> None:
    source = wordpiece()
    model = tiny_bert(source)
    trimmed = trim_tokenizer(source, TEXTS)
    before = source(TEXTS, return_tensors="pt", padding=True)
    after = trimmed.tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.no_grad():
        wanted = model(**before).last_hidden_state
        keep_rows(model, trimmed.kept)
        assert keep_positions(model, 16) == 16
        got = model(**after).last_hidden_state
    torch.testing.assert_close(got, wanted)
    assert model.config.vocab_size == len(trimmed.kept)
    assert model.config.max_position_embeddings == 16
    assert model.config.pad_token_id == 0


@pytest.mark.parametrize("tied", [True, False])
def test_trimmed_heads_give_the_same_logits_of_kept_pieces(tied: bool, tmp_path) -> None:
    source = byte_bpe()
    model = tiny_llama(source)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    trimmed = trim_tokenizer(source, TEXTS[:2])
    text = TEXTS[0]
    before = source(text, return_tensors="pt", return_token_type_ids=False)
    after = trimmed.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        wanted = model(**before).logits[..., list(trimmed.kept)]
        keep_rows(model, trimmed.kept)
        got = model(**after).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(again(**after).logits, got)
    torch.testing.assert_close(got, wanted)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.config.eos_token_id == trimmed.tokenizer.eos_token_id
    assert model.generation_config.eos_token_id == trimmed.tokenizer.eos_token_id
