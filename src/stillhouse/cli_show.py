"""How commands show what they found. Knows no command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stillhouse.core.progress import Progress, Silent, Terminal


def progress_of(as_json: bool) -> Progress:
    """Bars and lines for people; machines get their one JSON object alone."""
    return Silent() if as_json else Terminal()


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table with titles, as wide as it is; what is too long for its column is folded."""
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """A table of names and values, as wide as it is."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, escape(value))
    Console(soft_wrap=True, highlight=False).print(table)
