"""docs/design.md says what there is: its map, its stages, its extras and its libraries."""

from __future__ import annotations

import re
import tomllib
from collections import Counter

from house_map import ROOT, SRC, modules_in, named, rows, section
from stillhouse.stages import STAGES

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_name_on_the_map_is_there() -> None:
    empty = [
        (row.folder, name) for row in rows() for name, found in named(row).items() if not found
    ]
    assert empty == []


def test_every_module_is_on_the_map_once() -> None:
    on_it: dict[str, Counter[str]] = {}
    for row in rows():
        for found in named(row).values():
            on_it.setdefault(row.folder, Counter()).update(found)
    assert len(on_it) > 10
    for folder, names in on_it.items():
        modules = {name: names[name] for name in modules_in(folder)}
        assert {name: count for name, count in modules.items() if count != 1} == {}, folder


def test_every_folder_with_modules_is_on_the_map() -> None:
    lists = {row.folder for row in rows()}
    whole = {f"{row.folder}/{name}" for row in rows() if row.folder for name in row.names}
    for folder in {path.parent.relative_to(SRC) for path in SRC.rglob("*.py")} - {SRC}:
        places = [folder, *folder.parents]
        assert folder.as_posix().removeprefix(".") in lists or any(
            f"{place.as_posix()}/" in whole for place in places
        ), folder


def test_what_captions_name_is_there() -> None:
    folders = {row.folder for row in rows()} - {""}
    paths = re.findall(rf"\b(?:{'|'.join(sorted(folders))})/[a-z_]+\b(?!/)\*?", section(1))
    assert "core/tagging" in paths
    assert [path for path in paths if not list(SRC.glob(f"{path}.py"))] == []


def test_the_table_of_stages_is_the_pipelines() -> None:
    table = re.findall(r"^\| `([a-z]+)`[^|]*\| ([^|]*) \|", section(2), re.M)
    told = [(name, set(reads.split(", "))) for name, reads in table]
    # Where single files are read, the table names their stage.
    there = [(stage.name, {read.partition("/")[0] for read in stage.reads}) for stage in STAGES]
    assert told[0] == ("traffic", {"the user's files"})
    assert told[1:] == there[1:]


def test_the_extras_are_those_of_the_package() -> None:
    listed = re.search(r"extras are (.*?)\. What", section(1), re.S)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(PYPROJECT["optional-dependencies"])


def test_every_library_has_its_work_on_the_page() -> None:
    extras = PYPROJECT["optional-dependencies"]
    needs = [
        *PYPROJECT["dependencies"],
        *(n for name in extras if name != "dev" for n in extras[name]),
    ]
    names = {re.split(r"[\[<>=; ]", one)[0].lower() for one in needs} - {"stillhouse"}
    told = set(re.findall(r"[\w-]+", section(6).lower()))
    assert {"torch", "river"} < names
    assert names - told == set()
