"""The recipe and the traffic file of a mined task: `stillhouse run` takes them once terms are set.

The recipe names the model that answers today as the teacher, the prompt as recovered, and a student
for the task's kind. The traffic file holds each distinct redacted request once, as `traffic.read`
reads it. Knows a task's figures; asks no model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import yaml

from stillhouse.core.jsonl import void, write_atomic
from stillhouse.core.money import model_price
from stillhouse.core.recipe_teacher import PricesSection
from stillhouse.core.tasks import TEXT_SLOT
from stillhouse.traffic.call import iso_time
from stillhouse.traffic.refine import Refined
from stillhouse.traffic.spool import FAILED, TEXT_ONLY, Columns, Spool, Spooled, text_hash
from stillhouse.traffic.tasks_report import MinedTask
from stillhouse.traffic.template import FREE, Template

UNKNOWN_SERVER: Final = "http://localhost:8000/v1"
HEADROOM: Final = 1.5  # of the longest usual answer
SPARE: Final = 1.25  # of the expected cost
_OPENAI = re.compile(r"^(gpt-|chatgpt-|o\d|ft:gpt)")
_STUDENTS: Final[Mapping[str, dict[str, Any]]] = {
    "label": {
        "student": {"head": "label", "from": "embedded-encoder", "vocabulary": 6000},
        "train": {
            "alpha": 0.9,
            "distillation_temperature": 2,
            "epochs": 3,
            "learning_rate": 2.0e-4,
        },
    },
    "text": {
        "student": {"head": "text", "from": "hf:meta-llama/Llama-3.2-3B-Instruct"},
        "train": {
            "alpha": 0,
            "epochs": 3,
            "lora": {"r": 16, "alpha": 32, "target_modules": ["q_proj", "v_proj"]},
        },
    },
}


class Teacher(NamedTuple):
    """A teacher as recipes name it. `guessed_server`: the log does not say where it answers."""

    model: str
    base_url: str | None
    guessed_server: bool


def priced_name(model: str) -> str:
    """A log's model name as the price table knows it: `openai/gpt-4o` is `openai:gpt-4o`."""
    provider, slash, rest = model.partition("/")
    return f"{provider}:{rest}" if slash and provider in ("openai", "anthropic") else model


def canonical_model(model: str, prices: PricesSection) -> str:
    """One name for a model's spellings: `openai:gpt-4o` where the table knows it, else its own."""
    name = priced_name(model)
    price = model_price(prices, name) or model_price(PricesSection(), name)
    if price is None or price.provider is None:
        return name
    return f"{price.provider}:{price.model}"


def teacher_of(model: str, api_base: str | None, prices: PricesSection) -> Teacher:
    """Who answered, as a recipe names them."""
    name = priced_name(model)
    kind, colon, rest = name.partition(":")
    if colon and rest and kind in ("openai", "anthropic", "hf", "gguf"):
        return Teacher(name, None, False)
    price = model_price(prices, name)
    if price is not None and price.provider is not None:
        return Teacher(f"{price.provider}:{name}", None, False)
    if _OPENAI.match(name) and not api_base:
        return Teacher(f"openai:{name}", None, False)
    if name.startswith("claude"):
        return Teacher(f"anthropic:{name}", None, False)
    bare = rest if kind == "openai-compatible" and rest else name
    known = bool(api_base and re.fullmatch(r"https?://[^@?#\s]+", api_base))
    server = api_base if known else UNKNOWN_SERVER
    return Teacher(f"openai-compatible:{bare or 'MODEL'}", server, not known)


def prompt_of(template: Template) -> str:
    """The template as `task.prompt`; the bare slot where the literal itself holds a `{text}`."""
    prompt = template.head + TEXT_SLOT + template.tail
    return prompt if prompt.count(TEXT_SLOT) == 1 else TEXT_SLOT


