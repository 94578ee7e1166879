"""Score language models on the test rows of a corpus, side by side, and time them.

Gives sums for each text; `corpus_report` makes figures with intervals of them. Knows models and
rows; knows no file.

Legend: N targets, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stillhouse.core.progress import Progress
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.corpus_choices import Choices
from stillhouse.train.corpus_rows import Scored
from stillhouse.train.corpus_train import rows_at_once
from stillhouse.train.kinds import Kind, way_of
from stillhouse.train.outputs import Needs, next_tokens
from stillhouse.train.pieces import renumbered
from stillhouse.train.token_rows import TokenCollator

Floats = npt.NDArray[np.float64]
REFERENCE = "teacher"


class Sums(NamedTuple):
    """One model on P texts, each [P]: sums over a text's targets."""

    nats: Floats  # -log q of the text's own tokens
    right: Floats  # first choice is the text's own token
    divergence: Floats  # KL(teacher || model) at T = 1
    agreed: Floats  # first choice is the teacher's


class Counted(NamedTuple):
    """All models on the same texts; `targets` [P] is 0 where a text has none."""

    targets: Floats
    models: Mapping[str, Sums]


class Pace(NamedTuple):
    """Tokens a second of a forward pass with logits at the targets; the median of repeats."""

    tokens_per_s: float
    repeats: Sequence[float]


@torch.no_grad()
def score_texts(
    models: Mapping[str, Any],
    kind: Kind,
    scored: Scored,
    tokenizer: PreTrainedTokenizerBase,
    *,
    texts: int,
    progress: Progress,
) -> Counted:
    """Sums of each model on each text; `teacher` is among the models and is what others are
    compared with."""
    reader, collator = way_of(kind).reader, TokenCollator(_pad(tokenizer))
    targets = np.zeros(texts)
    found = {name: Sums(*(np.zeros(texts) for _ in Sums._fields)) for name in models}
    device = next(models[REFERENCE].parameters()).device
    size = rows_at_once(scored.rows, models[REFERENCE])
    lengths = scored.rows.lengths
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    with progress.bar("score", len(order), "rows") as ticker:
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            batch = collator([scored.rows[number] for number in numbers])
            of = np.asarray([scored.of[number] for number in numbers])
            text = of[_row_of_each_target(batch["labels"], kind).numpy()]  # [N]
            np.add.at(targets, text, 1.0)
            there = {name: tensor.to(device) for name, tensor in batch.items()}
            gold = reader.targets(there)
            beliefs: dict[str, Tensor] = {}
            for name in sorted(models, key=lambda name: name != REFERENCE):
                logits = reader.read(models[name], there, Needs(logits=True)).class_logits()
                beliefs[name] = logits.float().log_softmax(-1)  # [N, V]
                first = beliefs[REFERENCE]
                own = beliefs[name]
                parts = (
                    -own.gather(-1, gold[:, None]).squeeze(-1),
                    own.argmax(-1) == gold,
                    (first.exp() * (first - own)).sum(-1),
                    own.argmax(-1) == first.argmax(-1),
                )
                for into, part in zip(found[name], parts, strict=True):
                    np.add.at(into, text, part.double().cpu().numpy())
                if name != REFERENCE:
                    del beliefs[name]
            ticker.advance(len(numbers))
    return Counted(targets, found)


def _row_of_each_target(labels: Tensor, kind: Kind) -> Tensor:
    at = next_tokens(labels).positions if kind == "causal_lm" else labels != IGNORE_INDEX
    return at.nonzero()[:, 0]


@torch.no_grad()
def measure_pace(
    models: Mapping[str, Any],
    kind: Kind,
    scored: Scored,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    repeats: int,
    numbers: Mapping[str, Sequence[int]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Pace]:
    """Time forward passes over the same rows, models taking turns, after a warm-up of each.

    `numbers`: the ids that a model of its own vocabulary has for the pieces of the rows.
    """
    reader, collator = way_of(kind).reader, TokenCollator(_pad(tokenizer))
    device = next(models[REFERENCE].parameters()).device
    size = min(16, rows_at_once(scored.rows, models[REFERENCE]))
    chosen = [scored.rows[number] for number in range(min(rows, len(scored.rows)))]
    chosen.sort(key=lambda item: len(item["input_ids"]))
    tokens = sum(len(item["input_ids"]) for item in chosen)

    def batches_of(name: str) -> list[dict[str, Tensor]]:
        ids = (numbers or {}).get(name)
        rows_of = chosen if ids is None else renumbered(chosen, torch.tensor(ids))
        return [
            {key: tensor.to(device) for key, tensor in collator(rows_of[i : i + size]).items()}
            for i in range(0, len(chosen), size)
        ]

    batches = {name: batches_of(name) for name in models}

    def once(name: str) -> float:
        started = clock()
        for batch in batches[name]:
            reader.read(models[name], batch, Needs(logits=True))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return tokens / max(clock() - started, 1e-9)

    for name in models:
        once(name)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name in models:
            rates[name].append(once(name))
    return {name: Pace(float(np.median(found)), tuple(found)) for name, found in rates.items()}


class Chosen(NamedTuple):
    """Which choice a model finds likeliest, for each question [Q]: by the sum of its tokens'
    log-probabilities, and by that sum over the choice's bytes (`acc` and `acc_norm` of
    EleutherAI's evaluation harness)."""

    by_sum: Sequence[int]
    by_bytes: Sequence[int]


@torch.no_grad()
def choose(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Choices], most: int
) -> Chosen:
    """The likeliest choice of each question; prompts are cut from the left to `most` tokens."""
    reader, collator = way_of("causal_lm").reader, TokenCollator(_pad(tokenizer))
    device = next(model.parameters()).device
    by_sum, by_bytes = [], []
    for question in questions:
        items = []
        for choice in question.choices:
            prompt: list[int] = tokenizer(question.prompt)["input_ids"]
            whole: list[int] = tokenizer(question.prompt + choice)["input_ids"]
            # The choice's tokens are those after what both have in common, as they are cut jointly.
            shared = 0
            while shared < min(len(prompt), len(whole) - 1) and prompt[shared] == whole[shared]:
                shared += 1
            shared = max(shared, 1)
            cut = max(0, len(whole) - most)
            labels = [IGNORE_INDEX] * shared + whole[shared:]
            items.append({"input_ids": whole[cut:], "labels": labels[cut:]})
        batch = collator(items)
        there = {name: tensor.to(device) for name, tensor in batch.items()}
        row = _row_of_each_target(batch["labels"], "causal_lm")
        logits = reader.read(model, there, Needs(logits=True)).class_logits()
        own = logits.float().log_softmax(-1).gather(-1, reader.targets(there)[:, None])
        sums = torch.zeros(len(items)).index_add_(0, row, own.squeeze(-1).cpu())
        sizes = torch.tensor([len(choice.encode("utf-8")) for choice in question.choices])
        by_sum.append(int(sums.argmax()))
        by_bytes.append(int((sums / sizes).argmax()))
    return Chosen(by_sum, by_bytes)


def _pad(tokenizer: Any) -> int:
    return int(tokenizer.pad_token_id)
