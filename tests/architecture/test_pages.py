"""README and docs/ name only what there is: pages, files, commands, options, keys of recipes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from pydantic import ValidationError

from house_map import ROOT
from stillhouse.cli_table import COMMANDS, Deferred
from stillhouse.core.loop_file import LoopFile
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_corpus import CorpusRecipe
from stillhouse.core.recipe_images import ImageRecipe
from stillhouse.serve.gateway_file import GatewayFile

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = ("benchmarks", "recipes", "examples")
KINDS = (Recipe, CorpusRecipe, ImageRecipe, GatewayFile, LoopFile)
# What pages name and other projects have: sections of YAML, and files.
FOREIGN = {"scrape_configs"}
OF_OTHERS = {"examples/scripts/gkd.py"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


by_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


FENCED = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^ *```$", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n(?:\n(?=    ))?)+")


class Block(NamedTuple):
    """A block of code: its language, where the page says it, and its text."""

    kind: str
    body: str


def blocks_of(text: str) -> Iterator[Block]:
    for found in FENCED.finditer(text):
        yield Block(found["kind"], found["body"])
    for found in INDENTED.finditer(FENCED.sub("", text)):
        body = re.sub(r"^    ", "", found[0], flags=re.M)
        yield Block("yaml" if re.match(r"[a-z_]+:( |$)", body, re.M) else "", body)


def spans_of(text: str) -> Iterator[str]:
    """Code within sentences; it may go over the end of a line."""
    prose = re.sub(r"^    .*$", "", FENCED.sub("", text), flags=re.M)
    for found in re.finditer(r"`([^`]+)`", prose):
        yield " ".join(found[1].split())


def links_of(page: Path) -> Iterator[str]:
    """What a page links to within the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page))):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} links to {link}"


def test_every_page_is_linked_from_where_readers_begin() -> None:
    begin = [ROOT / "README.md", DOCS / "design.md"]
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in begin
        for link in links_of(page)
    }
    assert {
        page.relative_to(ROOT).as_posix() for page in PAGES if page not in {*linked, *begin}
    } == set()


def options_of(command: Any) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {
        "--help"
    }


@cache
def commands() -> dict[str, Any]:
    """Every command by its words: `run`, `teacher compare`."""
    found: dict[str, Any] = {}
    for name, entry in COMMANDS.items():
        command = Deferred(name, entry).load()
        found[name] = command
        for inner, part in getattr(command, "commands", {}).items():
            found[f"{name} {inner}"] = part
    return found


START = r"(?:^|[;&|] *|[$] |[A-Z]=\S+ |bin/|-m )"


def calls_of(page: Path) -> Iterator[str]:
    """What a page says to `stillhouse`."""
    for block in blocks_of(text_of(page)):
        for line in block.body.replace("\\\n", " ").splitlines():
            yield from re.findall(rf"{START}stillhouse ([a-z-][^#|;&>]*)", line)
    for span in spans_of(text_of(page)):
        if span.startswith("stillhouse "):
            yield re.split(r"[|;&>]", span.removeprefix("stillhouse "))[0]


