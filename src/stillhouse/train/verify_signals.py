"""Compare a captured cache with the teacher that is here now.

Examples are picked at random, read by the live teacher, and their stored rows decoded: how far is
what a student would learn from what the teacher says? Knows capture and caches; trains nothing.

Legend: N targets, V vocabulary, K kept entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_signals import CaptureSection
from stillhouse.core.records import Example, Record
from stillhouse.core.runfolder import RunFolder
from stillhouse.models.head import Head
from stillhouse.models.signal_cache import SignalCache
from stillhouse.models.signal_codec import decode
from stillhouse.models.signal_layout import CacheManifest
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)
from stillhouse.train.cached_teacher import HELD_OUT, TRAIN, open_signals, with_head
from stillhouse.train.capture import Part, material_of, of_teacher, read_examples
from stillhouse.train.capture_live import LiveBeliefs
from stillhouse.train.planning_signals import reads_logprobs

BATCH: Final = 8
# What the reconstruction error of each format is: which way, and of what.
MEANS: Final = {
    "dense": "KL(live || stored)",
    "hidden": "KL(live || stored)",
    "top_k": "KL(live || stored), the tail's mass spread evenly over what was not kept",
    "sampled": "KL(stored || live) of a row's draws as a distribution: their sampling noise",
}


class Verified(Record):
    """How one set of a cache compares. Divergences are in nats a token.

    `same_rows` is the share of rows that the live teacher would write bit for bit alike.
    """

    set: str
    format: str
    examples: int
    rows: int
    bytes_per_row: float
    size_bytes: int
    hard_rows: int
    compared_rows: int = 0
    error_is: str = ""
    mean_kl: float | None = None
    p95_kl: float | None = None
    same_rows: float | None = None


def verify_run(root: Path, recipe: Recipe, sample: int) -> list[Verified]:
    """`verify_signals` for what a run folder holds.

    Raises:
        UserError: the cache does not belong to this run's dataset or teacher.
        RunFolderError: there is none, or it is damaged.
    """
    run = RunFolder(root)
    tuned = run.stage("tune") / "model" if recipe.teacher.tune else None
    return verify_signals(recipe, run.stage("dataset"), run.stage("capture"), sample, tuned=tuned)


def verify_signals(
    recipe: Recipe, dataset_dir: Path, folder: Path, sample: int, *, tuned: Path | None = None
) -> list[Verified]:
    """Compare keys and checksums of both sets, and `sample` examples of each with the teacher.

    What an API said cannot be asked again: of those, and of beliefs over classes, which are the
    examples' own, only checksums and sizes are looked at (training compares the keys).

    Raises:
        UserError: the cache is of another teacher, tokenizer, template, length or dataset.
        RunFolderError: it is damaged.
    """
    signals = open_signals(folder)
    if recipe.student.head == "label" or reads_logprobs(recipe):
        both = ((TRAIN, signals.train), (HELD_OUT, signals.held_out))
        return [_sizes(name, cache.manifest) for name, cache in both]
    sets = {name: read_examples(dataset_dir / f"{name}.jsonl") for name in (TRAIN, HELD_OUT)}
    section = recipe.capture or CaptureSection()
    key, parts = of_teacher(recipe, section, material_of(recipe, sets, tuned), tuned)
    signals.require(**key.model_dump())
    head = with_head(signals, recipe.teacher.model if tuned is None else str(tuned), "cpu").head
    found = []
    for part in parts:
        cache = signals.train if part.name == TRAIN else signals.held_out
        if cache.layout != part.layout:
            raise UserError(
                "capture",
                f"{cache.folder} was captured as {cache.layout.to_json()}, the recipe says "
                f"{part.layout.to_json()}",
                action="run: stillhouse capture RECIPE",
            )
        found.append(_compared(cache, head, part, sets[part.name], sample))
    return found


def _picked(examples: int, sample: int, seed: int) -> list[int]:
    chosen: list[int] = np.random.default_rng(seed).permutation(examples)[:sample].tolist()
    return sorted(chosen)


def _sizes(name: str, manifest: CacheManifest) -> Verified:
    return Verified(
        set=name,
        format=manifest.layout.format,
        examples=manifest.examples,
        rows=manifest.rows,
        bytes_per_row=round(manifest.bytes_per_row, 2),
        size_bytes=manifest.size_bytes,
        hard_rows=manifest.hard_rows,
    )


def _compared(
    cache: SignalCache, head: Head | None, part: Part, examples: Sequence[Example], sample: int
) -> Verified:
    """One set: the rows of some examples, stored against live."""
    beliefs = part.beliefs
    assert isinstance(beliefs, LiveBeliefs)
    picked = _picked(len(examples), sample, beliefs.seed)
    errors: list[Tensor] = []
    same: list[Tensor] = []
    for start in range(0, len(picked), BATCH):
        members = picked[start : start + BATCH]
        named = [part.named[member] for member in members]
        numbers = [
            cache.find(one.example, one.tokens, one.rows, examples[member].id)
            for one, member in zip(named, members, strict=True)
        ]
        stored = cache.read(numbers, head).signal
        again = decode(part.layout, beliefs.encoded(members), head).signal
        same.append(_same_rows(stored, again))
        at = 0
        for chunk in beliefs.chunks(members):
            rows = torch.arange(at, at + len(chunk.logits))
            live = chunk.logits.float().cpu()
            if part.layout.format != "hidden":  # what is stored is over the ids that both have
                live = live[:, : part.layout.width]
            logits = live / part.layout.distillation_temperature
            errors.append(reconstruction_kl(stored.select(rows), logits))
            at += len(rows)
    error = torch.cat(errors)
    return _sizes(part.name, cache.manifest).model_copy(
        update={
            "compared_rows": len(error),
            "error_is": MEANS[part.layout.format],
            "mean_kl": float(error.mean()),
            "p95_kl": float(error.quantile(0.95)),
            "same_rows": float(torch.cat(same).float().mean()),
        }
    )


def reconstruction_kl(signal: TeacherSignal, logits: Tensor) -> Tensor:
    """How far a stored signal is from live logits [N, V]: nats a position [N]; see `MEANS`."""
    log_p = logits.double().log_softmax(-1)
    match signal:
        case SampledSignal():
            weights = signal.weights.double()
            share = weights / weights.sum(-1, keepdim=True)
            gap = torch.xlogy(share, share) - share * log_p.gather(-1, signal.token_ids)
            return gap.sum(-1)
        case SparseSignal():
            rest = log_p.shape[-1] - signal.token_ids.shape[-1]
            even = signal.tail_log_mass.double() - (math.log(rest) if rest else 0.0)
            spread = even[:, None].expand_as(log_p)
            log_r = spread.scatter(-1, signal.token_ids, signal.log_probs.double())
        case DenseSignal():
            log_r = signal.logits.double()
        case HiddenSignal():
            log_r = signal.dense().logits.double().cpu()
    log_r = log_r[:, : log_p.shape[-1]].log_softmax(-1)
    return (log_p.exp() * (log_p - log_r)).sum(-1)


def _same_rows(stored: TeacherSignal, again: TeacherSignal) -> Tensor:
    """Which rows of two signals of one layout are equal in every number [N]."""
    same = torch.ones(stored.positions, dtype=torch.bool)
    for one, other in zip(_numbers(stored), _numbers(again), strict=True):
        width = max(one.shape[-1], other.shape[-1])  # rows are as wide as their batch's widest
        padded = [functional.pad(x, (0, width - x.shape[-1])) for x in (one, other)]
        same &= (padded[0] == padded[1]).all(-1)
    return same


def _numbers(signal: TeacherSignal) -> tuple[Tensor, ...]:
    match signal:
        case SampledSignal():
            return signal.token_ids, signal.weights
        case SparseSignal():
            return signal.token_ids, signal.log_probs, signal.tail_log_mass[:, None]
        case DenseSignal():
            return (signal.logits,)
        case HiddenSignal():
            return (signal.hidden,)


def verified_lines(found: Sequence[Verified]) -> Iterator[str]:
    """The results as lines for people."""
    for one in found:
        yield (
            f"{one.set}: {one.format}, {one.examples:,} examples, {one.rows:,} rows, "
            f"{one.bytes_per_row:.1f} bytes a row, {one.size_bytes / 1e6:,.1f} MB"
        )
        if one.hard_rows:
            yield f"  {one.hard_rows:,} rows are hard labels"
        if one.mean_kl is None:
            yield "  keys and checksums agree; what was said with the answers cannot be asked again"
        else:
            yield (
                f"  {one.compared_rows:,} rows against the live teacher: {one.error_is}: "
                f"mean {one.mean_kl:.3g}, p95 {one.p95_kl:.3g} nats; "
                f"{one.same_rows:.1%} of rows the same bit for bit"
            )
