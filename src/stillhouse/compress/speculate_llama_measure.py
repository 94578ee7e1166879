"""Measures the same by llama.cpp: lengths beside the target alone, then the best of each way.

Knows files and prompts' text. Acceptance here is the share of drafted tokens, which is what
llama.cpp counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from stillhouse.compress.speculate_counts import Resamples
from stillhouse.compress.speculate_expect import fit_cost
from stillhouse.compress.speculate_llama import Draft, LlamaTarget
from stillhouse.compress.speculate_measure import Chosen, Prompt, Prompts, runtime_report
from stillhouse.compress.speculate_report import (
    ALONE,
    DRAFT,
    LOOKUP,
    UNDISTILLED,
    Cost,
    RuntimeReport,
    Tried,
)
from stillhouse.compress.speculate_speed import Answer, Timed, take_turns
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_speculate import SpeculateSection

TARGET = "target"
CONTEXT = 4096  # tokens of prompt and answer


def measure_llama(
    section: SpeculateSection,
    files: Mapping[str, Path],
    prompts: Prompts,
    *,
    threads: int,
    how: Resamples,
    progress: Progress,
) -> RuntimeReport:
    """Lengths, speed and identity of greedy answers. `files` are GGUF: `target`, `draft` and, where
    there is one, `undistilled`.

    Raises:
        MissingExtraError: xllamacpp is not installed.
        UserError: a file that cannot be loaded.
    """
    target = files[TARGET]
    drafts = [
        (name, Draft(length, files[name], section.draft_confidence))
        for name in (DRAFT, UNDISTILLED)
        if name in files
        for length in section.draft_lengths
    ]
    drafts += [(LOOKUP, Draft(length)) for length in section.lookup_lengths]
    tried: list[Tried] = []
    with closing(LlamaTarget(target, CONTEXT, threads)) as alone:
        with progress.bar("llama.cpp lengths", len(drafts), "ways") as bar:
            for name, draft in drafts:
                with closing(LlamaTarget(target, CONTEXT, threads, draft)) as server:
                    ways = {
                        ALONE: _timed(alone, prompts.choose, section.max_tokens),
                        name: _timed(server, prompts.choose, section.max_tokens),
                    }
                    turns = take_turns(ways, range(len(prompts.choose)), 1)
                rates = turns.tokens_per_second(name), turns.tokens_per_second(ALONE)
                tried.append(
                    Tried(
                        way=name,
                        length=draft.length,
                        tokens_per_second=rates[0],
                        speedup=rates[0] / rates[1],
                        tokens_a_pass=turns.tokens_a_pass(name),
                    )
                )
                bar.advance()
        best = {
            name: max((t for t in tried if t.way == name), key=lambda t: t.speedup).length
            for name in dict.fromkeys(t.way for t in tried)
        }
        chosen = Chosen(best, tuple(tried), _cost(tried))
        return _best_of_each(
            section,
            alone,
            files,
            prompts,
            threads=threads,
            how=how,
            progress=progress,
            chosen=chosen,
        )


def _best_of_each(
    section: SpeculateSection,
    alone: LlamaTarget,
    files: Mapping[str, Path],
    prompts: Prompts,
    *,
    threads: int,
    how: Resamples,
    progress: Progress,
    chosen: Chosen,
) -> RuntimeReport:
    used = prompts.report[: section.speed_prompts]
    with ExitStack() as stack:
        servers = {ALONE: alone}
        for name, length in chosen.lengths.items():
            draft = Draft(length, files.get(name), section.draft_confidence)
            server = LlamaTarget(files[TARGET], CONTEXT, threads, draft)
            servers[name] = stack.enter_context(closing(server))
        ways = {n: _timed(server, used, section.max_tokens) for n, server in servers.items()}
        with progress.bar("llama.cpp", len(used) * section.speed_repeats, "prompts") as bar:
            turns = take_turns(ways, range(len(used)), section.speed_repeats, bar.advance)
        same = drafted = accepted = 0
        with progress.bar("llama.cpp answers", len(prompts.report), "prompts") as bar:
            for prompt in prompts.report:
                a = servers[ALONE].answer(prompt.text, section.max_tokens)
                b = servers[DRAFT].answer(prompt.text, section.max_tokens)
                same += (a.text, a.tokens) == (b.text, b.tokens)
                drafted, accepted = drafted + b.drafted, accepted + b.accepted
                bar.advance()
    compared = (same, len(prompts.report))
    report = runtime_report("llama.cpp", turns, used, chosen, how=how, compared=compared)
    return report.model_copy(update={"share": accepted / drafted if drafted else None})


def _timed(server: LlamaTarget, prompts: Sequence[Prompt], max_tokens: int) -> Answer:
    def answer(number: int) -> Timed:
        found = server.answer(prompts[number].text, max_tokens)
        return Timed(found.tokens, found.seconds, found.passes)

    return answer


def _cost(tried: Sequence[Tried]) -> Cost:
    mine = [t for t in tried if t.way == DRAFT and t.tokens_a_pass is not None]
    if len(mine) < 2:
        return Cost(measured=None)
    fitted = fit_cost([t.length for t in mine], [(t.tokens_a_pass or 0) / t.speedup for t in mine])
    return Cost(measured=None, fixed=fitted.fixed, per_token=fitted.per_token)
