"""House rules not about imports: file sizes, docstrings, no pickle, no paths of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "stillhouse"
FILES = sorted(SRC.rglob("*.py"))
LINE_CAP = 400


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def tracked_text() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    ends = {".py", ".md", ".yaml", ".toml", ".txt", ".html", ".json", ""}
    return [ROOT / n for n in names if n and Path(n).suffix in ends and (ROOT / n).is_file()]


def test_files_fit() -> None:
    lines = {path.relative_to(SRC): len(text_of(path).splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > LINE_CAP} == {}


def test_files_and_public_names_have_docstrings() -> None:
    missing = []
    for path in FILES:
        tree = ast.parse(text_of(path))
        if not ast.get_docstring(tree):  # what it does and what it does not know
            missing.append(f"{path.relative_to(SRC)}")
        missing += [
            f"{path.relative_to(SRC)}: {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert missing == []


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\s*(import|from) (pickle|joblib|dill|cloudpickle|shelve)\b",
        r"\btorch\.load\(|allow_pickle=True",
        r"raise NotImplementedError|\bTODO\b|\bFIXME\b",
    ],
)
def test_no_pickle_and_no_stub(pattern: str) -> None:
    found = re.compile(pattern, re.M)
    assert [path for path in FILES if found.search(text_of(path))] == []


def test_the_project_speaks_of_itself_alone() -> None:
    # Assembled here so that this file does not itself hold the words it looks for.
    words = ["/wo" + "rk/", "/ro" + "ot/", "sub" + "agent", "/tmp/" + "bash_jobs"]
    for path in tracked_text():
        text = path.read_text(encoding="utf-8")
        for word in words:
            assert word not in text, f"{path.relative_to(ROOT)} holds {word}"


def test_tests_mirror_the_package() -> None:
    folders = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    for folder in folders:
        assert list((ROOT / "tests" / folder).glob("test_*.py")), f"tests/{folder} is missing"
