"""What windows are compared with: the run, a student's first windows, a new student's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monitor_world import LABELS, World

from stillhouse.core.errors import DataError, UserError
from stillhouse.monitor.segments import Item, Segmenter, TextClusters
from stillhouse.monitoring import check_tasks
from stillhouse.serve.stored_calls import delete_before

BEGIN = 1_000_000.0


def write_run(folder: Path, agree: int, count: int = 200) -> None:
    """A finished run whose student said what the teacher said in `agree` of 100 samples."""
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    (folder / "evaluate").mkdir(exist_ok=True)
    held, said = [], []
    for number in range(count):
        label = LABELS[number % 2]
        answer = label if (number * 37) % 100 < agree else LABELS[1 - number % 2]
        text = ("goal match league" if number % 4 < 2 else "bank shares profit") + f" {number}"
        held.append(
            {
                "id": f"h{number}",
                "messages": [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": label},
                ],
                "task": "reviews",
                "group": f"g{number // 2}",
                "teacher": "big",
                "teacher_revision": "1",
                "label": label,
            }
        )
        said.append(
            {
                "set": "held_out",
                "id": f"h{number}",
                "text": text,
                "reference": label,
                "answers": {"teacher": label, "student": answer},
                "agreement": float(answer == label),
            }
        )
    for name, lines in (("dataset/held_out", held), ("evaluate/predictions", said)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    write_run(tmp_path / "run", agree=95)
    world = World(tmp_path, {"segments": {"by": ["label"]}}, run="run")
    yield world
    world.close()


def checked(world: World, now: float) -> Any:
    (found,) = check_tasks(world.loop, now=now)
    return found


def test_a_run_is_the_reference_from_the_first_window_on(world: World) -> None:
    world.pairs(100, begin=BEGIN, agree=0.5)
    found = checked(world, BEGIN + 200)
    alert = next(one for one in found.alerts if one.cause == "agreement")
    assert alert.evidence["reference"]["estimate"] == pytest.approx(0.95, abs=0.02)
    assert alert.evidence["reference"]["n"] == 200
    assert {"agreement in label:fresh", "agreement in label:rotten"} <= {
        one.cause for one in found.reports[0].findings
    }


def test_a_student_that_comes_later_has_first_windows_of_its_own(world: World) -> None:
    world.pairs(100, begin=BEGIN, agree=0.95)
    assert checked(world, BEGIN + 200).alerts == []
    world.pairs(300, begin=BEGIN + 200, agree=0.6, student="s-2", seed=1)
    assert checked(world, BEGIN + 600).alerts == []  # it is no worse than it was at first
    world.pairs(100, begin=BEGIN + 600, agree=0.1, student="s-2", seed=2)
    found = checked(world, BEGIN + 800)
    alert = next(one for one in found.alerts if one.cause == "agreement")
    assert 0.5 < alert.evidence["reference"]["estimate"] < 0.7
    assert found.reports[0].student == "s-2"


def test_the_first_windows_may_be_wanted_instead(tmp_path: Path) -> None:
    write_run(tmp_path / "run", agree=95)
    world = World(tmp_path, {"reference": {"source": "windows"}}, run="run")
    world.pairs(300, begin=BEGIN, agree=0.6)
    assert checked(world, BEGIN + 400).alerts == []
    world.close()


def test_a_least_agreement_needs_no_reference(tmp_path: Path) -> None:
    world = World(tmp_path, {"bounds": {"agreement_least": 0.9}})
    world.pairs(100, begin=BEGIN, agree=0.7)
    (alert,) = checked(world, BEGIN + 200).alerts
    assert "must be 90.0%" in alert.summary
    world.close()


def test_a_reference_that_the_log_has_lost_is_taken_anew(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.pairs(300, begin=BEGIN, agree=0.95)
    assert checked(world, BEGIN + 400).alerts == []
    delete_before(world.engine, BEGIN + 250)
    world.pairs(300, begin=BEGIN + 500, agree=0.95, seed=1)
    found = checked(world, BEGIN + 900)
    assert "reference_gone" in [one.cause for one in found.alerts]
    state = json.loads((world.kept / "state.json").read_text())
    assert [past["number"] for past in state["baselines"]["small"]["past"]] == [4, 5]
    assert state["baselines"]["small"]["reference"]["agreement"]["n"] == 200
    world.close()


def test_a_run_that_is_not_finished_is_named(tmp_path: Path) -> None:
    world = World(tmp_path, run="nowhere")
    with pytest.raises(DataError, match=r"held_out\.jsonl: there is no such file in the run"):
        checked(world, BEGIN)
    world.close()


# --- segments ------------------------------------------------------------------------------------


def embed(texts: Any) -> Any:
    """Two topics, two directions."""
    rows = [[1.0, 0.1] if "goal" in text else [0.1, 1.0] for text in texts]
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_clusters_are_called_by_their_words() -> None:
    texts = [f"goal match {n}" for n in range(20)] + [f"bank profit {n}" for n in range(10)]
    clusters = TextClusters(texts, embed, 2)
    sport, money = clusters.of(["goal in the match", "the bank"])
    assert sport == "0 goal match"
    assert money == "1 bank profit"


def test_segments_of_what_is_not_known_are_left_out() -> None:
    segmenter = Segmenter(("language", "tenant", "label"), language=lambda text: text[:2] or None)
    found = segmenter.of([Item("en x", "shop", "fresh"), Item("", None, None)])
    assert found == [("language:en", "tenant:shop", "label:fresh"), ()]


def test_clusters_of_the_runs_texts_are_segments(tmp_path: Path) -> None:
    write_run(tmp_path / "run", agree=95)
    world = World(
        tmp_path, {"segments": {"by": ["cluster"], "clusters": 2, "least": 20}}, run="run"
    )
    topics = ("goal match league", "bank shares profit")
    world.pairs(100, begin=BEGIN, agree=0.95, text=lambda n: f"{topics[n % 2]} {n}")
    report = checked(world, BEGIN + 200).reports[0]
    assert [(one.by, one.requests) for one in report.segments] == [("cluster", 50)] * 2
    assert {one.name.split()[1] for one in report.segments} <= set(" ".join(topics).split())
    world.close()


def test_languages_are_segments(tmp_path: Path) -> None:
    pytest.importorskip("py3langid", reason="needs the extra language")
    world = World(tmp_path, {"segments": {"by": ["language"], "least": 20}})
    texts = (
        "This film is a wonderful story about friendship and courage",
        "Dieser Film ist eine wunderbare Geschichte über Freundschaft und Mut",
    )
    world.pairs(100, begin=BEGIN, agree=0.9, text=lambda n: texts[n % 2])
    report = checked(world, BEGIN + 200).reports[0]
    assert {(one.name, one.requests) for one in report.segments} == {("en", 50), ("de", 50)}
    world.close()


def test_clusters_without_a_run_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path, {"segments": {"by": ["cluster"]}})
    with pytest.raises(UserError, match="names no run"):
        checked(world, BEGIN)
    world.close()
