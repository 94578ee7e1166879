"""compare.html: nests, asks nobody for anything, escapes what users wrote, and says the result."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from stillhouse.core.tasks import ClassificationTask
from stillhouse.evaluate.candidates import Answers
from stillhouse.evaluate.metrics import Resampling
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.teacher_choice import recommend
from stillhouse.evaluate.teacher_page import closing_lines, render_comparison, sentence, table_rows
from stillhouse.evaluate.teacher_statistics import (
    agreement,
    complementarity,
    differences,
    mean,
    quality,
    scores_of,
)
from stillhouse.evaluate.teachers import ProbeResult, TeacherComparison, TeacherResult

LABELS = ("good", "bad")
TASK = ClassificationTask(kind="classification", labels=LABELS)
HOW = Resampling(0.95, 100, 0)
NASTY = "<script>alert(1)</script>"


def comparison(*, probe: bool = True) -> TeacherComparison:
    rng = np.random.default_rng(0)
    truth = [LABELS[i] for i in rng.integers(0, 2, 120)]
    answers: dict[str, Answers] = {}
    for name, rate in (("large", 0.95), ("small", 0.9), ("both", 0.96)):
        said = [t if rng.random() < rate else LABELS[t == "good"] for t in truth]
        beliefs = np.array([[0.9, 0.1] if s == "good" else [0.1, 0.9] for s in said])
        answers[name] = Answers(tuple(said), None if name == "small" else beliefs)
    scores = {name: scores_of(TASK, a, truth) for name, a in answers.items()}
    teachers: dict[str, TeacherResult] = {}
    for name, one in answers.items():
        q = quality(TASK, one, truth, HOW)
        tfidf = ProbeResult(score=mean(scores[name], HOW), trained_on=100)
        teachers[name] = TeacherResult(
            model=f"openai:{name}{NASTY}",
            revision="1",
            members=("large", "small") if name == "both" else (),
            combine="mean_logits" if name == "both" else None,
            no_answer=1,
            **q._asdict(),
            speed=CandidateSpeed(usd_per_1k=None if name == "small" else 1.0, source="test"),
            probes={"tfidf": tfidf} if probe and name != "both" else {},
        )
    own = differences(scores, HOW)
    probed = {n: s for n, s in scores.items() if n != "both"}
    return TeacherComparison(
        name="t",
        task="task",
        kind="classification",
        created="2026-01-01T00:00:00+00:00",
        metric="accuracy",
        n=120,
        confidence=0.95,
        margin=0.05,
        teachers=teachers,
        failed={"broken": f"no such model {NASTY}"},
        differences=own,
        probe_differences={"tfidf": differences(probed, HOW)} if probe else {},
        agreement=agreement(TASK, answers, scores),
        complementarity=(complementarity(TASK, ["large", "small"], answers, scores, HOW),),
        baseline=mean(scores["small"], HOW),
        recommendation=recommend(
            teachers,
            differences(probed, HOW) if probe else own,
            {name: {"model": f"openai:{name}"} for name in teachers},
            by="tfidf" if probe else "teacher",
            margin=0.05,
            own=own,
        ),
        usd_paid=0.12,
        notes=("a note",),
        versions={"stillhouse": "0"},
    )


class Nesting(HTMLParser):
    """Checks that tags nest and that nothing is fetched."""

    VOID = frozenset({"meta", "link", "br", "rect", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "action")]
        assert tag != "script"
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.mark.parametrize("probe", [True, False])
def test_the_page_nests_and_asks_nobody(probe: bool) -> None:
    html = render_comparison(comparison(probe=probe))
    reader = Nesting()
    reader.feed(html)
    assert reader.stack == []
    assert reader.links == ["data:,"]
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert NASTY not in html
    assert "&lt;script&gt;" in html


def test_page_terminal_and_json_say_the_same() -> None:
    found = comparison()
    assert sentence(found).startswith(f"Take {found.recommendation.teacher} ")
    rows = table_rows(found)
    assert {row.name.removesuffix(" *") for row in rows} == set(found.teachers)
    assert sum(row.name.endswith(" *") for row in rows) == 1
    assert [row.against_best for row in rows].count("best") == 1
    assert rows[-1].against_best == "no student"
    lines = closing_lines(found)
    assert any(line.startswith("at least one of large, small right: ") for line in lines)
    assert f"left out: broken: no such model {NASTY}" in lines
    assert TeacherComparison.model_validate_json(found.model_dump_json()) == found
