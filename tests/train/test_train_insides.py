"""What hooks read of a model's inside, for each family, with adapters and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stillhouse.core.errors import UserError
from stillhouse.train import insides
from stillhouse.train.insides import watch
from stillhouse.train.outputs import BodyReader, CausalReader, LabelReader, Needs

SMALL: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0}
SHAPE = SMALL | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
GROUPED = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2}


def _models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "bert": BertForSequenceClassification(BertConfig(**SHAPE, num_attention_heads=4)),
        "distilbert": DistilBertForSequenceClassification(
            DistilBertConfig(**SMALL, dim=16, hidden_dim=24, n_layers=2, n_heads=4)
        ),
        "modernbert": ModernBertForSequenceClassification(
            ModernBertConfig(
                **SHAPE,
                num_attention_heads=4,
                **dict.fromkeys(
                    ["eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"], 1
                ),
            )
        ),
        "llama": LlamaForCausalLM(LlamaConfig(**GROUPED)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
        "gemma2": Gemma2ForCausalLM(
            Gemma2Config(**GROUPED, head_dim=4, attn_logit_softcapping=5.0)
        ),
        "phi3": Phi3ForCausalLM(Phi3Config(**GROUPED)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(
                **(SMALL | {"bos_token_id": 1, "eos_token_id": 1}), n_embd=16, n_layer=2, n_head=4
            )
        ),
        "gpt_neox": GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, num_attention_heads=4)),
    }


MODELS = _models()
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "labels": torch.tensor([[-100, -100, 7, 8, 9], [-100, 8, 7, -100, -100]]),
}
ALL = Needs(logits=True, hidden_states=True, attentions=True, queries_keys_values=True)


def _read(model: Any, needs: Needs) -> Any:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder = "SequenceClassification" in type(inner).__name__
    batch = {**BATCH, "labels": torch.tensor([0, 1])} if encoder else BATCH
    return (LabelReader() if encoder else CausalReader()).read(model, batch, needs)


@pytest.mark.parametrize("name", MODELS)
def test_insides_have_their_shapes_and_the_model_is_as_before(name: str) -> None:
    model = MODELS[name].eval()
    before = model.config._attn_implementation
    with torch.no_grad():
        plain, found = _read(model, Needs(logits=True)), _read(model, ALL)
    torch.testing.assert_close(found.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == before
    assert plain.projections is plain.attentions is plain.hidden_states is None
    assert [tuple(x.shape) for x in found.hidden_states] == [(2, 5, 16)] * 3
    assert len(found.attentions) == len(found.projections) == 2
    real = BATCH["attention_mask"].bool()
    for attention in found.attentions:
        assert attention.shape == (2, 4, 5, 5)
        rows = attention.transpose(1, 2)[real]
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
        assert attention[1, :, :3, 3:].abs().max() == 0, "no real token looks at padding"
    for one in found.projections:
        width = 8 if name == "qwen3" else 4
        kv = 2 if name in ("llama", "qwen3", "phi3", "gemma2") else 4
        assert one.queries.shape == (2, 4, 5, width)
        assert one.keys.shape == one.values.shape == (2, kv, 5, width)


def test_projections_give_the_attention_that_the_model_takes() -> None:
    """Queries, keys and their heads are in the right order: softmax(Q K^T / sqrt(D)) is its map."""
    for name in ("bert", "distilbert", "gpt2"):  # these add no positions to queries and keys
        found = _read(MODELS[name].eval(), ALL)
        causal = torch.ones(5, 5, dtype=torch.bool).tril()
        for layer, attention in zip(found.projections, found.attentions, strict=True):
            scores = layer.queries @ layer.keys.transpose(-1, -2) / layer.queries.shape[-1] ** 0.5
            hidden = ~BATCH["attention_mask"].bool()[:, None, None, :]
            scores = scores.masked_fill(hidden, -torch.inf)
            if name == "gpt2":
                scores = scores.masked_fill(~causal, -torch.inf)
            real = BATCH["attention_mask"].bool()
            torch.testing.assert_close(
                scores.softmax(-1).transpose(1, 2)[real],
                attention.transpose(1, 2)[real],
                rtol=1e-4,
                atol=1e-6,
            )


@pytest.mark.parametrize("name", ["phi3", "gpt_neox", "modernbert"])
def test_joined_projections_are_cut_as_the_model_cuts_them(name: str) -> None:
    """The model's own attention gets the values that were read: they are not rotated."""
    model = MODELS[name].eval()
    seen: list[Tensor] = []
    with watch(model, attentions=True, projections=True) as caught:
        original = insides._probabilities

        def spy(module: Any, query: Tensor, key: Tensor, value: Tensor, *a: Any, **k: Any) -> Any:
            seen.append(value)
            return original(module, query, key, value, *a, **k)

        insides.AttentionInterface.register(insides.STEP_BY_STEP, spy)
        model(input_ids=BATCH["input_ids"][:1])
    for read, used in zip(caught.projections() or (), seen, strict=True):
        torch.testing.assert_close(read.values, used)


@pytest.mark.parametrize(
    ("name", "targets"),
    [("bert", ["query", "value"]), ("phi3", ["qkv_proj"]), ("gpt2", ["c_attn"])],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_adapters_are_in_what_is_read(name: str, targets: list[str]) -> None:
    model = _models()[name].eval()
    before = _read(model, ALL)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    )
    found = _read(wrapped.eval(), ALL)
    assert not torch.allclose(found.projections[0].values, before.projections[0].values)
    found.projections[0].values.sum().backward()
    moved = [n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved
    assert all("lora_" in n for n in moved)


def test_attention_is_read_before_dropout_and_trains_as_before() -> None:
    config = BertConfig(**SHAPE, num_attention_heads=4, attention_probs_dropout_prob=0.5)
    torch.manual_seed(1)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        still = _read(model, ALL).attentions
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) and module.p == 0.1:
                module.p = 0.0  # hidden dropout: leave attention's own alone
        found = _read(model, ALL)
    torch.testing.assert_close(found.attentions[0], still[0])
    assert not torch.allclose(found.attentions[1], still[1]), "the first layer did drop"


def test_a_body_reads_as_the_whole_does() -> None:
    for name in ("bert", "llama", "gpt2"):
        model = MODELS[name].eval()
        with torch.no_grad():
            whole, body = _read(model, ALL), BodyReader().read(model, BATCH, ALL)
        assert body.logits is None
        real = BATCH["attention_mask"].bool()
        for x, y in zip(whole.hidden_states, body.hidden_states or (), strict=True):
            torch.testing.assert_close(x[real], y[real], rtol=1e-4, atol=1e-5)


def test_an_unknown_family_is_one_line() -> None:
    model = BertForSequenceClassification(BertConfig(**SHAPE, num_attention_heads=4))
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        own.mystery = own.query
        own.query = torch.nn.Identity()
        del own.query
    refused = pytest.raises(UserError, match=r"train\.terms: .*not known by name")
    with refused as caught, watch(model, attentions=False, projections=True):
        pass
    assert "\n" not in str(caught.value)
