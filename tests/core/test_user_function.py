"""Finding the user's function, and the errors where it is not to be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.core.errors import UserError
from stillhouse.core.user_function import load_function, source_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine_"):
            del sys.modules[name]


def test_it_is_found_beside_the_recipe(folder: Path) -> None:
    (folder / "mine_a.py").write_text("def check(query, text):\n    return text == 'x'\n")
    before = list(sys.path)
    found = load_function("f", "mine_a:check")
    assert found(None, "x") is True
    assert sys.path == before
    assert source_of("mine_a:check") == folder / "mine_a.py"


def test_a_module_in_a_package(folder: Path) -> None:
    (folder / "mine_p").mkdir()
    (folder / "mine_p" / "__init__.py").write_text("")
    (folder / "mine_p" / "inner.py").write_text("def check(query, text):\n    return None\n")
    assert load_function("f", "mine_p.inner:check")(None, "") is None
    assert source_of("mine_p.inner:check") == folder / "mine_p" / "inner.py"


def test_errors_are_one_line(folder: Path) -> None:
    (folder / "mine_b.py").write_text("value = 3\n")
    (folder / "mine_c.py").write_text("raise RuntimeError('two\\nlines')\n")
    for name, said in (
        ("mine_none:f", "there is no module mine_none"),
        ("mine_b:value", "has no function value"),
        ("mine_b:other", "has no function other"),
        ("mine_c:f", "RuntimeError: two lines"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            load_function("dataset.validators.function", name)
        assert "\n" not in str(caught.value)
    assert source_of("mine_none.sub:f") is None
