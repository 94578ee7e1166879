"""`stillhouse registry`: students with their lineage, and which one is live. Thin.

Exit code 1 of `verify`: something is not as it was written; of `promote`, `rollback` and `reload`
with `--loop`: the gateway does not answer with the student, which is live in the registry.
"""

from __future__ import annotations

import getpass
import json
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from stillhouse.cli_options import AsJson
from stillhouse.cli_show import print_json
from stillhouse.core.errors import DataError, UserError
from stillhouse.core.loop_file import LoopFile, load_loop
from stillhouse.retrain.gateway_admin import GatewayAdmin
from stillhouse.retrain.gateway_follow import follow
from stillhouse.retrain.registry import Registry
from stillhouse.retrain.registry_gate import gate_of, gate_words
from stillhouse.retrain.registry_gc import removable
from stillhouse.retrain.registry_lineage import RunStudent, is_run, lineage_of
from stillhouse.retrain.registry_records import STAGES, Entry, Move, Stage
from stillhouse.retrain.student_export import export_huggingface, export_mlflow
from stillhouse.retrain_admin import admin_of

EXIT_PROBLEMS: Final = 1
EXIT_APART: Final = 1
RUN_ABOVE: Final = 3  # folders above a student's that may be its run's

registry_app = typer.Typer(
    name="registry",
    help="Students with their lineage: add, promote, roll back, verify.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--registry", help="Folder of the registry.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="Id, its beginning, or TASK@ALIAS.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the log.")]
By = Annotated[str | None, typer.Option("--by", help="Who; default: the login name.")]
Version = Annotated[
    int | None, typer.Option("--version", help="Of the task, as seen; refused if it changed.")
]
At = Annotated[
    Path | None, typer.Option("--registry", help="Its folder; default: of --loop, else registry.")
]
LoopYaml = Annotated[
    Path | None,
    typer.Option("--loop", metavar="LOOP_YAML", help="Have the gateway that it names follow."),
]
PLACE: Final = Path("registry")

Stages = StrEnum("Stages", {name: name for name in STAGES})  # type: ignore[misc]


class To(StrEnum):
    """Forms that a student is exported in."""

    mlflow = "mlflow"
    huggingface = "huggingface"


@registry_app.command()
def add(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_FOLDER", help="Run, or a student.")],
    *,
    task: Annotated[str, typer.Option("--task", help="The task, as the gateway names it.")],
    parent: Annotated[str | None, typer.Option("--parent", help="Student it follows.")] = None,
    reason: Reason = "",
    by: By = None,
    registry: Folder = PLACE,
    as_json: AsJson = False,
) -> None:
    """Take a copy of a student, with its lineage and figures, as a candidate."""
    found = _student(source)
    entry = Registry(registry).add(
        found.folder,
        task=task,
        lineage=found.lineage,
        metrics=found.metrics,
        parent=parent,
        by=_who(by),
        reason=reason,
    )
    _told(entry, as_json, f"{entry.id}: {entry.stage} of task {task}")


@registry_app.command("list")
def list_students(
    task: Annotated[str | None, typer.Option("--task", help="This task's alone.")] = None,
    registry: Folder = PLACE,
    as_json: AsJson = False,
) -> None:
    """List students, newest first."""
    opened = Registry(registry)
    entries = opened.entries(task)
    if as_json:
        print_json([entry.model_dump(mode="json") | _gate(opened, entry) for entry in entries])
        return
    rows = [("student", "task", "version", "stage", "aliases", "score", "gate", "added", "parent")]
    rows += [
        (
            entry.id,
            entry.task,
            str(entry.version),
            entry.stage,
            ", ".join(entry.aliases),
            _score(entry),
            gate_words(opened, entry),
            _day(entry.created_at),
            entry.parent or "",
        )
        for entry in entries
    ]
    # Not cut to the terminal's width: ids are there to be copied.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@registry_app.command()
def show(ref: Ref, registry: Folder = PLACE, as_json: AsJson = False) -> None:
    """Show a student: lineage, figures, gate, its moves; its files are verified."""
    opened = Registry(registry)
    entry = opened.get(ref)
    folder = opened.folder(ref)
    moves = [move for move in opened.history(entry.task) if move.ref == entry.id]
    told = entry.model_dump(mode="json") | _gate(opened, entry) | {"folder": str(folder)}
    if as_json:
        print_json(told | {"moves": [move.model_dump(mode="json") for move in moves]})
        return
    for name, value in told.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
        typer.echo(f"{name}: {shown}")
    for move in moves:
        typer.echo(_line(move))


@registry_app.command()
def promote(
    ref: Ref,
    *,
    reason: Reason = "",
    by: By = None,
    version: Version = None,
    registry: At = None,
    loop: LoopYaml = None,
    as_json: AsJson = False,
) -> None:
    """Make a student live; the one that was is retired."""
    file = None if loop is None else load_loop(loop)
    opened = _registry(registry, file)
    task = opened.get(ref).task
    admin = None if file is None else admin_of(file, task)  # before anything is moved
    seen = opened.version(task) if version is None else version
    entry = opened.promote(ref, reason=reason, by=_who(by), version=seen)
    _told(entry, as_json, f"{entry.id}: live for task {entry.task}")
    _follow(admin, opened, entry, reason)


@registry_app.command()
def rollback(
    task: Annotated[str, typer.Argument(metavar="TASK")],
    *,
    reason: Reason = "",
    by: By = None,
    version: Version = None,
    registry: At = None,
    loop: LoopYaml = None,
    as_json: AsJson = False,
) -> None:
    """Make the student live that was before."""
    file = None if loop is None else load_loop(loop)
    opened = _registry(registry, file)
    admin = None if file is None else admin_of(file, task)
    seen = opened.version(task) if version is None else version
    entry = opened.roll_back(task, reason=reason, by=_who(by), version=seen)
    _told(entry, as_json, f"{entry.id}: live again for task {entry.task}")
    _follow(admin, opened, entry, reason)


@registry_app.command()
def reload(
    task: Annotated[str, typer.Argument(metavar="TASK")],
    *,
    loop: Annotated[
        Path, typer.Option("--loop", metavar="LOOP_YAML", help="It names the gateway.")
    ],
    reason: Reason = "",
    registry: At = None,
) -> None:
    """Have the gateway answer with the live student."""
    file = load_loop(loop)
    opened = _registry(registry, file)
    entry = opened.live(task)
    if entry is None:
        raise UserError("TASK", "has no live student", value=task, action="promote one")
    _follow(admin_of(file, task), opened, entry, reason)


@registry_app.command()
def move(
    ref: Ref,
    stage: Annotated[Stages, typer.Argument(metavar="STAGE", help=", ".join(STAGES))],
    *,
    reason: Reason = "",
    by: By = None,
    version: Version = None,
    registry: Folder = PLACE,
    as_json: AsJson = False,
) -> None:
    """Put a student on another stage."""
    entry = Registry(registry).move(
        ref, cast(Stage, stage.value), reason=reason, by=_who(by), version=version
    )
    _told(entry, as_json, f"{entry.id}: {entry.stage}")


@registry_app.command()
def alias(
    task: Annotated[str, typer.Argument(metavar="TASK")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="TASK@NAME is then the student.")],
    ref: Annotated[str | None, typer.Argument(metavar="REF", help="None: the name goes.")] = None,
    *,
    reason: Reason = "",
    by: By = None,
    registry: Folder = PLACE,
) -> None:
    """Name a student."""
    entry = Registry(registry).alias(task, name, ref, by=_who(by), reason=reason)
    typer.echo(f"{task}@{name}: {'nothing' if entry is None else entry.id}")


