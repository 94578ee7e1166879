"""The command line: thin. One subcommand a stage of `run`, plus init, doctor, report and schema.

Exit codes: 0 done, 1 failed, 2 user error, 3 ran but the gate says no; of `monitor check` 4 where a
warning holds and 5 where something critical does. Knows no stage's inside.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse import __version__
from stillhouse.cli_calibrate import calibrate
from stillhouse.cli_compress import compress
from stillhouse.cli_dashboard import dashboard
from stillhouse.cli_images import images
from stillhouse.cli_monitor import monitor_app
from stillhouse.cli_options import AsJson, Overrides, RecipePath, RunDir
from stillhouse.cli_plan import plan
from stillhouse.cli_pretrain import pretrain
from stillhouse.cli_registry import registry_app
from stillhouse.cli_retrain import retrain
from stillhouse.cli_serve import serve
from stillhouse.cli_signals import signals_app
from stillhouse.cli_simulate import simulate
from stillhouse.cli_speculate import STAGE as SPECULATE
from stillhouse.cli_speculate import speculate
from stillhouse.cli_study import curve, frontier
from stillhouse.cli_teacher import teacher_app
from stillhouse.cli_tune import tune
from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.progress import Progress, Silent, Terminal
from stillhouse.core.recipe_corpus_file import corpus_schema_text
from stillhouse.core.recipe_file import load_recipe, recipe_schema_text
from stillhouse.core.recipe_images_file import image_schema_text
from stillhouse.doctor import advice, examine
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.summary import summary_rows
from stillhouse.forget import forget_user, told
from stillhouse.pipeline import report_of, run_stages
from stillhouse.scaffold import scaffold
from stillhouse.stages import STAGES
from stillhouse.teacher import archive
from stillhouse.traffic.formats import FORMATS
from stillhouse.traffic.mine import mine as run_mine
from stillhouse.traffic.mine import mine_options
from stillhouse.traffic.redact import DEFAULT_KINDS
from stillhouse.traffic.tasks_page import show_tasks

EXIT_FAILED: Final = 1
EXIT_USER: Final = 2
EXIT_GATE: Final = 3
EXIT_INTERRUPTED: Final = 130

app = typer.Typer(
    name="stillhouse",
    help="Distil an expensive teacher into a small student, and prove what it kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(teacher_app)
app.add_typer(signals_app)
app.add_typer(registry_app)
app.add_typer(monitor_app)
app.command()(plan)
app.command()(tune)
app.command()(curve)
app.command()(frontier)
app.command()(compress)
app.command()(pretrain)
app.command()(images)
app.command()(speculate)
app.command()(serve)
app.command()(calibrate)
app.command()(simulate)
app.command()(retrain)
app.command()(dashboard)


Format = StrEnum("Format", {name: name for name in FORMATS})  # type: ignore[misc]


class Kind(StrEnum):
    """Task kinds that `init` can scaffold."""

    classification = "classification"
    extraction = "extraction"
    generation = "generation"


@app.command()
def init(
    kind: Annotated[Kind, typer.Argument(help="What the task is.")] = Kind.classification,
    out: Annotated[Path, typer.Option("--out", help="Where to write it.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe for a kind of task."""
    if out.exists():
        raise UserError(str(out), "exists already", action="choose another name with --out")
    try:
        out.write_text(scaffold(kind.value), encoding="utf-8")
    except OSError as error:
        raise UserError(
            "--out", f"{out} cannot be written: {error.strerror}", action="choose another place"
        ) from None
    typer.echo(f"{out}: written; put your files in place, then: stillhouse run {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and this installation can do, and how to install what is missing."""
    findings = examine(Path.cwd())
    lines = advice(findings)
    if as_json:
        _print_json({**findings, "advice": lines})
        return
    machine, accelerator = findings["machine"], findings["accelerator"]
    device = accelerator["device"] + (
        f" {accelerator['name']}, {accelerator['memory_gb']} GB, bf16 {accelerator['bf16']}"
        if accelerator["device"] == "cuda"
        else ""
    )
    table = Table(show_header=False, box=None)
    for name, value in (
        ("machine", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB"),
        ("system", f"{machine['system']}, Python {machine['python']}"),
        ("device", device),
        ("disk free", f"{findings['disk_free_gb']} GB"),
        ("packages", ", ".join(f"{n} {v}" for n, v in findings["packages"].items())),
        ("extras", ", ".join(e for e, s in findings["extras"].items() if s["installed"]) or "none"),
        ("keys set", ", ".join(findings["keys_set"]) or "none"),
    ):
        table.add_row(name, value)
    Console(soft_wrap=True, highlight=False).print(table)
    for line in lines:
        typer.echo(f"- {line}")


@app.command()
def run(
    recipe: RecipePath,
    run_dir: RunDir = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage that is not up to date, and write report.json and report.html."""
    loaded = load_recipe(recipe, overrides or [])
    root = run_dir or Path("runs") / loaded.name
    run_stages(loaded, root, _progress(as_json))
    _show_report(report_of(root), root, as_json)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Write the report of a finished run anew, and print its figures."""
    _show_report(report_of(folder), folder, as_json)


@app.command()
def forget(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
    ],
    user: Annotated[str, typer.Option("--user", help="The user, as the traffic names them.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; change nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a user's records, and name every dataset and student that used them."""
    results = forget_user(user, folders, dry_run=dry_run)
    if as_json:
        _print_json(
            {"dry_run": dry_run, "runs": [result.model_dump(mode="json") for result in results]}
        )
        return
    for line in told(results, dry_run=dry_run):
        typer.echo(line)


@app.command()
def schema(
    *,
    corpus: Annotated[bool, typer.Option("--corpus", help="Of corpus recipes.")] = False,
    of_images: Annotated[bool, typer.Option("--images", help="Of image recipes.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors."""
    if corpus and of_images:
        raise UserError("--images", "goes not with --corpus: one schema at a time")
    text = corpus_schema_text if corpus else image_schema_text if of_images else recipe_schema_text
    typer.echo(text(), nl=False)


@app.command()
def mine(
    logs: Annotated[list[Path], typer.Argument(metavar="LOGS...", help="Log files or folders.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder of the result.")] = Path("tasks"),
    log_format: Annotated[Format | None, typer.Option("--format", help="Of all logs.")] = None,
    redact: Annotated[
        str, typer.Option("--redact", help="Kinds of personal data to replace, or none.")
    ] = ",".join(DEFAULT_KINDS),
    price: Annotated[
        list[str] | None, typer.Option("--price", metavar="MODEL=IN,OUT", help="USD per Mtok.")
    ] = None,
    days: Annotated[float | None, typer.Option("--days", help="Days the logs cover.")] = None,
    min_requests: Annotated[int, typer.Option("--min-requests", help="That make a task.")] = 50,
    top: Annotated[int, typer.Option("--top", help="Recipes to write, at most.")] = 3,
    teacher: Annotated[str | None, typer.Option("--teacher", help="For the recipes.")] = None,
    repeats: Annotated[
        list[Path] | None, typer.Option("--repeats", help="Logs of inputs asked again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the task worth distilling in request logs, and write its recipe."""
    options = mine_options(
        logs,
        out,
        log_format=log_format,
        redact=redact,
        price=price or (),
        days=days,
        min_requests=min_requests,
        top=top,
        teacher=teacher,
        repeats=repeats or (),
    )
    show_tasks(run_mine(options, _progress(as_json)).report, out, as_json)


def _stage_command(group: typer.Typer, name: str, caption: str) -> None:
    def command(
        recipe: RecipePath,
        run_dir: RunDir = None,
        overrides: Overrides = None,
        as_json: AsJson = False,
    ) -> None:
        loaded = load_recipe(recipe, overrides or [])
        root = run_dir or Path("runs") / loaded.name
        results = run_stages(loaded, root, _progress(as_json), last=name)
        if as_json:
            _print_json(
                {
                    result.name: {
                        "skipped": result.skipped,
                        "seconds": result.manifest.seconds,
                        "cost_usd": result.manifest.cost_usd,
                        "summary": dict(result.manifest.summary),
                    }
                    for result in results
                }
            )

    group.command(name, help=f"Run up to this stage: {caption}.")(command)


store = typer.Typer(help="Freeze, export and import the answers of a run.", no_args_is_help=True)
app.add_typer(store, name="store")
StorePath = Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Run folder, or a store.")]


@store.command("freeze")
def store_freeze(place: StorePath) -> None:
    """Take no more answers: the store is a fixed teacher, for teacher.model: replay:RUN_OR_FILE."""
    typer.echo(archive.freeze(place))


@store.command("export")
def store_export(
    place: StorePath,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="This teacher's alone.")] = None,
) -> None:
    """Write the answers to one frozen file, for replay:FILE or for import."""
    typer.echo(archive.export(place, out, teacher))


@store.command("import")
def store_import(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An exported file.")],
    place: StorePath,
) -> None:
    """Add an export's answers to a run: they are not asked again, and cost it nothing."""
    typer.echo(archive.import_answers(source, place))


for _stage in STAGES:  # `stillhouse tune` is about the student; two have commands of their own
    if _stage.name not in ("compress", SPECULATE):
        _stage_command(teacher_app if _stage.name == "tune" else app, _stage.name, _stage.caption)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Distil an expensive teacher into a small student, and prove what it kept."""
    if show:
        typer.echo(f"stillhouse {__version__}")
        raise typer.Exit


def _progress(as_json: bool) -> Progress:
    return Silent() if as_json else Terminal()


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, escape(value))
    Console(soft_wrap=True, highlight=False).print(table)


def _show_report(made: Report, root: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        _print_rows(summary_rows(made))
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"report: {root / 'report.html'}", markup=False)
    if made.gate.verdict != "pass":
        raise typer.Exit(EXIT_GATE)


def main() -> None:
    """Run the command line; foreseen errors are one line on standard error."""
    sys.exit(_guarded(lambda: app(standalone_mode=True)))


def _guarded(call: Callable[[], Any]) -> int:
    try:
        call()
    except UserError as error:
        return _fail(error, EXIT_USER)
    except StillhouseError as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from what is finished", err=True)
        return EXIT_INTERRUPTED
    return 0


def _fail(error: StillhouseError, code: int) -> int:
    if "--json" in sys.argv:
        _print_json({"error": {"kind": type(error).__name__, "message": str(error)}})
    typer.echo(f"error: {error}", err=True)
    return code
