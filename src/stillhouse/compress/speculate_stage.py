"""The speculate stage: a target and its drafts measured on held-out prompts.

Writes speculate.json and serve/: vLLM's speculative configuration, command lines for `vllm serve`
and `llama-server`, and plain transformers. Knows the run folder and opened models; how they were
trained, it does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import torch

from stillhouse.compress.speculate_counts import (
    PromptRounds,
    Resamples,
    acceptance,
    acceptance_by,
    rate_difference,
)
from stillhouse.compress.speculate_draft import make_draft
from stillhouse.compress.speculate_expect import break_even_acceptance
from stillhouse.compress.speculate_llama_measure import measure_llama
from stillhouse.compress.speculate_lossless import greedy_check, sampled_check
from stillhouse.compress.speculate_measure import (
    Prompt,
    Prompts,
    choose_lengths,
    greedy_answers,
    measure_speed,
    rounds_by_prompt,
)
from stillhouse.compress.speculate_report import (
    DRAFT,
    DraftReport,
    RuntimeReport,
    SpeculateReport,
    drafted,
)
from stillhouse.compress.speculate_serve import (
    Served,
    llama_server_command,
    speculative_config,
    transformers_lines,
    vllm_command,
)
from stillhouse.compress.speculate_transformers import open_target
from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_records, write_atomic, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_speculate import SpeculateSection
from stillhouse.core.records import Example, Query
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import unit_hash
from stillhouse.evaluate.drafted import SUMMARY
from stillhouse.models.chat import prompt_ids, prompt_text
from stillhouse.models.loading import Loaded

REPORT: Final = "speculate.json"
SERVE: Final = "serve"
FEWEST: Final = 4  # prompts


class Models(NamedTuple):
    """The target, and drafts by name: `draft` first, then what it is compared with."""

    target: Loaded
    drafts: Mapping[str, Loaded]
    files: Mapping[str, Path]  # GGUF of the target and of drafts, where llama.cpp is measured


def run_speculate(
    recipe: Recipe,
    models: Models,
    dataset_dir: Path,
    traffic_dir: Path,
    *,
    work: Path,
    progress: Progress,
) -> Outcome:
    """Measure, and write down.

    Raises:
        UserError: a draft whose tokenizer does not go with its target's.
        DataError: too few held-out prompts.
        MissingExtraError: a runtime that is not installed.
    """
    section = recipe.speculate
    assert section is not None, "the stage runs where the recipe has the section"
    prompts = held_out_prompts(recipe, section, models.target, dataset_dir, traffic_dir)
    how = Resamples(recipe.evaluate.confidence, recipe.evaluate.resamples, recipe.seed)
    report = measure(
        section, models, prompts, how, progress=progress, served=_served(recipe, section)
    )
    write_json(work / REPORT, report.model_dump(mode="json"))
    write_json(work / SUMMARY, drafted(report).model_dump(mode="json"))
    _write_configurations(work / SERVE, report, section)
    best = report.best.ways[DRAFT]
    found = report.drafts[DRAFT].acceptance
    return Outcome(
        summary={
            "runtime": report.best.runtime,
            "speedup": 0.0 if best.speedup is None else round(best.speedup.estimate, 3),
            "length": best.length,
            "acceptance": 0.0 if found is None else round(found.rate.estimate, 4),
            "identical": report.greedy.identical,
            "prompts": report.greedy.prompts,
            "lossless": report.lossless,
        },
        measured=frozenset({REPORT, SUMMARY, *(f"{SERVE}/{name}" for name in _FILES)}),
    )


def measure(
    section: SpeculateSection,
    models: Models,
    prompts: Prompts,
    how: Resamples,
    *,
    progress: Progress,
    served: Served,
) -> SpeculateReport:
    """All measurements, in the order of `docs/speculate.md`."""
    target = open_target(models.target)
    chosen = choose_lengths(target, models.drafts, prompts.choose, section, progress)
    length = chosen.lengths[DRAFT]
    with progress.bar("answers", len(prompts.report) * (1 + len(models.drafts)), "answers") as bar:
        alone = greedy_answers(target, prompts.report, section.max_tokens, None, bar.advance)
        drafts = {
            name: make_draft(loaded, target.loaded, target.ends, length, section.draft_confidence)
            for name, loaded in models.drafts.items()
        }
        answers = {
            name: greedy_answers(target, prompts.report, section.max_tokens, draft, bar.advance)
            for name, draft in drafts.items()
        }
    greedy = greedy_check(
        target,
        [p.id for p in prompts.report],
        [p.ids for p in prompts.report],
        alone,
        answers[DRAFT],
    )
    runtimes: list[RuntimeReport] = []
    if "transformers" in section.runtimes:
        compared = (greedy.identical, greedy.prompts)
        runtimes.append(
            measure_speed(
                target,
                models.drafts,
                prompts.report,
                chosen,
                section=section,
                how=how,
                progress=progress,
                compared=compared,
            )
        )
    if "llama.cpp" in section.runtimes:
        threads = max(1, min(torch.get_num_threads(), os.cpu_count() or 1))
        runtimes.append(
            measure_llama(
                section, models.files, prompts, threads=threads, how=how, progress=progress
            )
        )
    sampled = None
    test = section.sampling_test
    if test is not None:
        units = min(test.prompts, len(prompts.report)) + 2 * min(
            test.fixed_prompts, len(prompts.report)
        )
        with progress.bar("sampled answers", units, "answers") as bar:
            sampled = sampled_check(
                target,
                drafts[DRAFT],
                [p.ids for p in prompts.report],
                section.max_tokens,
                test,
                seed=how.seed,
                advance=bar.advance,
            )
    rounds = {name: rounds_by_prompt(prompts.report, found) for name, found in answers.items()}
    cost = chosen.cost.per_token if chosen.cost.per_token is not None else chosen.cost.measured
    return SpeculateReport(
        target=models.target.name,
        target_parameters=models.target.parameters,
        prompts=len(prompts.report),
        drafts={
            name: _draft_report(
                name,
                loaded,
                rounds,
                length=length,
                cost=cost,
                how=how,
                mapped=drafts[name].ids is not None,
            )
            for name, loaded in models.drafts.items()
        },
        greedy=greedy,
        sampled=sampled,
        runtimes=tuple(runtimes),
        serve=_serve(
            served._replace(
                length=length,
                trimmed=section.serve.draft is None and drafts[DRAFT].ids is not None,
            ),
            section,
            {one.runtime: one.ways[DRAFT].length for one in runtimes},
        ),
    )


def _draft_report(
    name: str,
    loaded: Loaded,
    rounds: Mapping[str, Sequence[PromptRounds]],
    *,
    length: int,
    cost: float | None,
    how: Resamples,
    mapped: bool,
) -> DraftReport:
    mine = rounds[name]
    even = None if cost is None or cost < 0 else break_even_acceptance(length, cost)
    return DraftReport(
        source=loaded.name,
        parameters=loaded.parameters,
        mapped=mapped,
        length=length,
        acceptance=acceptance(mine, how),
        by_task=acceptance_by(mine, lambda p: p.task, how),
        by_segment=acceptance_by(mine, lambda p: p.segment, how),
        break_even=even,
        draft_gains=None if name == DRAFT else rate_difference(rounds[DRAFT], mine, how),
    )


def held_out_prompts(
    recipe: Recipe,
    section: SpeculateSection,
    target: Loaded,
    dataset_dir: Path,
    traffic_dir: Path,
) -> Prompts:
    """Held-out prompts in an order of their own, as the target reads them.

    Raises:
        DataError: fewer than four.
    """
    path = dataset_dir / "held_out.jsonl"
    found = sorted(read_records(path, Example), key=lambda e: unit_hash(e.id, recipe.seed))
    if len(found) < FEWEST:
        raise DataError(
            str(path), f"has {len(found)} prompts; drafts are measured on {FEWEST} or more"
        )
    segments = _segments(section.segment, traffic_dir)
    choose = min(section.choose_prompts, len(found) // 3 or 1)
    used = found[: choose + section.prompts]
    tokenizer = target.tokenizer
    made = [
        Prompt(
            example.id,
            example.group,
            example.task,
            segments.get(example.id),
            tuple(ids),
            prompt_text(tokenizer, example.prompt),
        )
        for example, ids in zip(used, prompt_ids(tokenizer, [e.prompt for e in used]), strict=True)
    ]
    return Prompts(made[:choose], made[choose:])


def _segments(key: str | None, traffic_dir: Path) -> dict[str, str]:
    if key is None:
        return {}
    queries = read_records(traffic_dir / "queries.jsonl", Query)
    return {q.id: str(q.metadata[key]) for q in queries if key in q.metadata}


def _served(recipe: Recipe, section: SpeculateSection) -> Served:
    teacher = recipe.teacher.model.removeprefix("hf:")
    return Served(
        section.serve.target or teacher,
        section.serve.draft or "train/student",
        section.draft_lengths[0],
        section.serve.max_model_len,
    )


def _serve(served: Served, section: SpeculateSection, lengths: Mapping[str, int]) -> dict[str, Any]:
    """Configurations; llama.cpp's at its own best length, where it was measured."""
    llama = served._replace(length=lengths.get("llama.cpp", served.length))
    return {
        "speculative_config": speculative_config(served),
        "vllm": vllm_command(served),
        "llama_server": llama_server_command(
            llama, section.target_gguf or "target.gguf", section.draft_gguf or "draft.gguf"
        ),
        "transformers": transformers_lines(served),
    }


_FILES: Final = ("speculative_config.json", "vllm.sh", "llama-server.sh", "transformers.py")


def _write_configurations(folder: Path, report: SpeculateReport, section: SpeculateSection) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    serve: dict[str, Any] = dict(report.serve)
    write_json(folder / _FILES[0], serve["speculative_config"])
    for name, key in zip(_FILES[1:], ("vllm", "llama_server", "transformers"), strict=True):
        text = str(serve[key]).rstrip("\n") + "\n"
        write_atomic(folder / name, partial(_write, text))


def _write(text: str, handle: IO[str]) -> None:
    handle.write(text)