@registry_app.command()
def verify(registry: Folder = PLACE, as_json: AsJson = False) -> None:
    """Read everything again, and say what is not as it was written."""
    opened = Registry(registry)
    problems = opened.verify()
    # A damaged log has no head to name.
    heads = {} if problems else {task: opened.head(task) for task in opened.tasks()}
    if as_json:
        print_json({"problems": problems, "heads": heads})
    else:
        for problem in problems:
            typer.echo(f"- {problem}")
        for task, head in heads.items():
            typer.echo(f"{task}: version {opened.version(task)}, head {head}")
        typer.echo(f"{len(problems)} problems" if problems else "as it was written")
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


@registry_app.command("export")
def export_student(
    ref: Ref,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    to: Annotated[To, typer.Option("--to")],
    registry: Folder = PLACE,
) -> None:
    """Copy a student to a folder for MLflow, or for transformers with a card."""
    write = export_mlflow if to is To.mlflow else export_huggingface
    typer.echo(f"{write(Registry(registry), ref, out)}: written")


@registry_app.command()
def gc(
    *,
    days: Annotated[float, typer.Option("--days", help="Retired for as long at least.")] = 90.0,
    ancestors: Annotated[
        bool, typer.Option("--ancestors", help="Also those that others descend from.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; else they are only named.")] = False,
    by: By = None,
    registry: Folder = PLACE,
) -> None:
    """Remove students that were retired long ago, and that nothing needs."""
    opened = Registry(registry)
    going = removable(opened, days=days, now=time.time(), ancestors=ancestors)
    for entry, retired_at in going:
        typer.echo(f"{entry.id}: of task {entry.task}, retired {_day(retired_at)}")
    if not yes:
        typer.echo(f"{len(going)} would be removed; to remove: --yes")
        return
    refs: dict[str, list[str]] = {}
    for entry, _ in going:
        refs.setdefault(entry.task, []).append(entry.id)
    opened.remove(refs, by=_who(by), reason=f"retired for {days:g} days")
    typer.echo(f"{len(going)} removed")


