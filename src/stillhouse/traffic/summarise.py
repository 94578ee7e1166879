"""From tasks and their numbers to the ranked report, with the recipe of each recommended task.

Says in words why a task is recommended or not. Knows the figures; how they come about is in `rank`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from stillhouse.core.jsonl import void, write_atomic
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.traffic.call import iso_time
from stillhouse.traffic.logs import LogReader
from stillhouse.traffic.rank import (
    answers_of,
    distillability,
    latency_of,
    self_agreement,
    spend_of,
    window_days,
)
from stillhouse.traffic.refine import Refined
from stillhouse.traffic.spool import CACHED, FAILED, Columns, Spool, mask, text_hash
from stillhouse.traffic.task_recipe import (
    UNKNOWN_SERVER,
    Teacher,
    prompt_of,
    recipe_text,
    teacher_of,
    traffic_lines,
    usable_calls,
    write_traffic,
)
from stillhouse.traffic.tasks_report import (
    LogSummary,
    MinedTask,
    Prompt,
    TaskExample,
    TasksReport,
    Unpriced,
    Window,
)

WORTH: Final = 0.3  # distillability from which a task is recommended
ADVISED_INPUTS: Final = 10_000
EXAMPLES: Final = 5
EXAMPLE_CHARS: Final = 600
FEWEST: Final = DatasetSection().min_examples
_WORDS: Final = (
    "a alone an and are as assistant be below by each expert following for from given have helpful "
    "i in into is it its no of on one only or our out please reply return s task that the their "
    "these this to today us use user was we with you your"
)
_DULL: Final = frozenset(_WORDS.split())


class Inputs(NamedTuple):
    """All that the figures rest on."""

    spool: Spool
    columns: Columns
    reader: LogReader
    redacted: Counter[str]
    kinds: tuple[str, ...]
    again: Sequence[tuple[int, str]]
    prices: PricesSection
    days: float | None
    top: int
    teacher: str | None


class Summary(NamedTuple):
    """The report, and the index of each reported task among the given ones, in order of rank."""

    report: TasksReport
    order: list[int]


def summarise(tasks: Sequence[Refined], inputs: Inputs, work: Path) -> Summary:
    """Rank the tasks, and write recipe and traffic of the recommended ones under `work`."""
    columns = inputs.columns
    measured = window_days(columns)
    days = inputs.days or measured
    names = _names(tasks)
    rows = [_row(task, name, inputs, days) for task, name in zip(tasks, names, strict=True)]
    order = sorted(range(len(rows)), key=lambda index: _rank_key(rows[index]))
    ranked: list[MinedTask] = []
    total = spend_of(columns, np.arange(len(inputs.spool)), days)
    for index in order:
        row = rows[index]
        chosen = row.recommended and sum(task.recommended for task in ranked) < inputs.top
        row = row.model_copy(update={"recommended": chosen})
        if chosen:
            row = _written(row, tasks[index], inputs, work)
        reasons = _reasons(row, total.usd_per_month if days else total.usd)
        ranked.append(row.model_copy(update={"reasons": reasons}))
    in_tasks = sum(row.requests for row in ranked)
    report = TasksReport(
        logs=tuple(
            LogSummary(path=str(file.path), format=file.format, calls=file.calls)
            for file in inputs.reader.files
        ),
        calls=len(inputs.spool),
        skipped=dict(inputs.reader.skipped),
        rejected=dict(inputs.reader.rejected),
        renamed_ids=inputs.reader.renamed,
        redacted=dict(sorted(inputs.redacted.items())),
        redaction=inputs.kinds,
        window=_window(columns, days),
        usd=total.usd,
        usd_per_month=total.usd_per_month,
        unpriced=_unpriced(inputs),
        tasks=tuple(ranked),
        other=len(inputs.spool) - in_tasks,
        notes=(),
    )
    return Summary(report.model_copy(update={"notes": _notes(report, inputs.days)}), order)


def _row(task: Refined, name: str, inputs: Inputs, days: float | None) -> MinedTask:
    """All figures of one task; whether it is among the recommended is settled by rank."""
    spool, columns, calls = inputs.spool, inputs.columns, task.found.calls
    answers = answers_of(columns, task)
    agreement = self_agreement(spool, columns, task, inputs.again)
    distinct = len(np.unique(columns.input[calls]))
    usable = len(np.unique(columns.input[usable_calls(columns, task)]))
    ability = distillability(columns, task, answers, agreement, distinct)
    spend = spend_of(columns, calls, days)
    basis = spend.usd_per_month if days else spend.usd
    latency = latency_of(columns, calls)
    models = np.bincount(columns.model[calls], minlength=len(spool.models))
    flags = columns.flags[calls]
    return MinedTask(
        name=name,
        kind=task.kind.kind,
        recommended=ability.score >= WORTH and usable >= FEWEST and answers.n > 0,
        reasons=(),
        requests=len(calls),
        share=len(calls) / len(spool),
        requests_per_day=len(calls) / days if days else None,
        distinct_inputs=distinct,
        failed=int(((flags & FAILED) > 0).sum()),
        cached=int(((flags & CACHED) > 0).sum()),
        models={
            spool.models[index] or "unknown": int(models[index])
            for index in np.argsort(-models, kind="stable").tolist()
            if models[index]
        },
        prompt_tokens=int(columns.prompt[calls].sum()),
        completion_tokens=int(columns.completion[calls].sum()),
        tokens_estimated=float(columns.estimated[calls].mean()),
        usd=spend.usd,
        usd_per_month=spend.usd_per_month,
        value=None if basis is None else basis * ability.score,
        latency_p50_ms=latency.p50,
        latency_p95_ms=latency.p95,
        answers=answers,
        self_agreement=agreement,
        distillability=ability,
        prompt=Prompt(
            system=task.system,
            system_like=_cut(task.sample[0].system) or None if task.system is None else None,
            prompt=prompt_of(task.found.template),
            few_shot=task.found.few_shot,
            dialogue=task.found.shape == "dialogue" and not task.found.few_shot,
        ),
        tools=task.found.tools,
        examples=_examples(task),
    )


def _rank_key(row: MinedTask) -> tuple[bool, float, float, str]:
    """Known spend first, by value; without a price by tokens times distillability."""
    tokens = (row.prompt_tokens + row.completion_tokens) * row.distillability.score
    return row.value is None, -(row.value or 0.0), -tokens, row.name


def _written(row: MinedTask, task: Refined, inputs: Inputs, work: Path) -> MinedTask:
    traffic = work / row.name / "traffic.jsonl"
    count = write_traffic(traffic, traffic_lines(inputs.spool, inputs.columns, task))
    if inputs.teacher is not None:
        compatible = inputs.teacher.startswith("openai-compatible:")
        server = UNKNOWN_SERVER if compatible else None
        teacher = Teacher(inputs.teacher, server, compatible)
    else:
        model = next(iter(row.models))
        base = inputs.spool.model_bases.get(model)
        teacher = teacher_of(model if model != "unknown" else "", base, inputs.prices)
    text = recipe_text(row, task, teacher, inputs.prices, count)
    recipe = work / row.name / "recipe.yaml"
    write_atomic(recipe, lambda handle: void(handle.write(text)))
    return row.model_copy(
        update={
            "recipe": str(recipe.relative_to(work)),
            "traffic": str(traffic.relative_to(work)),
        }
    )


def _examples(task: Refined) -> tuple[TaskExample, ...]:
    """Some requests with their answers, one of each common answer first."""
    seen: set[str] = set()
    first: list[TaskExample] = []
    rest: list[TaskExample] = []
    template = task.found.template
    for call in sorted(task.sample, key=lambda call: text_hash(call.id)):
        text = template.slot(call.last) if template.fits(call.last) else call.last
        example = TaskExample(
            text=_cut(text), answer=None if call.answer is None else _cut(call.answer)
        )
        key = (call.answer or "")[:80]
        (rest if key in seen else first).append(example)
        seen.add(key)
    return tuple((first + rest)[:EXAMPLES])


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARS else text[: EXAMPLE_CHARS - 1] + "…"


def _names(tasks: Sequence[Refined]) -> list[str]:
    """A short name for each task from its instruction's own words; no two are equal."""
    taken: Counter[str] = Counter()
    names: list[str] = []
    for task in tasks:
        template = task.found.template
        texts = [template.head, template.tail, task.system or "", task.sample[0].system]
        if len({call.last for call in task.sample}) == 1:
            texts.append(task.sample[0].last[:200])
        words: list[str] = []
        for text in texts:
            plain = re.sub(r"<[A-Z]+>", " ", mask(text))
            for word in re.findall(r"[a-z][a-z0-9]+", plain.lower()):
                if word not in _DULL and word not in words:
                    words.append(word)
            if len(words) >= 3:
                break
        name = "-".join(words[:4])[:48].strip("-")
        name = name or ("chat" if task.found.shape == "dialogue" else task.kind.kind)
        taken[name] += 1
        while taken[name] > 1:
            name = f"{name}-{taken[name]}"
            taken[name] += 1
        names.append(name)
    return names


