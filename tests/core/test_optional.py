"""Optional dependencies: imported in one place, a missing one answered with its pip line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from stillhouse.core.errors import MissingExtraError
from stillhouse.core.optional import EXTRAS, available, pip_line, require


def test_an_installed_module_is_returned() -> None:
    assert require("json", "train", "this test").dumps([1]) == "[1]"


def test_a_missing_module_names_the_pip_line() -> None:
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module_of_ours.part", "train", "a student")
    text = str(caught.value)
    assert "no_such_module_of_ours" in text
    assert "a student needs it" in text
    assert "pip install 'stillhouse[train]'" in text


def test_what_is_missing_inside_the_module_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wants_more.py").write_text("import deeper_missing_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtraError, match="deeper_missing_module"):
        require("wants_more", "gguf", "this test")
    sys.modules.pop("wants_more", None)


def test_a_module_of_our_own_that_is_not_there_is_a_bug_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError):
        require("stillhouse.core.no_such_module", "train", "this test")


def test_another_failure_of_the_import_keeps_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('broken build')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="broken build"):
        require("breaks_on_import", "train", "this test")


def test_available_does_not_import() -> None:
    assert available("json")
    assert not available("no_such_module_of_ours")
    assert not available("no_such_module_of_ours.part")


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_every_extra_has_a_pip_line(extra: str) -> None:
    assert pip_line(extra).startswith("run: pip install")


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    # Packages of weights are installed by themselves; dev and all are made of the others.
    named = set(EXTRAS) - {"embedded", "embedded-encoder"}
    assert named == set(project["optional-dependencies"]) - {"dev", "all"}
