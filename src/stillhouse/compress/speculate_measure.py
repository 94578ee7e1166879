"""Measures a target and its drafts by transformers: lengths, acceptance, losslessness, speed.

Lengths are chosen on some prompts; all that is reported comes from others. Knows targets, drafts
and prompts; knows no recipe file and no run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stillhouse.compress.speculate_counts import PromptRounds, Resamples, acceptance
from stillhouse.compress.speculate_draft import Draft, make_draft
from stillhouse.compress.speculate_expect import expected_speedup, fit_cost
from stillhouse.compress.speculate_report import (
    ALONE,
    DRAFT,
    LOOKUP,
    UNDISTILLED,
    Cost,
    RuntimeReport,
    Tried,
    Way,
)
from stillhouse.compress.speculate_speed import Answer, Timed, Turns, fastest, take_turns
from stillhouse.compress.speculate_transformers import Answered, Target
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_speculate import SpeculateSection
from stillhouse.models.loading import Loaded


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt in the target's ids. `text` is the same for runtimes that cut it themselves."""

    id: str
    group: Hashable
    task: str
    segment: str | None
    ids: tuple[int, ...]
    text: str


class Prompts(NamedTuple):
    """Prompts to choose lengths on, and prompts to report on."""

    choose: Sequence[Prompt]
    report: Sequence[Prompt]


class Chosen(NamedTuple):
    """The best length of each way, what was tried, and what rounds cost."""

    lengths: Mapping[str, int]
    tried: tuple[Tried, ...]
    cost: Cost


def choose_lengths(
    target: Target,
    drafts: Mapping[str, Loaded],
    prompts: Sequence[Prompt],
    section: SpeculateSection,
    progress: Progress,
) -> Chosen:
    """Time `draft` and `undistilled` at every length, and prompt lookup, beside the target alone.

    Raises:
        UserError: a draft whose tokenizer does not go with the target's.
    """
    made: dict[str, Draft] = {}
    ways: dict[str, Answer] = {ALONE: timed(target, prompts, section.max_tokens)}
    lengths: dict[str, tuple[str, int]] = {}
    for name in (DRAFT, UNDISTILLED):
        for length in section.draft_lengths if name in drafts else ():
            key = f"{name} {length}"
            made[key] = make_draft(
                drafts[name], target.loaded, target.ends, length, section.draft_confidence
            )
            ways[key] = timed(target, prompts, section.max_tokens, draft=made[key])
            lengths[key] = (name, length)
    for length in section.lookup_lengths:
        key = f"{LOOKUP} {length}"
        ways[key] = timed(target, prompts, section.max_tokens, lookup=length)
        lengths[key] = (LOOKUP, length)
    target.clock.seconds.clear()
    with progress.bar("draft lengths", len(prompts), "prompts") as bar:
        turns = take_turns(ways, range(len(prompts)), 1, bar.advance)
    base = turns.tokens_per_second(ALONE)
    step = target.clock.mean(1)
    clocks = [d.clock for key, d in made.items() if lengths[key][0] == DRAFT]
    steps = sum(c.steps for c in clocks)
    c = sum(k.seconds for k in clocks) / steps / step if steps and step else None
    tried = tuple(
        Tried(
            way=name,
            length=length,
            tokens_per_second=turns.tokens_per_second(key),
            speedup=turns.tokens_per_second(key) / base,
            tokens_a_pass=turns.tokens_a_pass(key),
            expected=_expected(turns, key, length, c) if name != LOOKUP else None,
        )
        for key, (name, length) in lengths.items()
    )
    best: dict[str, int] = {}
    for name in dict.fromkeys(way for way, _ in lengths.values()):
        best[name] = lengths[fastest(turns, [k for k, v in lengths.items() if v[0] == name])][1]
    return Chosen(best, tried, _cost(target, tried, c, step))


def _expected(turns: Turns, key: str, length: int, c: float | None) -> float | None:
    """The formula's speed-up at the rate that gives this many tokens a pass."""
    a_pass = turns.tokens_a_pass(key)
    if c is None or a_pass is None:
        return None
    return a_pass / (length * c + 1.0)