def _reasons(row: MinedTask, total: float | None) -> tuple[str, ...]:
    """Why the task stands where it stands, most important first."""
    said: list[str] = []
    cost = row.usd_per_month if row.usd_per_month is not None else row.usd
    if cost is not None:
        span = "a month" if row.usd_per_month is not None else "in the log"
        share = f", {100 * cost / total:.0f}% of all" if total else ""
        said.append(f"costs ${cost:,.2f} {span}{share}")
    else:
        said.append(f"{row.prompt_tokens + row.completion_tokens:,} tokens; the price is not known")
    if not row.answers.n:
        said.append("the log holds no answers to it")
    elif row.kind == "classification":
        said.append(
            f"{len(row.answers.labels)} labels cover {100 * row.answers.covered:.1f}% of answers"
        )
    elif row.kind == "extraction":
        said.append(f"{100 * row.answers.covered:.1f}% of the answers fit one JSON schema")
    else:
        said.append(f"free text, {row.answers.median_tokens:,.0f} tokens at the median")
    if row.self_agreement is not None:
        one = row.self_agreement
        said.append(
            f"the model agrees with itself on {100 * one.estimate:.0f}% "
            f"[{100 * one.low:.0f}, {100 * one.high:.0f}] of {one.n:,} repeated inputs"
        )
    if not row.distillability.text_only:
        said.append("uses tools or images, which a student here cannot")
    elif row.distinct_inputs < FEWEST:
        said.append(f"only {row.distinct_inputs:,} distinct inputs: a cache serves these")
    elif row.distinct_inputs < ADVISED_INPUTS:
        said.append(f"{row.distinct_inputs:,} distinct inputs; {ADVISED_INPUTS:,} are advised")
    else:
        said.append(f"{row.distinct_inputs:,} distinct inputs")
    if row.distillability.text_only and row.distillability.score < WORTH:
        said.append(f"distillability {row.distillability.score:.2f} is below {WORTH}")
    return tuple(said)


