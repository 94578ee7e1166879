"""`stillhouse mine`: from request logs to a ranked list of tasks, with a recipe for the best.

    read -> redact -> spool -> group by shape and template -> kinds -> figures -> rank -> write

Works in a folder beside the wanted one and renames it at the end: if it fails, nothing is stored.
Knows the order of the work; each step is a module of its own.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors, void, write_atomic
from stillhouse.core.money import ModelPrice, model_price
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import TEACHER_FORMS, Price, PricesSection, TeacherSection
from stillhouse.models.embedders import HASHING
from stillhouse.traffic.call import Call
from stillhouse.traffic.earlier import PAGE, REJECTS, REPORT, file_hashes, require_replaceable
from stillhouse.traffic.formats import FORMATS, LogFormat
from stillhouse.traffic.group import assignment, find_tasks
from stillhouse.traffic.logs import LogReader, Reject
from stillhouse.traffic.redact import DEFAULT_KINDS, Redactor
from stillhouse.traffic.refine import refine
from stillhouse.traffic.spool import (
    Spool,
    estimated_completion,
    estimated_prompt,
    text_hash,
)
from stillhouse.traffic.summarise import Inputs, summarise
from stillhouse.traffic.task_recipe import UNKNOWN_SERVER, canonical_model, priced_name
from stillhouse.traffic.tasks_page import render_tasks
from stillhouse.traffic.tasks_report import TasksReport

REJECT_CHARS: Final = 2000


class MineOptions(NamedTuple):
    """What to mine and how.

    `kinds` of personal data are replaced; `days` is the time the log covers where it does not say;
    `repeats` are logs of inputs that were asked again, used for self-agreement alone; `teacher`
    goes into the recipes instead of the model that answered.
    """

    logs: tuple[Path, ...]
    out: Path
    format: LogFormat | None = None
    kinds: tuple[str, ...] = DEFAULT_KINDS
    prices: PricesSection = PricesSection()
    days: float | None = None
    min_requests: int = 50
    top: int = 3
    teacher: str | None = None
    repeats: tuple[Path, ...] = ()
    embedder: str = HASHING


class Mined(NamedTuple):
    """The report, and the task number (rank from 0, -1: none) of each call in order of reading."""

    report: TasksReport
    labels: npt.NDArray[np.int32]


def mine(options: MineOptions, progress: Progress) -> Mined:
    """Find, rank and write the tasks of some logs.

    Raises:
        UserError: a log is missing or nothing of it can be read, or `out` holds other files, or
            an earlier result in which somebody has worked.
        RedactionError: personal data could not be looked for. Nothing is stored then.
    """
    _check(options)
    redactor = Redactor(options.kinds)
    work = options.out.with_name(options.out.name + ".partial")
    with disk_errors(work):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    try:
        mined = _mine(options, redactor, work, progress)
        require_replaceable(options.out)  # somebody may have worked there meanwhile
        with disk_errors(options.out):
            shutil.rmtree(options.out, ignore_errors=True)
            work.rename(options.out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return mined


def _check(options: MineOptions) -> None:
    if options.min_requests < 1:
        raise UserError("--min-requests", "must be at least 1", value=options.min_requests)
    if options.days is not None and not options.days > 0:
        raise UserError("--days", "must be above 0", value=options.days)
    if options.top < 1:
        raise UserError("--top", "must be at least 1", value=options.top)
    require_replaceable(options.out)


def _mine(options: MineOptions, redactor: Redactor, work: Path, progress: Progress) -> Mined:
    spool = Spool(work / "spool.jsonl")
    try:
        reader, redacted = _read(options, redactor, spool, work, progress)
        again = _answered_again(options, redactor)
        columns = spool.columns()
        progress.say(f"{len(spool):,} requests read; looking for tasks")
        found = find_tasks(spool, columns, options.min_requests)
        tasks = refine(spool, columns, found, options.min_requests, options.embedder)
        inputs = Inputs(
            spool,
            columns,
            reader,
            redacted,
            redactor.kinds,
            again,
            options.prices,
            options.days,
            options.top,
            options.teacher,
        )
        report, order = summarise(tasks, inputs, work)
        labels = assignment(len(spool), [tasks[index].found.calls for index in order])
    finally:
        spool.close()
    report = report.model_copy(update={"files": file_hashes(work)})
    text = report.model_dump_json(indent=2) + "\n"
    recipes = {
        task.name: (work / task.recipe).read_text(encoding="utf-8")
        for task in report.tasks
        if task.recipe is not None
    }
    page = render_tasks(report, recipes)
    write_atomic(work / REPORT, lambda handle: void(handle.write(text)))
    write_atomic(work / PAGE, lambda handle: void(handle.write(page)))
    return Mined(report, labels)


def _read(
    options: MineOptions, redactor: Redactor, spool: Spool, work: Path, progress: Progress
) -> tuple[LogReader, Counter[str]]:
    """Read all logs into the spool; rejects go to their own file, redacted like all else."""
    found: Counter[str] = Counter()
    with (work / REJECTS).open("w", encoding="utf-8") as rejects:

        def keep(reject: Reject) -> None:
            line = {
                "file": reject.path,
                "line": reject.line,
                "reason": reject.reason,
                "detail": redactor.line(reject.detail),
                "text": redactor.line(reject.text)[:REJECT_CHARS],
            }
            with disk_errors(work):
                rejects.write(json.dumps(line, ensure_ascii=False) + "\n")

        # A folder of logs may hold earlier results; this one's files must not feed it.
        reader = LogReader(options.logs, options.format, keep, (options.out, work))
        pricing = Pricing(options.prices)
        names: dict[str, str] = {}
        with progress.bar("reading logs", None, "requests") as bar:
            for call in reader:
                clean, replaced = redactor.call(call)
                found.update(replaced)
                name = names.get(clean.model)
                if name is None:
                    name = names[clean.model] = canonical_model(clean.model, options.prices)
                clean = clean._replace(model=name)
                spool.add(clean, text_hash(repr(call.turns)), pricing.cost_usd(call))
                bar.advance()
    return reader, found


def _answered_again(options: MineOptions, redactor: Redactor) -> list[tuple[int, str]]:
    """(hash of the input, answer) of the calls in the logs of repeats."""
    if not options.repeats:
        return []
    again: list[tuple[int, str]] = []
    for call in LogReader(options.repeats, options.format):
        clean, _ = redactor.call(call)
        if clean.answer is not None and not (call.failed or call.cached):
            again.append((text_hash(repr(call.turns)), clean.answer))
    return again


class Pricing:
    """USD of a call: the user's own price, else what the log says it cost, else the price table."""

    def __init__(self, prices: PricesSection) -> None:
        self._prices = prices
        self._known: dict[str, ModelPrice | None] = {}

    def _price(self, model: str) -> ModelPrice | None:
        if model not in self._known:
            self._known[model] = model_price(self._prices, model) or model_price(
                self._prices, priced_name(model)
            )
        return self._known[model]

    def cost_usd(self, call: Call) -> float | None:
        """`None` where the price is not known; tokens that the log lacks are estimated."""
        from_table = self._price(call.model)
        own = from_table is not None and from_table.provider is None
        if call.cached and not own:
            return call.cost_usd or 0.0
        if call.cost_usd is not None and not own:
            return call.cost_usd
        if from_table is None:
            return None
        prompt, completion = call.prompt_tokens, call.completion_tokens
        return from_table.cost_usd(
            estimated_prompt(call) if prompt is None else prompt,
            estimated_completion(call) if completion is None else completion,
        )


