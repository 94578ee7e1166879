"""Draws and the codec: unbiased, and back to what went in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import RunFolderError
from stillhouse.models.divergence import divergence, forward_kl
from stillhouse.models.drawing import Draws, Spread, draw, uniforms
from stillhouse.models.head import Head
from stillhouse.models.signal_cache import SignalCache
from stillhouse.models.signal_codec import (
    decode,
    encode_belief,
    encode_draws,
    encode_hidden,
    encode_sparse,
    joined,
    split,
)
from stillhouse.models.signal_layout import CacheKey, Layout
from stillhouse.models.signal_writer import Named, SignalWriter, digest
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    sparsify,
)


def logits_of(seed: int, rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def mean_of(signal: SampledSignal, width: int) -> torch.Tensor:
    spread = torch.zeros(len(signal.token_ids), width)
    return spread.scatter_add_(-1, signal.token_ids, signal.weights)


@pytest.mark.parametrize("spread", ["systematic", "independent"])
@pytest.mark.parametrize("proposal", [1.0, 0.8, 1.5])
def test_draws_have_the_belief_as_their_mean(spread: Spread, proposal: float) -> None:
    """20,000 rows of one belief: each mean within five standard errors of its probability.

    One draw's weight w onehot has variance at most sum of p^2 / g - p^2 a token, over S and rows
    (independent; systematic draws have no more).
    """
    rows, samples, width = 20_000, 12, 9
    log_p = logits_of(3, 1, width).log_softmax(-1).double()
    log_g = (log_p / proposal).log_softmax(-1)
    drawn = draw(log_p.expand(rows, width), uniforms(1, rows, samples, spread), proposal)
    layout = Layout(format="sampled", width=width, dtype="float32", samples=samples,
                    proposal_temperature=proposal)  # fmt: skip
    signal = decode(layout, encode_draws(layout, drawn)).signal
    assert isinstance(signal, SampledSignal)
    got = mean_of(signal, width).double().mean(0)
    p, g = log_p.exp()[0], log_g.exp()[0]
    error = ((p**2 / g - p**2) / (samples * rows)).sqrt()
    assert ((got - p).abs() < 5 * error + 1e-7).all()
    # Minus the entropy, from the same draws.
    wanted = float((p * log_p[0]).sum())
    deviation = float(((p / g * log_p[0]) ** 2 * g).sum()) / (samples * rows)
    assert abs(float(drawn.information.double().mean()) - wanted) < 5 * deviation**0.5 + 1e-6


def test_systematic_draws_are_floor_or_ceil_and_vary_less() -> None:
    log_p = logits_of(5, 1, 40).log_softmax(-1)
    spread = {}
    for kind in ("systematic", "independent"):
        drawn = draw(log_p.expand(4000, 40), uniforms(2, 4000, 16, kind))
        layout = Layout(format="sampled", width=40, dtype="float16", samples=16)
        signal = decode(layout, encode_draws(layout, drawn)).signal
        assert isinstance(signal, SampledSignal)
        weights = mean_of(signal, 40)
        spread[kind] = weights.var(0).sum()
        if kind == "systematic":
            counts, expected = weights * 16, log_p.exp() * 16
            assert (counts >= expected.floor() - 1e-4).all()
            assert (counts <= expected.ceil() + 1e-4).all()
    assert spread["systematic"] < 0.7 * spread["independent"]


def test_sampled_gradients_are_unbiased_and_those_of_top_k_are_not() -> None:
    """The mean gradient over 20,000 samplings against the dense one, by five standard errors; the
    top-4 without its tail (renormalised, as is often done) is off by more than that."""
    width, rows, samples = 30, 20_000, 8
    teacher, student = logits_of(1, 1, width) / 2, logits_of(2, 1, width) / 2
    p, q = teacher.softmax(-1)[0], student.softmax(-1)[0]
    drawn = draw(teacher.log_softmax(-1).expand(rows, width), uniforms(0, rows, samples,
                 "independent"))  # fmt: skip
    layout = Layout(format="sampled", width=width, dtype="float16", samples=samples)
    signal = decode(layout, encode_draws(layout, drawn)).signal
    z = student.expand(rows, width).clone().requires_grad_()
    divergence(signal, z).total.backward()
    assert z.grad is not None
    dense = q - p
    error = (p * (1 - p) / (samples * rows)).sqrt()
    assert ((z.grad.mean(0) - dense).abs() < 5 * error + 1e-6).all()
    top = sparsify(DenseSignal(teacher), 4)
    renormalised = torch.zeros(width).scatter(0, top.token_ids[0], top.log_probs[0].softmax(-1))
    assert ((q - renormalised - dense).abs() > 5 * error).any()


def test_zero_and_one_are_never_missed() -> None:
    log_p = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, -torch.inf, 0.0]])
    numbers = torch.tensor([[0.0, 0.5, 1.0 - 2**-53]]).double().expand(2, 3)
    drawn = draw(log_p, numbers)
    assert drawn.token_ids.tolist() == [0, 2]
    assert drawn.counts.tolist() == [3, 3]
    assert drawn.information.tolist() == [0.0, 0.0]


layouts = st.builds(
    Layout,
    format=st.sampled_from(["top_k", "sampled", "dense", "hidden"]),
    width=st.sampled_from([2, 7, 255, 256, 257, 300]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    k=st.sampled_from([1, 2]),
    samples=st.sampled_from([1, 2, 12, 64, 255]),
    draws=st.sampled_from(["systematic", "independent"]),
    proposal_temperature=st.sampled_from([1.0, 0.9, 1.3]),
    distillation_temperature=st.sampled_from([1.0, 2.0]),
)


@settings(max_examples=60, deadline=None)
@given(layouts, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 999))
def test_what_is_encoded_is_decoded(layout: Layout, counts: list[int], seed: int) -> None:
    """Within the rounding of the layout's dtype; pieces come apart and together again."""
    rows = sum(counts)
    logits = logits_of(seed, rows, layout.width)
    head = Head(torch.eye(layout.width))
    if layout.format == "hidden":
        arrays = encode_hidden(layout, logits)
    else:
        numbers = uniforms(seed, rows, layout.samples, layout.draws)
        arrays = encode_belief(layout, logits, numbers)
    parts = split(arrays, counts)
    again = joined(parts)
    assert all(torch.equal(again[name], arrays[name]) for name in arrays)
    size = sum(t.numel() * t.element_size() for t in arrays.values())
    assert size <= rows * layout.most_row_bytes
    stored = decode(layout, arrays, head)
    rounding = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-22}[layout.dtype]
    match stored.signal:
        case DenseSignal() | HiddenSignal():
            dense = stored.signal if isinstance(stored.signal, DenseSignal) else None
            got = dense.logits if dense else stored.signal.hidden
            t = layout.distillation_temperature
            wanted = logits if dense is None else (logits / t).log_softmax(-1)
            torch.testing.assert_close(got, wanted, rtol=rounding, atol=1e-6)
        case SparseSignal():
            top = sparsify(DenseSignal(logits), layout.k)
            assert torch.equal(stored.signal.token_ids, top.token_ids)
            torch.testing.assert_close(
                stored.signal.log_probs, top.log_probs, rtol=rounding, atol=1e-6
            )
        case SampledSignal():
            log_p = (logits / layout.distillation_temperature).log_softmax(-1)
            drawn = draw(log_p, numbers, layout.proposal_temperature)
            used = stored.signal.weights > 0
            assert stored.signal.token_ids[used].tolist() == drawn.token_ids.tolist()
            torch.testing.assert_close(
                stored.signal.weights[used],
                drawn.weights,
                rtol=1e-6 if layout.counted else rounding,
                atol=1e-6,
            )
            assert stored.signal.distillation_temperature == layout.distillation_temperature


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 2**20),
    st.integers(1, 255),
    st.lists(st.integers(0, 2**20), min_size=1, max_size=20),
)
def test_entries_hold_any_id_and_count(width: int, samples: int, numbers: list[int]) -> None:
    layout = Layout(format="sampled", width=width, dtype="float16", samples=samples)
    ids = torch.tensor([number % width for number in numbers])
    counts = torch.tensor([number % samples + 1 for number in numbers])
    one = torch.ones(len(ids))
    drawn = Draws(torch.ones(len(ids), dtype=torch.int64), ids, counts, counts / samples, one)
    signal = decode(layout, encode_draws(layout, drawn)).signal
    assert isinstance(signal, SampledSignal)
    assert signal.token_ids[:, 0].tolist() == ids.tolist()
    torch.testing.assert_close(signal.weights[:, 0], counts / samples)


