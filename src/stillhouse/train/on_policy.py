"""On-policy distillation: the student writes, the teacher says what it would have thought.

Before a micro-batch is counted, its completions may be replaced by ones that the student (or, at
sequence level, the teacher) samples for the same prompts; the objective then compares both models'
beliefs at every token of what was written. Generalised knowledge distillation, Agarwal et al. 2024
(arXiv:2306.13649): no reward, no gradient through the sampling. The teacher's own samples are the
sequence-level distillation of Kim & Rush 2016 (arXiv:1606.07947).

Knows prompts, models and seeds; knows no divergence.

Legend: B batch, T tokens, P longest prompt, C longest new completion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from stillhouse.core.recipe_on_policy import OnPolicySection
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.batches import DOMAIN
from stillhouse.train.objectives import HeldOutSums, Objective
from stillhouse.train.outputs import Batch, Counts, StepAt

Writer = Literal["data", "student", "teacher"]
WRITTEN_BY: Final = "written_by"  # of a prepared batch: index into WRITERS
WRITERS: Final[tuple[Writer, ...]] = ("data", "student", "teacher")


class Writing(NamedTuple):
    """How completions are sampled. `ends` are the tokens that end one."""

    section: OnPolicySection
    seed: int
    ends: Sequence[int]
    pad_token_id: int
    longest: int  # most tokens of prompt and completion together
    ids: int | None = None  # only ids below are written; `None`: all that the writer has


@dataclass(frozen=True, slots=True)
class OnPolicy:
    """An objective over a mixture of given and freshly sampled completions.

    Each micro-batch is, by a draw from seed, step and number alone, of the data
    (probability 1 - student_fraction - teacher_fraction), written by the student, or written by the
    teacher. All ranks draw alike, so that sharded models generate together.

    Args:
        given: the objective for the data's completions and for the teacher's.
        sampled: the objective for the student's: its own tokens are no truth to be learnt, so it
            has no hard-target part.
        teacher: the model that writes where `teacher_fraction` is above 0.
        writing: how.
    """

    given: Objective
    sampled: Objective
    teacher: Any
    writing: Writing

    def prepare(self, model: Any, batch: Batch, step: StepAt) -> Batch:
        """See `Objective`: the micro-batch, its completions replaced or as they are."""
        writer = self.writer(step)
        if writer == "data":
            return self.given.prepare(model, batch, step)
        inner = model if writer == "student" else self.teacher
        seed = _seed(self.writing.seed, "write", step.number, step.micro, step.rank)
        written = rewritten(getattr(inner, "module", inner), batch, self.writing, seed)
        mark = torch.tensor(WRITERS.index(writer), device=written["labels"].device)
        return {**written, WRITTEN_BY: mark}

    def writer(self, step: StepAt) -> Writer:
        """Who writes this micro-batch; the same on all ranks."""
        drawn = _seed(self.writing.seed, "writer", step.number, step.micro) / 2**63
        section = self.writing.section
        if drawn < section.student_fraction:
            return "student"
        return "teacher" if drawn < section.student_fraction + section.teacher_fraction else "data"

    def loss(self, model: Any, batch: Batch, counts: Counts) -> Tensor:
        """See `Objective`."""
        mark = batch.get(WRITTEN_BY)
        by_student = mark is not None and WRITERS[int(mark)] == "student"
        return (self.sampled if by_student else self.given).loss(model, batch, counts)

    def held_out(self, model: Any, batch: Batch) -> HeldOutSums:
        """See `Objective`: on the held-out completions as they were given."""
        return self.given.held_out(model, batch)


def rewritten(model: Any, batch: Batch, writing: Writing, seed: int) -> Batch:
    """The batch's prompts with completions that `model` samples: `input_ids`, `attention_mask`,
    `labels`, padded on the right.

    A prompt ends before the first label. What is sampled ends with an end token, which is a target
    too, or after `max_new_tokens`, or where the batch's longest prompt and what follows it reach
    the student's `max_tokens`. The caller's random state is left alone.
    """
    prompts = _prompts(batch)
    tokens = sample(model, prompts, writing, seed)
    there = (batch["labels"] != IGNORE_INDEX).any(-1).tolist()
    rows, labels = [], []
    for prompt, new, counts in zip(prompts, tokens, there, strict=True):
        rows.append(torch.cat([prompt, new]))
        targets = new if counts else torch.full_like(new, IGNORE_INDEX)  # else it fills up a batch
        labels.append(torch.cat([torch.full_like(prompt, IGNORE_INDEX), targets]))
    return {
        **{name: batch[name] for name in (DOMAIN,) if name in batch},
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=writing.pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Tensor], writing: Writing, seed: int
) -> list[Tensor]:  # of [C_i]
    """One completion for each prompt [P_i], with its end token where it came to one.

    Drawn from softmax(logits / sampling_temperature) over the ids that may be written, with a
    key-value cache, in evaluation mode, whatever the model's own generation settings say (top-k,
    penalties, thresholds): what is trained on is what the model says. Prompts are padded on the
    left.
    """
    longest = max(len(prompt) for prompt in prompts)
    room = min(writing.section.max_new_tokens, writing.longest - longest)
    ids = torch.stack([_left(prompt, longest, writing.pad_token_id) for prompt in prompts])
    mask = torch.stack([_left(torch.ones_like(prompt), longest, 0) for prompt in prompts])
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max(1, room),
        do_sample=True,
        temperature=writing.section.sampling_temperature,
        top_k=0,
        top_p=1.0,
        pad_token_id=writing.pad_token_id,
        eos_token_id=list(writing.ends) or None,
        use_cache=True,
    )
    was_training = model.training
    model.eval()
    devices = [ids.device] if ids.is_cuda else []
    try:
        with torch.random.fork_rng(devices=devices), quiet_transformers(), _only(model, settings):
            torch.manual_seed(seed)
            out: Tensor = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([_Below(writing.ids)]),
                synced_gpus=_several_ranks(),
            )
    finally:
        model.train(was_training)
    return [_whole(row, writing.ends) for row in out[:, longest:]]


class _Below(LogitsProcessor):
    """Leaves ids from a limit on out: rows that pad a head are no tokens, and a model with fewer
    rows has no place to read them."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def __call__(
        self,
        input_ids: Tensor,  # [B, T]
        scores: Tensor,  # [B, V]
    ) -> Tensor:
        if self.limit is None or self.limit >= scores.shape[-1]:
            return scores
        there = torch.arange(scores.shape[-1], device=scores.device) < self.limit
        return scores.masked_fill(~there, -torch.inf)


