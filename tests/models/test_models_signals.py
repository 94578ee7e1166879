"""Signals: construction, selection, and the live signal of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stillhouse.models.signals import (
    DenseSignal,
    accepts,
    from_class_probabilities,
    live_token_signal,
    sparsify,
)


def test_class_probabilities_become_log_probabilities() -> None:
    signal = from_class_probabilities([[0.25, 0.75], [1.0, 0.0]])
    torch.testing.assert_close(signal.logits.softmax(-1), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert signal.positions == (2,)


@pytest.mark.parametrize("rows", [[], [[0.5, 0.6]], [[-0.1, 1.1]], [[float("nan"), 1.0]], [0.5]])
def test_what_is_not_a_distribution_is_refused(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match="class probabilities"):
        from_class_probabilities(rows)


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_sparse_mass_sums_to_one(k: int) -> None:
    dense = DenseSignal(4 * torch.randn(5, 9, generator=torch.Generator().manual_seed(0)))
    sparse = sparsify(dense, k)
    total = sparse.log_probs.exp().sum(-1) + sparse.tail_log_mass.exp()
    torch.testing.assert_close(total, torch.ones(5))
    assert sparse.positions == (5,)
    assert sparse.select(torch.tensor([2, 0])).positions == (2,)
    assert sparse.to("cpu").token_ids.shape == (5, min(k, 9))


@pytest.mark.parametrize("side", ["left", "right"])
def test_live_signal_is_the_models_own_belief_under_padding(llama: Any, side: str) -> None:
    rows = [[5, 9, 77, 31, 8], [40, 41, 42]]
    ids = torch.zeros(2, 6, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    positions = torch.zeros(2, 6, dtype=torch.bool)
    expected = []
    for r, row in enumerate(rows):
        start = 6 - len(row) if side == "left" else 0
        ids[r, start : start + len(row)] = torch.tensor(row)
        mask[r, start : start + len(row)] = 1
        positions[r, start + len(row) - 2 : start + len(row)] = True
        with torch.no_grad():
            expected.append(llama(input_ids=torch.tensor([row])).logits[0, -2:])
    signal = live_token_signal(llama, ids, mask, positions)
    assert not signal.logits.requires_grad
    torch.testing.assert_close(signal.logits, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_no_selected_position_gives_an_empty_signal(llama: Any) -> None:
    ids = torch.tensor([[5, 9, 77]])
    none = torch.zeros_like(ids, dtype=torch.bool)
    assert live_token_signal(llama, ids, torch.ones_like(ids), none).positions == (0,)


def test_accepts_reads_the_forward_pass(llama: Any) -> None:
    assert {"input_ids", "position_ids", "logits_to_keep"} <= accepts(llama)
