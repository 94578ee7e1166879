"""Benchmark scripts are run from their own folder, which comes first on the path."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_no_benchmark_hides_an_installed_package() -> None:
    installed = set(importlib.metadata.packages_distributions())
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert names
    assert not names & installed, "rename these scripts: an import would find them first"
