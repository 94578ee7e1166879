"""Figures of each task, and their order: spend times distillability.

Spend is the log's own cost where it has one, else tokens at the price table; an unknown price is
asked for, never guessed. Distillability is a weighted mean of parts in [0, 1], times 0 where a
request is more than text; it orders tasks and forecasts nothing (docs/traffic.md). Knows numbers
and samples of answers; reads no log.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.statistics import Interval, proportion
from stillhouse.core.tasks import fold
from stillhouse.traffic.kinds import agree, entropy_bits
from stillhouse.traffic.refine import Refined
from stillhouse.traffic.spool import ANSWERED, CACHED, FAILED, TEXT_ONLY, Columns, Spool
from stillhouse.traffic.tasks_report import Answers, Distillability, LabelShare

DAYS_PER_MONTH: Final = 365.25 / 12
SECONDS_PER_DAY: Final = 86_400.0
WEIGHTS: Final = {"closedness": 0.35, "agreement": 0.25, "brevity": 0.2, "narrowness": 0.2}
BRIEF_TOKENS: Final = 200.0  # an answer of this median length has brevity 1/2
INSTRUCTION_CHARS: Final = 80.0  # fixed characters at which narrowness is 1/2
ENOUGH_INPUTS: Final = 10_000  # distinct inputs from which volume no longer counts against a task
PAIRED_INPUTS: Final = 500
ANSWERS_PER_INPUT: Final = 8


class Spend(NamedTuple):
    """USD of some calls; `None` where the price of any of them is not known."""

    usd: float | None
    usd_per_month: float | None


class Latency(NamedTuple):
    """Milliseconds; `None` where not logged."""

    p50: float | None
    p95: float | None


def window_days(columns: Columns) -> float | None:
    """Days from the first to the last request; `None` where fewer than two have a time."""
    times = columns.at[~np.isnan(columns.at)]
    if len(times) < 2 or times.max() <= times.min():
        return None
    return float(times.max() - times.min()) / SECONDS_PER_DAY


def spend_of(columns: Columns, calls: npt.NDArray[np.int64], days: float | None) -> Spend:
    """What these calls cost. Failed and cached calls whose price is not known cost nothing."""
    costs = columns.cost[calls]
    free = (columns.flags[calls] & (FAILED | CACHED)) > 0
    missing = np.isnan(costs) & ~free
    if missing.any():
        return Spend(None, None)
    usd = float(np.nansum(costs))
    return Spend(usd, usd / days * DAYS_PER_MONTH if days else None)


def latency_of(columns: Columns, calls: npt.NDArray[np.int64]) -> Latency:
    """Median and 95th percentile of the calls that a model answered."""
    values = columns.latency[calls][(columns.flags[calls] & CACHED) == 0]
    values = values[~np.isnan(values)]
    if not len(values):
        return Latency(None, None)
    p50, p95 = np.percentile(values, [50, 95])
    return Latency(float(p50), float(p95))


def answers_of(columns: Columns, task: Refined) -> Answers:
    """What the task's answers are like; the sample gives the texts, all calls the lengths."""
    texts = [call.answer for call in task.sample if call.answer is not None]
    calls = task.found.calls
    lengths = columns.completion[calls][(columns.flags[calls] & ANSWERED) > 0]
    counts = Counter(fold(text) for text in texts)
    median, p95 = np.percentile(lengths, [50, 95]) if len(lengths) else (0.0, 0.0)
    kind = task.kind
    return Answers(
        n=len(texts),
        distinct=len(counts),
        entropy_bits=entropy_bits(list(counts.values())) if texts else None,
        median_tokens=float(median),
        p95_tokens=float(p95),
        closedness=kind.closedness,
        covered=kind.covered,
        labels=tuple(LabelShare(label=one.label, share=one.share) for one in kind.labels),
        json_schema=kind.json_schema,
    )


