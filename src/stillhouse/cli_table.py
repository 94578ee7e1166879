"""The commands: where each is, and what it is for. Imports none of them.

A command's module is imported when the command is chosen (`Deferred`), so that no command waits for
the libraries of another. What stands here is what `stillhouse --help` says; a test holds it against
the modules. Knows no command's options.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from stillhouse.core.optional import late


class Entry(NamedTuple):
    """A command: its module, what it is called there, and its help.

    `attribute` names a function, a `typer.Typer` (a group of commands), or a mapping of command
    names to functions.
    """

    module: str
    attribute: str
    help: str


def _stage(caption: str) -> Entry:
    return Entry("stillhouse.cli_run", "STAGE_COMMANDS", f"Run up to this stage: {caption}.")


# In the order of `stillhouse --help`.
COMMANDS: Final[Mapping[str, Entry]] = {
    "plan": Entry(
        "stillhouse.cli_plan",
        "plan",
        "Say what asking and training will cost, take and give, before it is done.",
    ),
    "tune": Entry(
        "stillhouse.cli_tune",
        "tune",
        "Search the training settings; choose on a part of the training set, report on held-out.",
    ),
    "curve": Entry(
        "stillhouse.cli_study",
        "curve",
        "Train on more and more answers, and say how many more are worth paying for.",
    ),
    "frontier": Entry(
        "stillhouse.cli_study",
        "frontier",
        "Train students of several sizes, and say which is the cheapest that passes the gate.",
    ),
    "compress": Entry(
        "stillhouse.cli_compress",
        "compress",
        "Bring the student into smaller forms (ONNX, GGUF), and gate each of them again.",
    ),
    "pretrain": Entry(
        "stillhouse.cli_pretrain",
        "pretrain",
        "Train a student on a corpus under its teacher, and score both on texts nobody saw.",
    ),
    "images": Entry(
        "stillhouse.cli_images",
        "images",
        "Teach a small net for images at several T, and score it beside its teacher.",
    ),
    "speculate": Entry(
        "stillhouse.cli_speculate",
        "speculate",
        "Measure the student as a draft of its teacher: acceptance, speed, losslessness.",
    ),
    "serve": Entry(
        "stillhouse.cli_serve",
        "serve",
        "Answer requests for teacher and student: an OpenAI-compatible server.",
    ),
    "calibrate": Entry(
        "stillhouse.cli_calibrate",
        "calibrate",
        "Fit how sure the student must be for a promised error, and draw cost against quality.",
    ),
    "simulate": Entry(
        "stillhouse.cli_simulate",
        "simulate",
        "Foresee savings and risks of a plan on logged traffic, before it is turned on.",
    ),
    "retrain": Entry(
        "stillhouse.cli_retrain",
        "retrain",
        "Distil again from live traffic, and promote the student that proves better.",
    ),
    "dashboard": Entry(
        "stillhouse.cli_dashboard",
        "dashboard",
        "Show savings, quality, drift, traffic, runs and students in a browser.",
    ),
    "online": Entry(
        "stillhouse.cli_online",
        "online",
        "Learn from the teacher's answers in live traffic, in small guarded steps.",
    ),
    "init": Entry("stillhouse.cli_init", "init", "Write a commented recipe for a kind of task."),
    "doctor": Entry(
        "stillhouse.cli_doctor",
        "doctor",
        "Say what this machine and this installation can do, and how to install what is missing.",
    ),
    "run": Entry(
        "stillhouse.cli_run",
        "run",
        "Run every stage that is not up to date, and write report.json and report.html.",
    ),
    "report": Entry(
        "stillhouse.cli_run",
        "report",
        "Write the report of a finished run anew, and print its figures.",
    ),
    "forget": Entry(
        "stillhouse.cli_forget",
        "forget",
        "Remove a user's records, and name every dataset and student that used them.",
    ),
    "schema": Entry(
        "stillhouse.cli_schema", "schema", "Print the JSON Schema of recipes, for editors."
    ),
    "mine": Entry(
        "stillhouse.cli_mine",
        "mine",
        "Find the task worth distilling in request logs, and write its recipe.",
    ),
    # The stages, but those with a command of their own; `stillhouse tune` is about the student,
    # `stillhouse teacher tune` is the stage.
    "traffic": _stage("read the queries, the labelled and the golden set"),
    "check": _stage("check the teacher on the labelled set, beside a linear baseline"),
    "expand": _stage("let the teacher write queries where the traffic is thin"),
    "ask": _stage("ask the teacher, each query once"),
    "judge": _stage("judge the answers, once the gold set shows that the judge can"),
    "dataset": _stage("keep the good answers: checks, duplicates, contamination, split"),
    "capture": _stage("write down what the teacher believes of the kept answers"),
    "train": _stage("train the student"),
    "prune": _stage("prune the student and heal it"),
    "evaluate": _stage("prove it: teacher, student and baselines on held-out and golden sets"),
    "teacher": Entry(
        "stillhouse.cli_teacher", "teacher_app", "Choose a teacher, and look after it."
    ),
    "signals": Entry(
        "stillhouse.cli_signals",
        "signals_app",
        "Look into the teacher signals that `stillhouse capture` wrote.",
    ),
    "registry": Entry(
        "stillhouse.cli_registry",
        "registry_app",
        "Students with their lineage: add, promote, roll back, verify.",
    ),
    "monitor": Entry(
        "stillhouse.cli_monitor",
        "monitor_app",
        "Watch a student in production: fidelity, drift and its cause, alerts.",
    ),
    "store": Entry(
        "stillhouse.cli_store", "store_app", "Freeze, export and import the answers of a run."
    ),
}


class Deferred(TyperCommand):
    """A name and a help, until it is chosen: then what the table says is imported and runs."""

    def __init__(self, name: str, entry: Entry) -> None:
        super().__init__(name, help=entry.help)
        self.entry = entry

    def load(self) -> Any:
        """The command itself, imported now."""
        assert self.name is not None
        found = getattr(late(self.entry.module), self.entry.attribute)
        if isinstance(found, Mapping):
            found = found[self.name]
        # A group of its own, so that one command is not taken for the whole line.
        host = typer.Typer(add_completion=False, rich_markup_mode=None)
        host.callback()(_nothing)
        if isinstance(found, typer.Typer):
            host.add_typer(found, name=self.name)
        else:
            host.command(self.name)(found)
        commands: dict[str, Any] = vars(get_command(host))["commands"]
        return commands[self.name]

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Of the command itself: from here on it takes part, and this stands aside."""
        return self.load().make_context(info_name, args, parent, **extra)


class Commands(TyperGroup):
    """The group of all commands of the table."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, entry in COMMANDS.items():
            self.add_command(Deferred(name, entry))


def _nothing() -> None:
    """What the group of one command does before it."""