def _student(source: Path) -> RunStudent:
    """A run's student; or a student's folder, with the lineage of the run it lies in, if any.
    Figures are of the run's own student, not of its other forms."""
    if is_run(source):
        return lineage_of(source)
    for run in list(source.absolute().parents)[:RUN_ABOVE]:
        if is_run(run):
            found = lineage_of(run)
            own = found.folder.resolve() == source.resolve()
            form = {} if own else {"form": str(source.absolute().relative_to(run))}
            return found._replace(
                folder=source,
                lineage={**found.lineage, **form},
                metrics=found.metrics if own else {},
            )
    return RunStudent(source, None, {}, {})


def _registry(folder: Path | None, file: LoopFile | None) -> Registry:
    if folder is None:
        folder = PLACE if file is None else Path(file.registry)
    return Registry(folder)


def _follow(admin: GatewayAdmin | None, registry: Registry, entry: Entry, reason: str) -> None:
    """Have the gateway follow, where one is named; people hear of it on standard error."""
    if admin is None:
        typer.echo("no gateway was told; with --loop LOOP_YAML its gateway follows", err=True)
        return
    found = follow(admin, registry, entry, reason or "the registry's live student")
    typer.echo(found.said, err=True)
    if not found.done:
        raise typer.Exit(EXIT_APART)


def _who(by: str | None) -> str:
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserError("--by", "is missing: this login has no name", action="say who") from None


def _gate(registry: Registry, entry: Entry) -> dict[str, Any]:
    """What of a student's gate people ask for; None: it carries none, or why it cannot be read."""
    try:
        gate = gate_of(registry, entry)
    except DataError as error:
        return {"gate": {"damaged": str(error)}}
    wanted = {"threshold", "error", "delta", "coverage", "n", "source", "student"}
    return {"gate": None if gate is None else gate.model_dump(mode="json", include=wanted)}


def _score(entry: Entry) -> str:
    score = entry.metrics.get("score")
    estimate = score.get("estimate") if isinstance(score, dict) else score
    return f"{estimate:.3f}" if isinstance(estimate, float) else ""


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _line(move: Move) -> str:
    what = f"{move.from_stage or 'new'} -> {move.to_stage or 'gone'}"
    if move.alias is not None:
        what = f"{move.action} {move.alias}"
    more = "".join([f" by {move.by}" if move.by else "", f": {move.reason}" if move.reason else ""])
    return f"{_day(move.at)} {what}{more}"


def _told(entry: Entry, as_json: bool, line: str) -> None:
    if as_json:
        print_json(entry.model_dump(mode="json"))
    else:
        typer.echo(line)
