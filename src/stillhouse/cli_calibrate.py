"""`stillhouse calibrate`: how sure a student must be, and what that costs. Thin.

Exit code 3: no threshold keeps the error, so the gateway's teacher would answer everything.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.calibrating import Calibrated, Live, Wanted, calibrate_live
from stillhouse.calibrating import calibrate as run_calibrate
from stillhouse.cli_options import EXIT_GATE, AsJson
from stillhouse.cli_show import print_table, progress_of
from stillhouse.core.artefact import GATE
from stillhouse.core.errors import UserError
from stillhouse.evaluate.fallback_frontier import frontier_rows
from stillhouse.serve.gate_file import Consistency


class Method(StrEnum):
    """How confidence becomes a probability."""

    auto = "auto"
    logistic = "logistic"
    temperature = "temperature"
    isotonic = "isotonic"


class On(StrEnum):
    """The run's samples that it is calibrated on."""

    held_out = "held_out"
    golden = "golden"


def calibrate(  # noqa: PLR0917 - typer's way
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="Run folder; may be left out with --log.")
    ] = None,
    error: Annotated[float, typer.Option("--error", help="Promised of what it answers.")] = 0.05,
    delta: Annotated[float, typer.Option("--delta", help="Chance that the promise fails.")] = 0.05,
    method: Annotated[Method, typer.Option("--method")] = Method.auto,
    samples: Annotated[
        On, typer.Option("--on", help="held_out: acceptable is what the teacher says.")
    ] = On.held_out,
    acceptable: Annotated[
        float | None, typer.Option("--acceptable", help="Score from which an answer is.")
    ] = None,
    student: Annotated[
        Path | None, typer.Option("--student", help="Another student's folder.")
    ] = None,
    window: Annotated[
        int, typer.Option("--window", help="Tokens of a stream that decide; 0: all of it.")
    ] = 16,
    novelty: Annotated[
        bool, typer.Option("--novelty", help="Look how near a request is to the training texts.")
    ] = False,
    repeats: Annotated[
        int, typer.Option("--samples", help="More answers to each request that must agree.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="At which these are drawn.")
    ] = 0.7,
    log: Annotated[
        str | None, typer.Option("--log", help="Database of the traffic log, for live labels.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="The task's name there.")] = None,
    log_student: Annotated[
        str | None,
        typer.Option("--log-student", help="Name or fingerprint there; default: by its files."),
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Live labels of so many days.")] = 30,
    outcomes: Annotated[
        str, typer.Option("--outcomes", help="Kinds of live labels that count.")
    ] = "scorer,judge",
    student_usd: Annotated[
        float | None, typer.Option("--student-usd", help="Of 1,000 answers; default: measured.")
    ] = None,
    teacher_usd: Annotated[float | None, typer.Option("--teacher-usd", help="Likewise.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; default: RUN/calibrate.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit how sure the student must be for a promised error, and draw cost against quality."""
    live = None
    if log is not None:
        if task is None:
            raise UserError("--task", "is missing", action="name the task as in gateway.yaml")
        live = Live(log, task, days, tuple(one.strip() for one in outcomes.split(",")), log_student)
    wanted = Wanted(
        error=_share("--error", error),
        delta=_share("--delta", delta),
        method=method.value,
        samples=samples.value,
        acceptable=acceptable,
        window=window if window > 0 else None,
        novelty=novelty,
        consistency=_consistency(repeats, temperature),
        student=student,
        live=live,
        prices=(student_usd, teacher_usd),
        out=out,
    )
    if run is None:
        found = calibrate_live(wanted)
    else:
        found = run_calibrate(run, wanted, progress_of(as_json))
    if as_json:
        typer.echo(json.dumps(_facts(found)))
    else:
        _show(found)
    if found.gate.threshold is None:
        raise typer.Exit(EXIT_GATE)


def _share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(name, "must be between 0 and 1", value=value)
    return value


def _consistency(repeats: int, temperature: float) -> Consistency | None:
    if repeats == 0:
        return None
    if not 1 <= repeats <= 32 or not 0 < temperature <= 2:
        raise UserError(
            "--samples", "must be from 1 to 32, drawn at a --temperature above 0 and up to 2"
        )
    return Consistency(samples=repeats, sampling_temperature=temperature)


def _facts(found: Calibrated) -> dict[str, object]:
    return {
        "gate": found.gate.model_dump(mode="json", by_alias=True),
        "frontier": None if found.frontier is None else found.frontier.model_dump(mode="json"),
        "folder": str(found.folder),
        "notes": list(found.notes),
    }


def _show(found: Calibrated) -> None:
    gate = found.gate
    if found.frontier is not None:
        head, *rows = frontier_rows(found.frontier)
        print_table(head, rows)
    for name, loss in sorted(gate.losses.items(), key=lambda one: one[1]):
        mark = " (taken)" if name == gate.calibrator.method else ""
        typer.echo(f"{name}: held-out log loss {loss:.4f} nats{mark}")
    if gate.threshold is None:
        typer.echo(
            f"{gate.n:,} {gate.source} show no threshold that keeps an error of {gate.error:g}: "
            "the teacher would answer everything"
        )
    else:
        typer.echo(
            f"threshold {gate.threshold:.3f}: the student answers {100 * gate.coverage:.1f}%, "
            f"wrong in at most {100 * gate.error:g}% of that, with probability "
            f"{1 - gate.delta:g} ({gate.n:,} {gate.source})"
        )
    if gate.window is not None:
        shown = "none" if gate.window.threshold is None else f"{gate.window.threshold:.3f}"
        typer.echo(f"streams, by their first {gate.window.tokens} tokens: threshold {shown}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"written: {found.folder / GATE}; name it in gateway.yaml as fallback.calibrator")