def mine_options(
    logs: Sequence[Path],
    out: Path,
    *,
    log_format: str | None,
    redact: str,
    price: Sequence[str],
    days: float | None,
    min_requests: int,
    top: int,
    teacher: str | None,
    repeats: Sequence[Path],
) -> MineOptions:
    """The options as the command line gives them.

    Raises:
        UserError: one of them cannot be used.
    """
    if teacher is not None:
        try:
            TeacherSection(model=teacher, base_url=_server_for(teacher))
        except ValidationError:
            raise UserError(
                "--teacher", "is no teacher", value=teacher, action=f"write {TEACHER_FORMS}"
            ) from None
    return MineOptions(
        logs=tuple(logs),
        out=out,
        format=next((name for name in FORMATS if name == log_format), None),
        kinds=parse_kinds(redact),
        prices=parse_prices(price),
        days=days,
        min_requests=min_requests,
        top=top,
        teacher=teacher,
        repeats=tuple(repeats),
    )


def _server_for(teacher: str) -> str | None:
    return UNKNOWN_SERVER if teacher.startswith("openai-compatible:") else None


def parse_prices(items: Sequence[str]) -> PricesSection:
    """`MODEL=INPUT,OUTPUT` items (USD per million tokens) as the recipe's prices.

    Raises:
        UserError: an item is not of that form.
    """
    models: dict[str, Price] = {}
    for item in items:
        model, _, numbers = item.rpartition("=")
        try:
            given, asked = (float(number) for number in numbers.split(","))
            models[model] = Price(input_usd_per_mtok=given, output_usd_per_mtok=asked)
        except ValueError:
            model = ""
        if not model.strip():
            raise UserError(
                "--price",
                "is not MODEL=INPUT,OUTPUT in USD per million tokens",
                value=item,
                action="write it as --price my-model=2.5,10",
            )
    return PricesSection(models=models)


def parse_kinds(text: str) -> tuple[str, ...]:
    """Kinds of personal data from `email,phone`; `none` is none of them.

    Raises:
        UserError: there is nothing in it.
    """
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    if not kinds:
        raise UserError("--redact", "names no kind", action="write none to redact nothing")
    return () if kinds == ("none",) else kinds