def self_agreement(
    spool: Spool, columns: Columns, task: Refined, again: Sequence[tuple[int, str]] = ()
) -> Interval | None:
    """How far the model agrees with itself on equal inputs, with its interval over inputs.

    The mean over inputs of the mean over pairs of answers (`kinds.agree`). Answers from a cache say
    nothing and are left out. `None` where no input was answered twice.

    Args:
        again: (hash of the input, answer) of further answers, from a paid sample.
    """
    calls = task.found.calls
    usable = calls[(columns.flags[calls] & (ANSWERED | CACHED)) == ANSWERED]
    inputs = columns.input[usable]
    values, counts = np.unique(inputs, return_counts=True)
    asked_again: dict[int, list[str]] = {}
    for value, answer in again:
        asked_again.setdefault(value, []).append(answer)
    wanted = set(values[counts > 1][:PAIRED_INPUTS].tolist())
    wanted |= set(values[np.isin(values, np.array(list(asked_again), dtype=np.uint64))].tolist())
    if not wanted:
        return None
    chosen = usable[np.isin(inputs, np.array(sorted(wanted), dtype=np.uint64))]
    said: dict[int, list[str]] = {}
    for number, call in zip(chosen.tolist(), spool.read(chosen), strict=True):
        texts = said.setdefault(int(columns.input[number]), [])
        if len(texts) < ANSWERS_PER_INPUT and call.answer is not None:
            texts.append(call.answer)
    means = []
    for value, texts in sorted(said.items()):
        texts = [*texts, *asked_again.get(value, [])][:ANSWERS_PER_INPUT]
        pairs = [
            agree(task.kind.kind, one, other)
            for index, one in enumerate(texts)
            for other in texts[index + 1 :]
        ]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return proportion(means) if means else None


def distillability(
    columns: Columns, task: Refined, answers: Answers, agreement: Interval | None, inputs: int
) -> Distillability:
    """How well a task should distil, in [0, 1].

    score = text_only * volume * sum(w_i * part_i) / sum(w_i), over the parts that are known:

    - closedness (0.35): 1 where the answers are a closed set or shape;
    - agreement (0.25): of the model with itself on equal inputs;
    - brevity (0.2): 1 / (1 + median answer tokens / 200);
    - narrowness (0.2): F / (F + 80), F the median of the fixed characters of a request;
    - volume = min(1, log distinct inputs / log 10,000): too few inputs cannot train a student.
    """
    calls = task.found.calls
    text_only = bool(((columns.flags[calls] & TEXT_ONLY) > 0).mean() >= 0.95)
    parts = {
        "closedness": answers.closedness,
        "brevity": 1.0 / (1.0 + answers.median_tokens / BRIEF_TOKENS),
        "narrowness": narrowness(task),
        "agreement": None if agreement is None else agreement.estimate,
    }
    known = {name: value for name, value in parts.items() if value is not None}
    mean = sum(WEIGHTS[name] * value for name, value in known.items()) / sum(
        WEIGHTS[name] for name in known
    )
    volume = min(1.0, math.log(max(inputs, 1)) / math.log(ENOUGH_INPUTS))
    return Distillability(
        score=mean * volume if text_only else 0.0,
        closedness=answers.closedness,
        brevity=1.0 / (1.0 + answers.median_tokens / BRIEF_TOKENS),
        agreement=parts["agreement"],
        narrowness=narrowness(task),
        volume=volume,
        text_only=text_only,
    )


def narrowness(task: Refined) -> float:
    """F / (F + 80), F the median count of fixed characters: system prompt, template, example turns.

    A long fixed instruction says what is wanted; where there is none, each request says it anew.
    """
    fixed = []
    template = task.found.template
    for call in task.sample:
        same = len(call.system) if task.system is None or call.system == task.system else 0
        same = 0 if task.found.varied else same
        same += template.literal if template.fits(call.last) else 0
        if task.found.few_shot:
            same += sum(len(turn.content) for turn in call.earlier)
        fixed.append(same)
    median = float(np.median(fixed))
    return median / (median + INSTRUCTION_CHARS)
