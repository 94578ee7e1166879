"""The corpus stage: read texts, leave out what is empty or repeated, and divide them by group.

Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` (`core.corpus.Passage`) and `corpus.json`.
Equal files, recipe and seed give equal parts. Knows files and texts; knows no tokenizer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from stillhouse.core.corpus import PARTS, TEST, TRAIN, VALIDATION, Passage
from stillhouse.core.duplicates import bare, groups_of, normalised
from stillhouse.core.errors import DataError
from stillhouse.core.jsonl import read_objects, write_json, write_records
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_corpus import CorpusSection
from stillhouse.core.runfolder import Outcome
from stillhouse.core.split import split_by_group, unit_hash

FACTS: Final = "corpus.json"
LEAST: Final = 8  # texts, in as many as two groups, below which a score has no interval
SHORT, REPEATED, BEYOND = "shorter than min_chars", "repeated", "beyond limit"


class Corpus(NamedTuple):
    """What was read: texts in the order of the file, and how many were left out, by reason."""

    passages: Sequence[Passage]
    left_out: Mapping[str, int]


def run_corpus(section: CorpusSection, seed: int, work: Path, progress: Progress) -> Outcome:
    """Write the three parts of a corpus.

    Raises:
        DataError: a file that cannot be read, or too few texts for the split.
    """
    corpus = read_corpus(section, seed)
    parts = divide(section, corpus.passages, seed)
    for name, passages in parts.items():
        write_records(work / f"{name}.jsonl", passages)
    facts = {
        "texts": {name: len(passages) for name, passages in parts.items()},
        "groups": {name: len({p.group for p in passages}) for name, passages in parts.items()},
        "characters": {name: sum(len(p.text) for p in part) for name, part in parts.items()},
        "languages": _by_language(parts),
        "left_out": dict(corpus.left_out),
    }
    write_json(work / FACTS, facts)
    missing = _untrained_languages(parts)
    if missing:
        progress.say(f"      scored and never trained on: {', '.join(missing)}")
    return Outcome(summary={name: len(passages) for name, passages in parts.items()})


def read_corpus(section: CorpusSection, seed: int) -> Corpus:
    """All texts that are used, without repeats.

    Raises:
        DataError: no such file, a line without a text, or no text at all.
    """
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    found: list[dict[str, Any]] = []
    for row in _rows(section):
        text = row["text"].strip()
        plain = normalised(text)
        if len(text) < section.min_chars or not text:
            left_out[SHORT] += 1
        elif plain in seen:
            left_out[REPEATED] += 1
        else:
            seen.add(plain)
            found.append({**row, "text": text})
    if section.limit is not None and len(found) > section.limit:
        order = sorted(range(len(found)), key=lambda n: unit_hash(found[n]["text"], seed))
        kept = set(order[: section.limit])
        left_out[BEYOND] = len(found) - section.limit
        found = [row for number, row in enumerate(found) if number in kept]
    if not found:
        raise DataError(section.path, "holds no text", action="check corpus.path and corpus.text")
    if section.group is None:
        groups = groups_of([bare(row["text"]) for row in found], section.near_duplicate)
    else:
        groups = [row["group"] for row in found]
    return Corpus(
        [
            Passage(
                id=hashlib.sha256(row["text"].encode("utf-8")).hexdigest()[:16],
                text=row["text"],
                group=group,
                language=row["language"],
            )
            for row, group in zip(found, groups, strict=True)
        ],
        dict(left_out),
    )


def divide(
    section: CorpusSection, passages: Sequence[Passage], seed: int
) -> dict[str, Sequence[Passage]]:
    """Training, validation and test texts; a group is in one of them.

    Raises:
        DataError: a part would be too small to be trained on, watched or scored.
    """
    groups = [passage.group for passage in passages]
    if len(set(groups)) < 3:
        raise _too_small(section, passages, "three parts need three groups or more")
    rest, test = split_by_group(passages, groups, section.test, seed)
    share = section.validation / (1 - section.test)
    train, validation = split_by_group(rest, [p.group for p in rest], share, seed + 1)
    parts: dict[str, Sequence[Passage]] = {TRAIN: train, VALIDATION: validation, TEST: test}
    for name, part in parts.items():
        if len(part) < LEAST or (name == TEST and len({p.group for p in part}) < 2):
            raise _too_small(
                section,
                passages,
                f"{name} would have {len(part):,} texts in {len({p.group for p in part}):,} "
                f"groups, and {LEAST} texts in two groups are the least",
            )
    return parts


def _too_small(section: CorpusSection, passages: Sequence[Passage], problem: str) -> DataError:
    groups = len({passage.group for passage in passages})
    return DataError(
        section.path,
        f"{len(passages):,} texts in {groups:,} groups are too few for the split: {problem}",
        action="give more text, or raise corpus.validation and corpus.test"
        + ("" if section.group is None else ", or choose a finer corpus.group"),
    )


def _rows(section: CorpusSection) -> Iterator[dict[str, Any]]:
    path = Path(section.path)
    if path.suffix == ".jsonl":
        yield from _of_lines(section, path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(str(path), "there is no such file", action="check corpus.path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read as UTF-8 text: {error}") from None
    for key in ("language", "group"):
        if getattr(section, key) is not None:
            raise DataError(
                f"corpus.{key}", "is a key of .jsonl, and this is plain text", value=str(path)
            )
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        yield {"text": paragraph, "language": None}


def _of_lines(section: CorpusSection, path: Path) -> Iterator[dict[str, Any]]:
    keys = {"text": section.text, "language": section.language, "group": section.group}
    for number, row in read_objects(path):
        found: dict[str, Any] = {"language": None}
        for name, key in keys.items():
            if key is None:
                continue
            value = row.get(key)
            if name != "text" and isinstance(value, int):
                value = str(value)
            if not isinstance(value, str):
                raise DataError(
                    f"{path} line {number}",
                    f"has no text under {key!r}",
                    value=value,
                    action=f"check corpus.{name}; keys are {', '.join(row)}",
                )
            found[name] = value
        yield found


def _by_language(parts: Mapping[str, Sequence[Passage]]) -> dict[str, dict[str, int]]:
    counted = {name: Counter(p.language for p in part) for name, part in parts.items()}
    languages = sorted({language for found in counted.values() for language in found if language})
    return {one: {name: counted[name][one] for name in PARTS} for one in languages}


def _untrained_languages(parts: Mapping[str, Sequence[Passage]]) -> list[str]:
    known = {passage.language for passage in parts[TRAIN]}
    return sorted({p.language for p in parts[TEST] if p.language} - known)
