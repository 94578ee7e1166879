"""Is speculative decoding lossless? Greedy answers token for token; sampled ones by tests.

Greedy: every prompt is answered by the target alone and with the draft. Where they part, it is said
at which token and by how much the target preferred one to the other: a pass over several tokens
adds up its sums in another order than a pass over one, and two tokens within that rounding are a
tie, which no decoder settles. Any other difference is a fault of the decoder. Neither is lossless.

Knows a target and its drafts; the tests are in `speculate_tests`.

Shapes: T tokens, V vocabulary, N drawn tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from stillhouse.compress.speculate_draft import Draft
from stillhouse.compress.speculate_tests import (
    Drawn,
    detectable_distance,
    joined,
    leak_test,
    same_distribution,
    token_facts,
    uniform_test,
)
from stillhouse.compress.speculate_transformers import Answered, Target
from stillhouse.core.multiplicity import holm
from stillhouse.core.recipe_speculate import SamplingTestSection
from stillhouse.core.records import Record

NOISES: Final = 4.0  # a gap of so many roundings is a tie
LEAST_NOISE: Final = 1e-5  # nats


class Divergence(Record):
    """Where two greedy answers part. `gap` is what the target, read in one pass, gives the one
    token over the other, in nats; `rounding` by how much its passes differ at that place."""

    id: str
    token: int = Field(ge=0)
    alone: int
    drafted: int
    gap: float
    rounding: float
    tie: bool


class GreedyCheck(Record):
    """How many prompts were answered with the same tokens."""

    prompts: int
    identical: int
    tokens: int
    divergences: tuple[Divergence, ...]

    @property
    def lossless(self) -> bool:
        """Whether there is no difference, a tie neither: the target alone says something else."""
        return self.identical == self.prompts


class SampledTest(Record):
    """One test; `adjusted` is its p-value after Holm, over all of them."""

    name: str
    p_value: float
    adjusted: float
    says: str


class SampledCheck(Record):
    """Tests of sampled answers. `expected_acceptance` is 1 - TV(p, q), averaged over the places of
    the sampled answers: the chance that a drafted token is accepted there."""

    tests: tuple[SampledTest, ...]
    significance: float
    sampling_temperature: float
    expected_acceptance: float
    tokens: int

    @property
    def lossless(self) -> bool:
        """Whether no test rejects."""
        return all(t.adjusted > self.significance for t in self.tests)


def greedy_check(
    target: Target,
    ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    alone: Sequence[Answered],
    drafted: Sequence[Answered],
) -> GreedyCheck:
    """Compare answers to the same prompts, and look into each difference."""
    found: list[Divergence] = []
    for name, prompt, a, b in zip(ids, prompts, alone, drafted, strict=True):
        if a.tokens != b.tokens:
            found.append(_divergence(target.loaded.model, name, prompt, a.tokens, b.tokens))
    return GreedyCheck(
        prompts=len(prompts),
        identical=len(prompts) - len(found),
        tokens=sum(len(a.tokens) for a in alone),
        divergences=tuple(found),
    )


@torch.no_grad()
def _divergence(
    model: Any, name: str, prompt: Sequence[int], a: Sequence[int], b: Sequence[int]
) -> Divergence:
    at = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    if at == min(len(a), len(b)):  # one goes on where the other has ended: no tie of tokens
        longer = a if len(a) > len(b) else b
        return Divergence(
            id=name,
            token=at,
            alone=longer[at] if longer is a else -1,
            drafted=longer[at] if longer is b else -1,
            gap=float("inf"),
            rounding=0.0,
            tie=False,
        )
    read = torch.tensor([[*prompt, *a[:at]]], device=model.device)
    whole = _last(model(input_ids=read, use_cache=False).logits)
    cache = DynamicCache(config=model.config)
    if read.shape[1] > 1:
        model(input_ids=read[:, :-1], past_key_values=cache, use_cache=True)
    stepped = _last(model(input_ids=read[:, -1:], past_key_values=cache, use_cache=True).logits)
    pair = torch.tensor([a[at], b[at]], device=whole.device)
    rounding = max(float((whole[pair] - stepped[pair]).abs().max()), LEAST_NOISE)
    gap = float((whole[pair[0]] - whole[pair[1]]).abs())
    return Divergence(
        id=name,
        token=at,
        alone=a[at],
        drafted=b[at],
        gap=gap,
        rounding=rounding,
        tie=gap <= NOISES * rounding,
    )


def _last(logits: Tensor) -> Tensor:
    return logits[0, -1].float().log_softmax(-1)


def sampled_check(
    target: Target,
    draft: Draft,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    section: SamplingTestSection,
    *,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> SampledCheck:
    """Sample with the draft and test the answers; see `speculate_tests`.

    Raises:
        ValueError: no prompts.
    """
    temperature = section.sampling_temperature
    parts: list[Drawn] = []
    for number, prompt in enumerate(prompts[: section.prompts]):
        answer = target.answer(
            prompt, max_tokens, draft=draft, sampling_temperature=temperature, seed=seed + number
        )
        parts.append(
            _facts(
                target,
                draft,
                prompt,
                answer.tokens,
                temperature=temperature,
                seed=seed + number,
            )
        )
        advance()
    drawn = joined(parts)
    fixed = prompts[: section.fixed_prompts]
    count = 1 + (leak_test(drawn, section.significance) is not None) + len(fixed)
    each = section.significance / count  # what the smallest p-value is held to
    tests: list[tuple[str, float, str]] = []
    leak = leak_test(drawn, each)
    if leak is not None:
        tests.append(
            (
                "draft leak",
                leak.p_value,
                f"{100 * leak.leak:+.2f}% of {leak.tokens:,} tokens in excess from the draft; "
                f"{100 * leak.detectable:.2f}% would be found with 90%",
            )
        )
    tests.append(
        ("uniform", uniform_test(drawn), f"{len(drawn.uniform):,} tokens by the target's quantiles")
    )
    for number, prompt in enumerate(fixed):
        sides: list[list[tuple[int, ...]]] = []
        for side, helper in enumerate((draft, None)):
            sides.append(
                [
                    target.answer(
                        prompt,
                        section.tokens,
                        draft=helper,
                        sampling_temperature=temperature,
                        seed=_seed(seed, number, side, draw),
                    ).tokens
                    for draw in range(section.seeds)
                ]
            )
            advance()
        kinds = len({*sides[0], *sides[1]})
        least = detectable_distance(section.seeds, kinds, each)
        tests.append(
            (
                f"prompt {number + 1}",
                same_distribution(sides[0], sides[1], seed),
                f"{kinds} answers of {section.tokens} tokens in {section.seeds} draws a side; a "
                f"total variation of about {least:.2f} would be found with 90%",
            )
        )
    adjusted = holm([p for _, p, _ in tests])
    return SampledCheck(
        tests=tuple(
            SampledTest(name=n, p_value=p, adjusted=after, says=says)
            for (n, p, says), after in zip(tests, adjusted, strict=True)
        ),
        significance=section.significance,
        sampling_temperature=temperature,
        expected_acceptance=float(1.0 - drawn.distance.mean()),
        tokens=len(drawn.uniform),
    )


@torch.no_grad()
def _facts(
    target: Target,
    draft: Draft,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    temperature: float,
    seed: int,
) -> Drawn:
    """Both models' distributions at each token of an answer, and what the tests need of them."""
    model = target.loaded.model
    tokens = [*prompt, *answer]
    first = len(prompt) - 1
    logits = model(input_ids=torch.tensor([tokens[:-1]], device=model.device), use_cache=False)
    p = (logits.logits[0, first:].float() / temperature).softmax(-1).cpu()  # [N, V]
    q = draft.beliefs(tokens[:-1], first, temperature)
    return token_facts(
        p.double().numpy(), q.double().numpy(), np.asarray(answer, dtype=np.int64), seed
    )


def _seed(seed: int, *parts: int) -> int:
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1)[0])
