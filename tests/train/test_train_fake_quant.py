"""A student on the grid of integers: its arithmetic against numpy's integers, and its gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from cut_families import model_of
from torch import nn
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from stillhouse.core.errors import UserError
from stillhouse.models.quantization import channel_grid, group_grid, group_scales, table_grid
from stillhouse.train.fake_quant import (
    ONNX_DYNAMIC,
    W4A16,
    W8A16,
    QuantEmbedding,
    QuantLinear,
    QuantScheme,
    dequantized,
    quantized,
    rounding_error,
)
from tiny_models import byte_bpe, tiny_bert, tiny_llama, wordpiece

FLOAT = np.float32


def integers_of_weights(weight: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """INT8 of [O, I], output by output, and their scales: written from the definition."""
    q = np.zeros(weight.shape, np.int8)
    scales = np.ones(len(weight), FLOAT)
    for row, values in enumerate(weight):
        largest = np.abs(values).max()
        if largest > 0:
            scales[row] = FLOAT(largest / most)
        q[row] = np.clip(np.rint(values / scales[row]), -most, most).astype(np.int8)
    return q, scales


def integers_of_activations(values: np.ndarray) -> tuple[np.ndarray, FLOAT, int]:
    """UINT8, its scale and zero point: ONNX DynamicQuantizeLinear, as its specification has it."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = FLOAT((FLOAT(high) - FLOAT(low)) / FLOAT(255)) if high > low else FLOAT(1)
    zero = int(np.clip(np.rint((0 - FLOAT(low)) / scale), 0, 255))
    return np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def naive_linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, most: int) -> np.ndarray:
    """The layer in integers: products summed in 64 bits, scales and bias last."""
    qx, sx, zx = integers_of_activations(x)
    qw, sw = integers_of_weights(weight, most)
    summed = (qx.astype(np.int64) - zx) @ qw.astype(np.int64).T
    return summed * (sx * sw) + bias


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_a_layer_is_the_integer_layer(reduced: bool, shift: float) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(24, 10))
    with torch.no_grad():
        layer[0].weight[3] = 0.0
    quantized(layer, QuantScheme(reduced=reduced))
    x = torch.randn(2, 5, 24) + shift
    weight, bias = (p.detach().numpy() for p in (layer[0].weight, layer[0].bias))
    wanted = naive_linear(x.reshape(10, 24).numpy(), weight, bias, 64 if reduced else 127)
    found = layer(x).detach().reshape(10, 10).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_pass_straight_through() -> None:
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(8, 4))
    quantized(layer, ONNX_DYNAMIC)
    x = torch.randn(3, 8, requires_grad=True)
    out = layer(x)
    given = torch.randn(3, 4)
    out.backward(given)
    grid = channel_grid(layer[0].weight)
    rounded = grid.rounded(layer[0].weight.detach())
    # Of the input: through the rounded weight. Of the weight: the rounded input, and no factor.
    torch.testing.assert_close(x.grad, given @ rounded)
    rows = table_grid(x).rounded(x.detach())
    torch.testing.assert_close(layer[0].weight.grad, given.T @ rows)


def test_a_table_is_rounded_as_a_whole_or_row_by_row_and_learns() -> None:
    torch.manual_seed(2)
    table = nn.Embedding(12, 6)
    ids = torch.tensor([[1, 4], [4, 11]])
    for tables in ("tensor", "row"):
        model = nn.Sequential(copy.deepcopy(table), nn.Linear(6, 2))
        quantized(model, QuantScheme(tables=tables))  # type: ignore[arg-type]
        found = model[0](ids)  # type: ignore[operator]
        weight = table.weight.detach().numpy()
        if tables == "tensor":
            q, scale, zero = integers_of_activations(weight)
            wanted = (q.astype(FLOAT) - zero) * scale
        else:
            q8, scales = integers_of_weights(weight, 127)
            wanted = q8 * scales[:, None]
        np.testing.assert_allclose(found.detach().numpy(), wanted[ids.numpy()], rtol=1e-6)
        found.sum().backward()
        grad = model[0].weight.grad  # type: ignore[union-attr]
        assert grad[4].tolist() == [2.0] * 6  # type: ignore[index]
        assert not grad[0].any()  # type: ignore[index]


@pytest.mark.parametrize(("bits", "group"), [(4, 8), (4, None), (8, None), (4, 5)])
def test_groups_of_inputs_have_scales_of_their_own(bits: int, group: int | None) -> None:
    torch.manual_seed(3)
    weight = torch.randn(3, 16)
    weight[1, :8] = 0.0
    size = group or 16
    wanted = np.zeros((3, 16), FLOAT)
    for row in range(3):
        for start in range(0, 16, size):
            part = weight[row, start : start + size].numpy()
            scale = FLOAT(np.abs(part).max() / ((2**bits - 1) / 2)) or FLOAT(1)
            q = np.clip(np.rint(part / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            wanted[row, start : start + size] = q * scale
    np.testing.assert_allclose(group_grid(weight, bits, group).rounded(weight), wanted, rtol=1e-6)
    assert group_scales(weight, bits, group).shape == (3, -(-16 // size))


def test_a_model_goes_on_the_grid_and_off_again() -> None:
    tokenizer = wordpiece()
    plain = BertForSequenceClassification(tiny_bert(tokenizer).config).eval()
    model = copy.deepcopy(plain)
    names = list(model.state_dict())
    assert quantized(model, ONNX_DYNAMIC) == 4 * 6 + 2  # layers, pooler, classifier
    assert list(model.state_dict()) == names
    assert rounding_error(model) < 0.01
    ids = torch.tensor([[3, 20, 21, 4]])
    with torch.no_grad():
        rounded, floats = model(ids).logits, plain(ids).logits
        assert 0 < float((rounded - floats).abs().max()) < 0.05
        dequantized(model)
        assert torch.equal(model(ids).logits, floats)
    assert not any(isinstance(m, QuantLinear | QuantEmbedding) for m in model.modules())


def test_a_tied_head_stays_tied_and_may_stay_float() -> None:
    model = tiny_llama(byte_bpe(), layers=2)
    quantized(model, ONNX_DYNAMIC)
    assert isinstance(model.lm_head, QuantLinear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    dequantized(model)
    quantized(model, W4A16)
    assert type(model.lm_head) is nn.Linear
    assert type(model.model.embed_tokens) is nn.Embedding
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantLinear)
    assert rounding_error(model) > rounding_error_of(W8A16)


def rounding_error_of(scheme: QuantScheme) -> float:
    model = tiny_llama(byte_bpe(), layers=2)
    quantized(model, scheme)
    return rounding_error(model)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma3"])
def test_families_run_and_learn_on_the_grid(family: str) -> None:
    model = model_of(family, 60)
    floats = model(torch.arange(8)[None]).logits.detach()
    quantized(model, ONNX_DYNAMIC)
    logits = model(torch.arange(8)[None]).logits
    assert float((logits - floats).detach().std()) < 0.1 * float(floats.std())
    logits.square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name


def test_a_model_without_linear_layers_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20))
    with pytest.raises(UserError, match="no linear layers"):
        quantized(gpt2, W8A16)
