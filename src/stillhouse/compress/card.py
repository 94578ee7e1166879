"""The card of an artefact: README.md beside its files, in the Hugging Face form.

Front matter, then data, teacher, terms, figures and limits. What the run's student card says of the
origin is said here too; the figures are this artefact's own, beside its float parent's. Knows the
table of a compress run; measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from stillhouse.compress.verdicts import megabytes
from stillhouse.core.artefact import CARD, Artefact, Kind
from stillhouse.core.jsonl import void, write_atomic
from stillhouse.core.recipe import Recipe
from stillhouse.core.rights import terms_sentence
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.compressed import CompressedRow, CompressedTable
from stillhouse.evaluate.model_card import (
    KINDS,
    PIPELINE_TAGS,
    BaseModel,
    base_model,
    licence_in,
    limits,
    origin_lines,
    training_sentence,
)
from stillhouse.evaluate.summary import METRIC_NAMES, points, share, times

LIBRARIES: Final[Mapping[Kind, str]] = {
    "onnx": "onnx",
    "executorch": "executorch",
    "gguf": "gguf",
    "genai": "onnxruntime-genai",
    "hf": "transformers",
}
FORMS: Final[Mapping[Kind, str]] = {
    "onnx": "ONNX",
    "executorch": "an ExecuTorch program",
    "gguf": "GGUF",
    "genai": "ONNX for text",
    "hf": "safetensors",
}
RUNTIMES: Final[Mapping[Kind, str]] = {
    "onnx": "onnxruntime",
    "executorch": "ExecuTorch",
    "gguf": "llama.cpp",
    "genai": "onnxruntime-genai",
    "hf": "transformers",
}


def write_card(
    folder: Path,
    recipe: Recipe,
    run: RunFolder,
    *,
    table: CompressedTable,
    row: CompressedRow,
    artefact: Artefact,
    student: Path | None = None,
) -> None:
    """Write an artefact's card into its folder.

    Args:
        folder: the artefact's.
        recipe: the whole recipe.
        run: the run folder.
        table: what the run found, with `row` in it.
        row: the artefact's.
        artefact: its record.
        student: the folder of a student that is not the run's own; its origin is not known here.
    """
    text = card(recipe, run, table, row, artefact, student=student)
    write_atomic(folder / CARD, lambda handle: void(handle.write(text)))


def card(
    recipe: Recipe,
    run: RunFolder,
    table: CompressedTable,
    row: CompressedRow,
    artefact: Artefact,
    *,
    student: Path | None = None,
) -> str:
    """The card's text."""
    base = (
        base_model(recipe)
        if student is None
        else BaseModel(student.name, None, licence_in(student / CARD))
    )
    head: dict[str, Any] = {
        "library_name": LIBRARIES[row.kind],
        "pipeline_tag": PIPELINE_TAGS[recipe.student.head],
        "license": base.licence or "unknown",
    }
    if base.hub_id is not None:
        head["base_model"] = base.hub_id
        head["base_model_relation"] = "quantized"
    head["tags"] = ["distillation", "stillhouse", row.kind, row.precision]
    head["model-index"] = [_index(recipe, table, row)]
    yaml_text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"# {recipe.name}, {row.name}: a student for {recipe.task.name}",
        f"A {KINDS[recipe.student.head]} distilled from "
        f"`{recipe.teacher.model}` for one task ({recipe.task.kind}), as {FORMS[row.kind]} with "
        f"{row.precision} weights: {megabytes(row.size_bytes)}, run by {RUNTIMES[row.kind]}.",
        f"**{'It passes its gate' if row.verdict == 'pass' else 'It does not pass its gate'}.** "
        f"`{row.name}`{row.sentence.removeprefix(row.name)}.",
        "## Where it comes from",
        "\n".join(_origin(recipe, run, base, artefact, student)),
    ]
    if student is None:
        parts += ["## How its float parent was trained", training_sentence(recipe)]
    parts += [
        "## How good it is",
        *_figures(recipe, table, row),
        "## Size and speed",
        _speeds(table, row),
        "## Limits",
        "\n".join(f"- {line}" for line in [*limits(recipe, None), *_own_limits(table)]),
    ]
    return f"---\n{yaml_text}---\n\n" + "\n\n".join(parts) + "\n"