def _cost(target: Target, tried: Sequence[Tried], c: float | None, step: float | None) -> Cost:
    mine = [t for t in tried if t.way == DRAFT and t.tokens_a_pass is not None]
    verify = {}
    for t in mine:
        mean = target.clock.mean(t.length + 1)
        if mean is not None and step:
            verify[t.length + 1] = mean / step
    if len(mine) < 2:
        return Cost(measured=c, verify=verify)
    costs = [(t.tokens_a_pass or 0.0) / t.speedup for t in mine]
    fitted = fit_cost([t.length for t in mine], costs)
    return Cost(measured=c, fixed=fitted.fixed, per_token=fitted.per_token, verify=verify)


def timed(
    target: Target,
    prompts: Sequence[Prompt],
    max_tokens: int,
    *,
    draft: Draft | None = None,
    lookup: int | None = None,
) -> Answer:
    """A greedy answer to a prompt by number, timed."""

    def answer(number: int) -> Timed:
        found = target.answer(prompts[number].ids, max_tokens, draft=draft, lookup=lookup)
        return Timed(len(found.tokens), found.seconds, len(found.rounds))

    return answer


def greedy_answers(
    target: Target,
    prompts: Sequence[Prompt],
    max_tokens: int,
    draft: Draft | None,
    advance: Callable[[], None],
) -> list[Answered]:
    """All prompts answered greedily."""
    found = []
    for prompt in prompts:
        found.append(target.answer(prompt.ids, max_tokens, draft=draft))
        advance()
    return found


def rounds_by_prompt(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> list[PromptRounds]:
    """Rounds with what intervals and parts go by."""
    return [
        PromptRounds(p.id, p.group, p.task, p.segment, a.rounds)
        for p, a in zip(prompts, answers, strict=True)
    ]


def measure_speed(
    target: Target,
    drafts: Mapping[str, Loaded],
    prompts: Sequence[Prompt],
    chosen: Chosen,
    *,
    section: SpeculateSection,
    how: Resamples,
    progress: Progress,
    compared: tuple[int, int],
) -> RuntimeReport:
    """Each way at its best length, on prompts on which none was chosen.

    `compared` is how many answers were identical, and of how many.
    """
    used = prompts[: section.speed_prompts]
    ways: dict[str, Answer] = {ALONE: timed(target, used, section.max_tokens)}
    for name, length in chosen.lengths.items():
        if name == LOOKUP:
            ways[name] = timed(target, used, section.max_tokens, lookup=length)
        else:
            made = make_draft(
                drafts[name], target.loaded, target.ends, length, section.draft_confidence
            )
            ways[name] = timed(target, used, section.max_tokens, draft=made)
    with progress.bar("speed", len(used) * section.speed_repeats, "prompts") as bar:
        turns = take_turns(ways, range(len(used)), section.speed_repeats, bar.advance)
    return runtime_report("transformers", turns, used, chosen, how=how, compared=compared)


def runtime_report(
    runtime: str,
    turns: Turns,
    prompts: Sequence[Prompt],
    chosen: Chosen,
    *,
    how: Resamples,
    compared: tuple[int, int],
) -> RuntimeReport:
    """The findings of one runtime."""
    groups = [p.group for p in prompts]

    def against(base: str) -> object:
        return turns.speedup(DRAFT, base, groups, how) if base in turns.timed else None

    return RuntimeReport.model_validate(
        {
            "runtime": runtime,
            "prompts": len(prompts),
            "tried": chosen.tried,
            "ways": {
                name: Way(
                    length=chosen.lengths.get(name, 0),
                    tokens_per_second=turns.tokens_per_second(name),
                    tokens_a_pass=turns.tokens_a_pass(name),
                    speedup=None if name == ALONE else turns.speedup(name, ALONE, groups, how),
                )
                for name in turns.timed
            },
            "over_lookup": against(LOOKUP),
            "over_undistilled": against(UNDISTILLED),
            "identical": compared[0],
            "compared": compared[1],
            "cost": chosen.cost,
        }
    )


def expected_at(rounds: Sequence[PromptRounds], length: int, c: float | None) -> float | None:
    """The formula at the measured rate and cost."""
    found = acceptance(rounds)
    if found is None or c is None:
        return None
    return expected_speedup(found.rate.estimate, length, c)