def _window(columns: Columns, days: float | None) -> Window:
    times = columns.at[~np.isnan(columns.at)]
    if not len(times):
        return Window(first=None, last=None, days=days)
    return Window(first=iso_time(float(times.min())), last=iso_time(float(times.max())), days=days)


def _unpriced(inputs: Inputs) -> tuple[Unpriced, ...]:
    columns = inputs.columns
    missing = np.isnan(columns.cost) & ((columns.flags & (FAILED | CACHED)) == 0)
    found = []
    for index, model in enumerate(inputs.spool.models):
        calls = np.flatnonzero(missing & (columns.model == index))
        if len(calls):
            found.append(
                Unpriced(
                    model=model or "unknown",
                    requests=len(calls),
                    prompt_tokens=int(columns.prompt[calls].sum()),
                    completion_tokens=int(columns.completion[calls].sum()),
                )
            )
    return tuple(sorted(found, key=lambda one: -one.requests))


def _notes(report: TasksReport, given_days: float | None) -> tuple[str, ...]:
    """What the reader must know before relying on the figures."""
    notes: list[str] = []
    for one in report.unpriced:
        notes.append(
            f"the price of {one.model} is not known ({one.requests:,} requests, "
            f"{one.prompt_tokens + one.completion_tokens:,} tokens); give it with "
            f"--price '{one.model}=INPUT,OUTPUT' in USD per million tokens"
        )
    days = report.window.days
    if days is None:
        notes.append(
            "the log has no times; for monthly figures give the days it covers with --days"
        )
    elif days < 2 and given_days is None:
        notes.append(
            f"the log covers {24 * days:,.1f} hours; monthly figures are scaled up from it"
        )
    estimated = sum(row.tokens_estimated * row.requests for row in report.tasks)
    if estimated:
        notes.append(
            f"{estimated:,.0f} requests have no token counts; theirs are estimated at one token "
            "for 4 characters"
        )
    if not report.redaction:
        notes.append("personal data was not looked for: these files hold it as the log does")
    lost = sum(report.rejected.values())
    if lost:
        notes.append(f"{lost:,} lines could not be used; each is in rejects.jsonl with its reason")
    return tuple(notes)