@contextmanager
def _only(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Inside, these are the model's own generation settings: `generate` takes from those whatever
    its argument leaves open."""
    holders = [part for part in model.modules() if "generation_config" in vars(part)]
    before = [part.generation_config for part in holders]
    try:
        for part in holders:
            part.generation_config = settings
        yield
    finally:
        for part, own in zip(holders, before, strict=True):
            part.generation_config = own


def _prompts(batch: Batch) -> list[Tensor]:
    """What each row of a batch [B, T] is asked: its tokens before the first label; all of a row
    without labels."""
    targets = batch["labels"] != IGNORE_INDEX
    whole = batch["attention_mask"].sum(-1)
    first = torch.where(targets.any(-1), targets.int().argmax(-1), whole)  # [B]
    return [row[:end] for row, end in zip(batch["input_ids"], first.tolist(), strict=True)]


def _left(row: Tensor, length: int, value: int) -> Tensor:
    return torch.cat([row.new_full((length - len(row),), value), row])


def _whole(row: Tensor, ends: Sequence[int]) -> Tensor:
    """The tokens up to and with the first end token; never none."""
    ended = torch.isin(row, row.new_tensor(list(ends))).nonzero()
    return row[: int(ended[0]) + 1] if len(ended) else row


def _several_ranks() -> bool:
    """Whether other ranks generate too: a sharded model's gathers must be called by all alike."""
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _seed(*parts: object) -> int:
    """63 bits that depend on all parts and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