@by_page
def test_commands_and_their_options_are_there(page: Path) -> None:
    for call in calls_of(page):
        words = call.split()
        assert words[0] in commands(), f"{page.name}: stillhouse {call}"
        command = commands()[words[0]]
        if hasattr(command, "commands") and len(words) > 1:
            assert words[1] in command.commands, f"{page.name}: stillhouse {call}"
            command = command.commands[words[1]]
        named = set(re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", call))
        assert named <= options_of(command), f"{page.name}: stillhouse {call}"


def test_pages_call_commands() -> None:
    called = {call.split()[0] for page in PAGES for call in calls_of(page)}
    stages = {name for name, entry in COMMANDS.items() if entry.attribute == "STAGE_COMMANDS"}
    assert set(COMMANDS) - stages - called == set()


@by_page
def test_scripts_and_their_options_are_there(page: Path) -> None:
    text = " ".join(text_of(page).replace("\\\n", " ").split())
    for path, rest in re.findall(
        rf"\b((?:{'|'.join(SCRIPTS)})/[\w/]+\.(?:py|sh))((?: [^`|#;&]*)?)", text
    ):
        if path in OF_OTHERS:
            continue
        assert (ROOT / path).is_file(), f"{page.name}: {path}"
        if re.search(rf"`[^`]*{re.escape(path + rest)}", text):
            script = (ROOT / path).read_text(encoding="utf-8")
            for option in re.findall(r" (--[a-z][a-z-]*)", rest):
                assert f'"{option}"' in script, f"{page.name}: {path} has no {option}"


@by_page
def test_modules_are_there(page: Path) -> None:
    source = ROOT / "src" / "stillhouse"
    for path in re.findall(r"(?<![\w/.])((?:[a-z_]+/)+[a-z_0-9]+\.py)\b", text_of(page)):
        places = (ROOT / path, source / path)
        assert path in OF_OTHERS or any(one.is_file() for one in places), f"{page.name}: {path}"
    for block in blocks_of(text_of(page)):
        for module in re.findall(r"^from (stillhouse[\w.]*) import", block.body, re.M):
            place = source.parent / module.replace(".", "/")
            assert place.is_dir() or place.with_suffix(".py").is_file(), f"{page.name}: {module}"


@by_page
def test_targets_of_make_are_there(page: Path) -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    lines = [line for block in blocks_of(text_of(page)) for line in block.body.splitlines()]
    for line in (*lines, *spans_of(text_of(page))):
        for target in re.findall(r"^make ([a-z-]+)", line):
            assert target in made, f"{page.name}: {line}"


def faults_of(kind: Any, raw: Any) -> list[str]:
    """What is wrong with a part of a file, but for what it leaves out."""
    try:
        kind.model_validate(raw)
    except ValidationError as error:
        return [f"{e['loc']}: {e['msg']}" for e in error.errors() if e["type"] != "missing"]
    return []


@by_page
def test_keys_of_recipes_and_files_are_known(page: Path) -> None:
    for block in blocks_of(text_of(page)):
        if block.kind != "yaml":
            continue
        raw = yaml.safe_load(block.body)
        assert isinstance(raw, dict), f"{page.name}: {block.body}"
        if FOREIGN & set(raw):
            continue
        kinds = [
            kind
            for kind in KINDS
            if set(raw) <= {one.alias or name for name, one in kind.model_fields.items()}
        ]
        assert kinds, f"{page.name}: {list(raw)}"
        faults = [faults_of(kind, raw) for kind in kinds]
        assert [] in faults, f"{page.name}: {faults}"


RECIPES = (Recipe, CorpusRecipe, ImageRecipe)


@cache
def schema_of(kind: type[Recipe] | type[CorpusRecipe] | type[ImageRecipe]) -> dict[str, Any]:
    return kind.model_json_schema(by_alias=True)


def sections_in(node: Any, parts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections that a place of a schema may hold: one, one of several, or a list of them."""
    listed = [node["items"]] if "items" in node else []
    if "$ref" in node:
        yield from sections_in(parts[node["$ref"].rpartition("/")[2]], parts)
    for one in (*node.get("anyOf", ()), *node.get("oneOf", ()), *listed):
        yield from sections_in(one, parts)
    if "properties" in node or isinstance(node.get("additionalProperties"), dict):
        yield node


def has_key(schema: dict[str, Any], key: str) -> bool:
    places = [schema]
    for part in key.split("."):
        sections = [one for place in places for one in sections_in(place, schema["$defs"])]
        keys = [(one.get("properties", {}), one.get("additionalProperties")) for one in sections]
        inner = [named.get(part, others) for named, others in keys]
        places = [one for one in inner if isinstance(one, dict)]
    return bool(places)


def dotted_keys(page: Path) -> Iterator[str]:
    """Keys of a recipe within sentences, `section.key`; names of files and modules are none."""
    sections = {name for kind in RECIPES for name in schema_of(kind)["properties"]}
    for span in spans_of(text_of(page)):
        found = re.match(r"([a-z_]+)\.([a-z_]+)(\.[A-Za-z_]+)*(?=$|[ :=])", span)
        if found is None or found[1] not in sections:
            continue
        module = (ROOT / "src" / "stillhouse" / found[1] / f"{found[2]}.py").exists()
        if not module and found[2] not in {"json", "jsonl", "html", "gguf", "py"}:
            yield found[0]


# report.md is about keys of the report.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "report.md"], ids=name_of)
def test_keys_in_sentences_are_known(page: Path) -> None:
    for key in dotted_keys(page):
        assert any(has_key(schema_of(kind), key) for kind in RECIPES), f"{page.name}: {key}"


def test_keys_are_looked_up() -> None:
    schema = schema_of(Recipe)
    assert has_key(schema, "task.prompt")
    assert has_key(schema, "compare.teachers.NAME.terms")
    assert not has_key(schema, "train.epoch")
    assert not has_key(schema, "train.epochs.more")
    assert {"train.alpha", "train.divergence"} < {
        key for page in PAGES for key in dotted_keys(page)
    }


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


@by_page
def test_extras_are_there(page: Path) -> None:
    for names in re.findall(r"(?:stillhouse|'\.|\(pip: )\[([a-z, ]+)\]", text_of(page)):
        assert set(re.split(r", ?", names)) <= set(EXTRAS), f"{page.name}: {names}"