def _origin(
    recipe: Recipe, run: RunFolder, base: BaseModel, artefact: Artefact, student: Path | None
) -> list[str]:
    made = artefact.made_from
    written = ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))
    if student is None:
        lines = origin_lines(recipe, run, base)
    else:
        licence = base.licence or "not known here: look it up at the student's own page"
        lines = [
            f"- Student: the folder `{base.name}`. Its licence: {licence}.",
            f"- Teacher it is compared with: `{recipe.teacher.model}`.",
            f"- The teacher's terms: {terms_sentence(recipe.teacher)}",
        ]
    settings = ", ".join(f"{key} {value}" for key, value in artefact.settings.items())
    return [
        *lines,
        f"- Made from the float student with SHA-256 `{made.student}`"
        + (f" by {written}" if written else "")
        + (f" ({settings})" if settings and len(settings) < 400 else "")
        + ".",
    ]


def _figures(recipe: Recipe, table: CompressedTable, row: CompressedRow) -> list[str]:
    level = f"{recipe.evaluate.confidence:.0%}"
    metric = METRIC_NAMES.get(table.metric, table.metric)
    parts: list[str] = []
    for name, own in row.sets.items():
        parent = table.student.sets[name]
        what = "golden set, true answers" if name == "golden" else "held-out part, the teacher"
        lines = [
            f"| | {metric} | agrees with the teacher |",
            "|---|---|---|",
        ]
        for title, result in ((f"this ({row.name})", own), ("float student", parent)):
            agrees = "" if result.agreement is None else share(result.agreement)
            lines.append(f"| {title} | {share(result.score)} | {agrees} |")
        if name == table.main:
            lines.append(f"| teacher | {share(table.teacher)} | |")
        parts.append(f"Judged on the {what} (n = {own.score.n:,}; {level} intervals):")
        parts.append("\n".join(lines))
    found = [
        ("Kept of the teacher's score", row.retention_teacher),
        ("Kept of the float student's score", row.retention_student),
        ("Gives the float student's answer", row.agreement_student),
    ]
    lines = [f"- {title}: {share(value)}" for title, value in found if value is not None]
    if row.divergence_student is not None:
        d = row.divergence_student
        lines.append(f"- Divergence from the float student: {d.estimate:.4f} nats")
    for whom, gate in (("teacher", row.against_teacher), ("float student", row.against_student)):
        if gate is not None:
            lines.append(
                f"- Not worse than the {whom} by more than {100 * gate.margin:g} points: "
                f"{gate.verdict} ({points(gate.difference)}, {gate.method})"
            )
    return [*parts, "\n".join(lines)]


def _speeds(table: CompressedTable, row: CompressedRow) -> str:
    parent = table.student
    lines = ["| | this | float student |", "|---|---|---|"]
    for title, own, other in (
        ("on disk", megabytes(row.size_bytes), megabytes(parent.size_bytes)),
        ("p50, one at a time", _ms(row.speed.latency_p50_ms), _ms(parent.speed.latency_p50_ms)),
        ("p95, one at a time", _ms(row.speed.latency_p95_ms), _ms(parent.speed.latency_p95_ms)),
        ("queries/s, all at once", _rate(row.speed.qps), _rate(parent.speed.qps)),
        (
            "peak memory",
            f"{row.footprint.peak_rss_mb:,.0f} MiB",
            f"{parent.footprint.peak_rss_mb:,.0f} MiB",
        ),
        (
            "cold start",
            f"{row.footprint.cold_start_s:.2f} s",
            f"{parent.footprint.cold_start_s:.2f} s",
        ),
    ):
        lines.append(f"| {title} | {own} | {other} |")
    machine = table.machine
    lines.append(
        f"\n{times(row.latency_speedup)} the float student's speed one at a time, "
        f"{times(row.throughput_speedup)} all at once; in turns on {machine.processor}, "
        f"{machine.cores} cores."
    )
    return "\n".join(lines)


def _own_limits(table: CompressedTable) -> list[str]:
    return ["Its speed is of the machine named above: measure it where it will run.", *table.notes]


def _index(recipe: Recipe, table: CompressedTable, row: CompressedRow) -> dict[str, Any]:
    return {
        "name": f"{recipe.name} {row.name}",
        "results": [
            {
                "task": {"type": PIPELINE_TAGS[recipe.student.head]},
                "dataset": {"name": f"{recipe.task.name} ({name})", "type": "private"},
                "metrics": [
                    {
                        "type": table.metric,
                        "value": round(result.score.estimate, 4),
                        "name": f"{table.metric}, {recipe.evaluate.confidence:.0%} interval "
                        f"{result.score.low:.4f} to {result.score.high:.4f}, n {result.score.n}, "
                        f"against {'true answers' if name == 'golden' else 'the teacher'}",
                    }
                ],
            }
            for name, result in row.sets.items()
        ],
    }


def _ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.3g} ms"


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
