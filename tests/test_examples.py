"""Every example runs as it stands, without a warning, and prints something.

In this process, so that imports are not paid for again; the full suite runs each alone.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What an example needs beside this environment, and where `make clients` puts it.
ELSEWHERE = {"gateway_langchain.py": ROOT / ".cache" / "clients" / "langchain"}


def run_alone(path: Path, folder: Path, *options: str) -> None:
    """In a process and an empty folder of its own."""
    environment = dict(os.environ)
    needs = ELSEWHERE.get(path.name)
    if needs is not None:
        if not needs.exists():
            pytest.skip(f"needs what `make clients` puts in {needs.name}")
        before = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (before, str(needs))))
    done = subprocess.run(
        [sys.executable, *options, str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_it_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.name in ELSEWHERE:
        run_alone(path, tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_it_runs_alone(path: Path, tmp_path: Path) -> None:
    run_alone(path, tmp_path, "-W", "error")
