"""Answers of a target by transformers: alone, with a draft, or with prompt lookup; all counted.

One prompt at a time, as assisted generation is. What was drafted in each pass is read off the
target's own forward calls, so that every kind of draft is counted in the same way, whatever inside
transformers made it. Knows models and token ids.

Shapes: T prompt tokens, W tokens of a pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig

from stillhouse.compress.speculate_counts import Round, rounds_of
from stillhouse.compress.speculate_draft import Draft
from stillhouse.models.chat import end_ids
from stillhouse.models.loading import Loaded
from stillhouse.models.quiet import quiet_transformers

LOOKUP_NGRAM = 2  # transformers' own default


class Answered(NamedTuple):
    """One answer: its tokens, the passes of the target and the time all took."""

    tokens: tuple[int, ...]
    rounds: tuple[Round, ...]
    seconds: float


@dataclass
class PassClock:
    """Seconds of the target's passes, by the number of tokens read; prompts are left out."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def mean(self, width: int) -> float | None:
        """Mean seconds of a pass over `width` tokens; `None` where there was none."""
        found = self.seconds.get(width)
        return sum(found) / len(found) if found else None


@dataclass
class Target:
    """A language model that answers prompts, with or without help.

    `ends` are the tokens that end an answer.
    """

    loaded: Loaded
    ends: tuple[int, ...]
    clock: PassClock = field(default_factory=PassClock)

    def answer(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        draft: Draft | None = None,
        lookup: int | None = None,
        sampling_temperature: float = 0.0,
        seed: int = 0,
    ) -> Answered:
        """Answer one prompt. Sampled answers depend on `seed` alone; the caller's random state
        stays.

        Greedy decoding is the argmax of the target, whatever its own generation settings say, and
        a sampled answer is drawn from softmax(logits / sampling_temperature), all of it.
        """
        model = self.loaded.model
        samples = sampling_temperature > 0
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max_tokens,
            do_sample=samples,
            pad_token_id=self.loaded.tokenizer.pad_token_id or 0,
            eos_token_id=list(self.ends) or None,
            use_cache=True,
            **({"temperature": sampling_temperature, "top_k": 0, "top_p": 1.0} if samples else {}),
            **(
                {"prompt_lookup_num_tokens": lookup, "max_matching_ngram_size": LOOKUP_NGRAM}
                if lookup
                else {}
            ),
        )
        ids = torch.tensor([list(prompt)], device=model.device)  # [1, T]
        helper: dict[str, Any] = {"assistant_model": draft} if draft is not None else {}
        devices = [model.device] if model.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices, enabled=samples),
            quiet_transformers(),
            _own_settings(model, settings),
            _watched(model, len(prompt), self.clock) as passes,
        ):
            if samples:
                torch.manual_seed(seed)
            started = time.perf_counter()
            out: Tensor = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                **helper,
            )
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        tokens = tuple(out[0, len(prompt) :].tolist())
        drafts = [row.tolist() for row in passes]
        return Answered(tokens, rounds_of(drafts, tokens), seconds)


def open_target(loaded: Loaded) -> Target:
    """A target that ends its answers where its tokenizer and generation settings say."""
    return Target(loaded, tuple(end_ids(loaded.tokenizer, loaded.model)))


@contextmanager
def _watched(model: Any, prompt: int, clock: PassClock) -> Iterator[list[Tensor]]:
    """Inside, each pass of the target leaves the tokens that were drafted for it."""
    passes: list[Tensor] = []
    started = 0.0

    def before(_: Any, __: Any, given: dict[str, Any]) -> None:
        nonlocal started
        row: Tensor = given["input_ids"][0]  # [W]: the last token said, then the draft
        passes.append(row[1:] if passes else row[prompt:])
        started = time.perf_counter()

    def after(_: Any, __: Any, given: dict[str, Any], ___: Any) -> None:
        if len(passes) > 1:
            width = int(given["input_ids"].shape[1])
            clock.seconds.setdefault(width, []).append(time.perf_counter() - started)

    hooks = (
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    )
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _own_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Inside, these are the model's own generation settings: `generate` takes from those whatever
    its argument leaves open (penalties, top-k)."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before
