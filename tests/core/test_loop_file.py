"""loop.yaml, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.core.errors import RecipeError
from stillhouse.core.loop_file import load_loop


def test_a_loop_that_is_not_there_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no such loop\.yaml; see docs/monitor\.md"):
        load_loop(tmp_path / "loop.yaml")
