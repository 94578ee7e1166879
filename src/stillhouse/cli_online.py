"""`stillhouse online`: refine the live student between retrainings. Thin.

Exit code 3: the guard refused every step of a single pass. 1, of a roll back or a deletion: it is
done here, and the gateway still answers with another version.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from stillhouse.cli_options import EXIT_GATE, AsJson
from stillhouse.core.errors import StillhouseError
from stillhouse.refining import Refining
from stillhouse.retrain.online import OnlineTask, Pass

EXIT_APART: Final = 1
FORGET_EVERY_S: Final = 3600.0


def online(  # noqa: PLR0917 - typer's way
    file: Annotated[Path, typer.Argument(metavar="LOOP_YAML", help="See docs/online.md.")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its name in gateway.yaml.")],
    follow: Annotated[
        bool, typer.Option("--follow/--once", help="Go on, every online.every_s; or one pass.")
    ] = False,
    roll_back: Annotated[
        int | None, typer.Option("--roll-back", help="Make an earlier version live.")
    ] = None,
    forget: Annotated[
        tuple[str, str] | None,
        typer.Option("--forget", metavar="TENANT USER", help="Take a user out of all of it."),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Say what there is.")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn from the teacher's answers in live traffic, in small guarded steps."""
    refining = Refining(file, task)
    if status:
        _status(refining.learner, as_json=as_json)
        return
    notes: list[str] = []
    if roll_back is not None or forget is not None:
        if roll_back is not None:
            found = refining.learner.roll_back(roll_back, notes)
            typer.echo(f"version {found.number} is live: {found.path}")
        if forget is not None:
            typer.echo(f"{refining.forget(*forget, notes):,} rows are forgotten")
        for note in notes:
            typer.echo(f"note: {note}; the next pass tries again", err=True)
        if notes:
            raise typer.Exit(EXIT_APART)
        return
    if refining.note is not None and not as_json:
        typer.echo(f"note: {refining.note}", err=True)
    looked = float("-inf")
    while True:
        done = None
        try:
            if follow and refining.outdated:
                refining = Refining(file, task)
                typer.echo("note: another student was put to work; it is refined from here on")
            with refining.rows() as rows:
                if time.monotonic() - looked >= FORGET_EVERY_S:
                    gone = refining.forget_gone(rows, [])
                    looked = time.monotonic()
                    if gone:
                        typer.echo(f"{gone:,} rows of users whom the gateway forgot are gone")
                done = refining.learner.run_once(rows)
        except StillhouseError as error:
            if not follow:
                raise
            typer.echo(f"note: {error}")  # the guard set may fill, the database come back
        if done is not None:
            _show(done, as_json=as_json)
        if not follow:
            answers = [] if done is None else [one.verdict.answer for one in done.steps]
            if answers and set(answers) == {"refuse"}:
                raise typer.Exit(EXIT_GATE)
            return
        time.sleep(refining.section.every_s)


def _show(done: Pass, *, as_json: bool) -> None:
    if as_json:
        facts = {
            "read": done.read,
            "live": done.live,
            "swapped": done.swapped,
            "steps": [one.verdict.to_json() for one in done.steps],
            "notes": list(done.notes),
        }
        typer.echo(json.dumps(facts))
        return
    if done.read or done.steps:
        typer.echo(
            f"{done.read:,} new rows, {len(done.steps)} steps, {done.learned} accepted; "
            f"version {done.live} is live"
        )
    for one in done.steps:
        typer.echo(
            f"guard: {one.verdict.answer}, {one.verdict.new:.3f} after {one.verdict.live:.3f} "
            f"({one.verdict.difference.n:,} rows)"
        )
    for note in done.notes:
        typer.echo(f"note: {note}")


def _status(learner: OnlineTask, *, as_json: bool) -> None:
    state = learner.state
    if as_json:
        versions = [one.model_dump(mode="json", exclude={"contributors"}) for one in state.versions]
        facts = {
            "live": state.live,
            "base": state.base,
            "handed": state.handed,
            "versions": versions,
            "quarantined": list(state.quarantined),
            "counts": dict(state.counts),
        }
        typer.echo(json.dumps(facts))
        return
    for one in state.versions:
        mark = " (live)" if one.number == state.live else ""
        typer.echo(
            f"version {one.number}: {one.kind}{mark}, of {len(one.contributors):,} users, "
            f"{one.path}"
        )
    for name, count in sorted(state.counts.items()):
        typer.echo(f"{name}: {count:,}")
    if state.quarantined:
        typer.echo(f"quarantined tenants: {', '.join(state.quarantined)}")
