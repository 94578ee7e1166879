"""loop.yaml: where there is none, and what YAML makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.core.errors import RecipeError
from stillhouse.core.loop_file import load_loop


def test_a_loop_that_is_not_there_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no such loop\.yaml; see docs/monitor\.md"):
        load_loop(tmp_path / "loop.yaml")


def test_a_bare_on_is_the_key_it_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "loop.yaml"
    path.write_text(
        "gateway: gateway.yaml\n"
        "tasks: {reviews: {recipe: r.yaml, retrain: {fallback: {on: golden}}}}\n"
    )
    retrain = load_loop(path).tasks["reviews"].retrain
    assert retrain is not None
    assert retrain.fallback.on == "golden"
