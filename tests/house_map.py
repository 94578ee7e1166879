"""docs/design.md as the rules read it: the modules of its map, folder by folder, and its tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "stillhouse"
PAGE = ROOT / "docs" / "design.md"
TREE = "    src/stillhouse/"
HEADING = re.compile(r"    ([a-z/]+)/(?:, | \().*:")
ROW = re.compile(r"      (\S.*?)  +\S.*")


class Row(NamedTuple):
    """A line of the map: names of modules (`name`, `name*`) or of folders (`name/`)."""

    folder: str
    names: tuple[str, ...]


def section(number: int) -> str:
    """A numbered section of the page."""
    found = re.search(
        rf"^## {number}\. .*?(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert found is not None
    return found[0]


def rows() -> Iterator[Row]:
    """The map: first the tree, whose folder is "", then the lists of what is in each folder."""
    folder = None
    for line in section(1).splitlines():
        heading = HEADING.fullmatch(line)
        row = ROW.fullmatch(line)
        if line == TREE:
            folder = ""
        elif heading is not None:
            folder = heading[1]
        elif row is not None and folder is not None:
            yield Row(folder, tuple(row[1].removesuffix(",").split(", ")))


def modules_in(folder: str) -> set[str]:
    """The modules that lie in a folder of the package, by name."""
    return {path.stem for path in (SRC / folder).glob("*.py")} - {"__init__", "__main__"}


def named(row: Row) -> dict[str, set[str]]:
    """What each name of a row stands for: modules, or a folder as `name/`."""
    there = modules_in(row.folder)
    found = {}
    for name in row.names:
        if name.endswith("/"):
            found[name] = {name} if (SRC / row.folder / name).is_dir() else set()
        else:
            found[name] = {one for one in there if fnmatch(one, name.removesuffix(".py"))}
    return found


def top_modules() -> set[str]:
    """The modules beside the folders, as the map's tree names them."""
    return {
        one
        for row in rows()
        if not row.folder
        for all_ in named(row).values()
        for one in all_
        if not one.endswith("/")
    }