@pytest.mark.parametrize(
    ("vocabulary", "samples", "most"),
    [(49_152, 12, 40), (128_256, 12, 40), (151_936, 12, 40), (262_144, 12, 40)],
)
def test_twelve_entries_cost_at_most_forty_bytes(vocabulary: int, samples: int, most: int) -> None:
    layout = Layout(format="sampled", width=vocabulary, dtype="float16", samples=samples)
    assert layout.entry_bytes == 3
    assert layout.most_row_bytes <= most


def test_a_whole_top_k_is_the_dense_divergence() -> None:
    teacher, student = logits_of(1, 6, 20), logits_of(2, 6, 20)
    layout = Layout(format="top_k", width=20, dtype="float32", k=20)
    stored = decode(layout, encode_sparse(layout, sparsify(DenseSignal(teacher), 20))).signal
    for temperature in (1.0, 3.0):
        got = divergence(stored, student, temperature).total
        torch.testing.assert_close(got, forward_kl(teacher, student, temperature).total)


def written(folder: Path, examples: int = 9, shard_bytes: float = 150) -> list[torch.Tensor]:
    layout = Layout(format="dense", width=3, dtype="float32")
    named = [Named(digest(b"%d" % n), digest(b"t%d" % n), 1 + n % 3) for n in range(examples)]
    key = CacheKey(teacher="t", teacher_revision="1", read_from="teacher")
    writer = SignalWriter(folder, key, layout, named, shard_bytes)
    rows = [logits_of(n, one.rows, 3).log_softmax(-1) for n, one in enumerate(named)]
    for number, members in enumerate(writer.shards):
        writer.write(number, [{"log_probs": row} for row in rows[members]])
    writer.finish()
    return rows


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=12), st.sampled_from([60, 150, 1e6]))
def test_any_examples_are_read_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], shard_bytes: float
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    rows = written(folder, shard_bytes=shard_bytes)
    cache = SignalCache(folder)
    signal = cache.read(numbers).signal
    assert isinstance(signal, DenseSignal)
    assert torch.equal(signal.logits, torch.cat([rows[number] for number in numbers]))


def test_ranks_share_the_checksums(tmp_path: Path) -> None:
    written(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    SignalCache(tmp_path, part=0, parts=2)
    with pytest.raises(RunFolderError, match="not what was captured"):
        SignalCache(tmp_path, part=1, parts=2)


def test_random_numbers_are_those_of_the_seed_alone() -> None:
    first, second = uniforms(7, 5, 12, "systematic"), uniforms(7, 3, 12, "systematic")
    assert torch.equal(first[:3], second)
    assert bool((first >= 0).all() and (first < 1).all())
    assert (np.diff(first.numpy()) > 0).all()
