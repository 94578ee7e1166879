"""`stillhouse doctor`: what this machine and this installation can do. Thin."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.cli_options import AsJson
from stillhouse.cli_show import print_json
from stillhouse.doctor import advice, examine


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and this installation can do, and how to install what is missing."""
    findings = examine(Path.cwd())
    lines = advice(findings)
    if as_json:
        print_json({**findings, "advice": lines})
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