def recipe_text(
    task: MinedTask, refined: Refined, teacher: Teacher, prices: PricesSection, inputs: int
) -> str:
    """The whole recipe as YAML, with comments where the user has to decide."""
    kind = "label" if task.kind == "classification" else "text"
    wanted = max(16, 16 * math.ceil(HEADROOM * task.answers.p95_tokens / 16))
    body: dict[str, Any] = {"kind": task.kind, "name": task.name}
    if refined.system is not None:
        body["system"] = refined.system
    body["prompt"] = prompt_of(refined.found.template)
    if task.kind == "classification":
        body["labels"] = [label.label for label in task.answers.labels]
    if task.kind == "extraction":
        body["json_schema"] = task.answers.json_schema
    asked: dict[str, Any] = {"model": teacher.model}
    if teacher.base_url is not None:
        asked["base_url"] = teacher.base_url
    asked |= {"sampling_temperature": 0, "max_tokens": wanted, "concurrency": 16}
    price = model_price(prices, teacher.model)
    # A budget is refused where the teacher's own price is not known, whatever the log says.
    if task.usd is not None and task.requests and price is not None:
        expected = SPARE * inputs * task.usd / task.requests
        asked["budget_usd"] = float(f"{max(expected, 0.01):.2g}")
    sections = {key: dict(value) for key, value in _STUDENTS[kind].items()}
    soft = kind == "text" or teacher.model.partition(":")[0] in ("hf", "gguf")
    if not soft:  # no API is sure to give log-probabilities, and without them soft targets fail
        sections["train"]["alpha"] = 0
    parts = [
        f"# {task.name}: {task.requests:,} requests in the log; see tasks.html.",
        _yaml({"name": task.name, "seed": 0}),
        _yaml({"task": body}),
        _yaml({"traffic": {"path": "traffic.jsonl"}}).rstrip()
        + "\n  # labelled: labelled.jsonl    # some hundred with a true label: checks the teacher"
        + "\n  # golden: golden.jsonl        # your test set; without it the verdict rests on the"
        + "\n                                # teacher's own answers\n",
        (
            "# The log does not say where this model is served: set base_url.\n"
            * teacher.guessed_server
        )
        + _yaml({"teacher": asked}).rstrip()
        + "\n  # Nothing is asked until terms say whether the outputs may train a model:"
        + "\n  # terms: {may_train: true, says: WHO, on: YYYY-MM-DD}    # see docs/rights.md\n",
        _yaml({"student": sections["student"]}),
        ("# alpha 0.9 adds soft targets, where the teacher gives log-probabilities.\n" * (not soft))
        + _yaml({"train": sections["train"]}),
        _yaml({"evaluate": {"margin": 0.05}}),
    ]
    own = {}
    if price is not None and price.provider is None:
        own = {
            teacher.model: {"input_usd_per_mtok": price.input, "output_usd_per_mtok": price.output}
        }
    if own:
        parts.append(_yaml({"prices": {"models": own}}))
    return "\n".join(parts)


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=96)


def usable_calls(columns: Columns, refined: Refined) -> Any:
    """Numbers of the task's calls that may be asked again: text alone, and not failed."""
    flags = columns.flags[refined.found.calls]
    return refined.found.calls[((flags & TEXT_ONLY) > 0) & ((flags & FAILED) == 0)]


def traffic_lines(spool: Spool, columns: Columns, refined: Refined) -> Iterator[dict[str, Any]]:
    """The task's distinct requests as `traffic.read` reads them.

    A request that the recipe's prompt writes is its text alone; any other keeps its messages.
    """
    template = refined.found.template
    if prompt_of(template) == TEXT_SLOT:
        template = FREE
    seen: set[int] = set()
    calls = usable_calls(columns, refined)
    for number, call in zip(calls.tolist(), spool.read(calls), strict=True):
        key = text_hash(repr(call.turns))
        if key in seen or call.turns[-1].role != "user" or not call.last.strip():
            continue
        seen.add(key)
        line: dict[str, Any] = {"id": call.id}
        text = template.slot(call.last) if template.fits(call.last) else ""
        if text.strip() and _is_written(call, refined.system):
            line["text"] = text
        else:
            line["messages"] = [turn._asdict() for turn in call.turns]
        at = columns.at[number]
        if call.user:
            line["user"] = call.user
        if not np.isnan(at):
            line["at"] = iso_time(float(at))
        yield line


def _is_written(call: Spooled, system: str | None) -> bool:
    """Whether system and prompt of the recipe give back exactly this chat around its text."""
    expected = ["user"] if system is None else ["system", "user"]
    return [turn.role for turn in call.turns] == expected and (
        system is None or call.turns[0].content == system
    )


def write_traffic(path: Path, lines: Iterator[dict[str, Any]]) -> int:
    """Write the lines as JSONL. Returns how many."""
    count = 0

    def write(handle: IO[str]) -> None:
        nonlocal count
        for line in lines:
            void(handle.write(json.dumps(line, ensure_ascii=False) + "\n"))
            count += 1

    write_atomic(path, write)
    return count
