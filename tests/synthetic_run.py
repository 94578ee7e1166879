"""A finished run without models: every artifact that the evaluate stage reads, made up from a seed.

Queries are short reviews whose true label is one of their words; teacher and student are doubles
that are wrong on a known share of them.
"""

from __future__ import annotations

import json
import math
import random
import types
from pathlib import Path
from typing import Any

import pytest

from stillhouse.core.jsonl import write_json, write_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Completion, Example, LabelledQuery, Query, Rejection
from stillhouse.core.runfolder import Outcome, RunFolder, StageKey
from stillhouse.core.split import unit_hash
from stillhouse.evaluate import stage
from stillhouse.models.completer import ModelInfo
from stillhouse.models.fake import FakeCompleter

LABELS = ("fresh", "rotten")
FRESH = ("moving", "sharp", "tender", "bright", "honest")
ROTTEN = ("dull", "clumsy", "hollow", "stale", "tired")


def make_recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "synthetic",
        "seed": 3,
        "task": {
            "kind": "classification",
            "name": "verdict",
            "labels": list(LABELS),
            "prompt": "{text}\nVerdict:",
        },
        "traffic": {"path": "traffic.jsonl", "golden": "golden.jsonl"},
        "teacher": {"model": "embedded"},
        "student": {"head": "label", "from": "embedded-encoder"},
        "evaluate": {"resamples": 200, "speed_queries": 8, "speed_repeats": 2},
    }
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(raw.get(key), dict) else value
    return Recipe.model_validate(raw)


def make_text(number: int) -> tuple[str, str]:
    """(text, true label) number so-and-so."""
    rng = random.Random(number)
    label = LABELS[number % 3 == 0]
    word = rng.choice(FRESH if label == "fresh" else ROTTEN)
    return f"a {word} film about <b>item {number}</b> & its {rng.choice(('crew', 'cast'))}", label


def true_label(query: Query) -> str:
    return "fresh" if any(w in query.last_user_text for w in FRESH) else "rotten"


def flip(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


class Double(FakeCompleter):
    """A white-box model that is wrong on `errors` of the queries, by content."""

    def __init__(self, name: str, errors: float, seed: int, parameters: int) -> None:
        self._errors, self._seed, self._parameters = errors, seed, parameters
        super().__init__(name, belief=self.believe)
        self.closed = False

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            name=self._name,
            revision=f"{Path(self._name).name}-1",
            parameters=self._parameters,
            size_bytes=4 * self._parameters,
            gives_label_logprobs=True,
            local=True,
        )

    def believe(self, query: Query) -> dict[str, float]:
        draw = unit_hash(query.last_user_text, self._seed)
        label = true_label(query)
        label = flip(label) if draw < self._errors else label
        sure = 0.6 + 0.38 * unit_hash(query.last_user_text, self._seed + 1)
        return {one: math.log(sure if one == label else 1 - sure) for one in LABELS}

    async def aclose(self) -> None:
        self.closed = True


def teacher_double() -> Double:
    return Double("teacher-model", 0.15, 1, 135_000_000)


def completion_of(double: Double, query: Query) -> Completion:
    belief = double.believe(query)
    return Completion(
        query_id=query.id,
        text=max(belief, key=lambda label: belief[label]),
        model=double.info.name,
        revision=double.info.revision,
        prompt_tokens=12,
        completion_tokens=1,
        label_logprobs=belief,
    )


def example_of(recipe: Recipe, double: Double, number: int, group: str) -> Example:
    query = query_of(recipe, number)
    completion = completion_of(double, query)
    belief = completion.label_logprobs
    assert belief is not None
    return Example(
        id=query.id,
        messages=(*query.messages, {"role": "assistant", "content": completion.text}),
        task="verdict",
        group=group,
        teacher=completion.model,
        teacher_revision=completion.revision,
        label=completion.text,
        label_probabilities=tuple(math.exp(belief[label]) for label in LABELS),
    )


def query_of(recipe: Recipe, number: int) -> Query:
    text, _ = make_text(number)
    return Query(id=f"q{number}", messages=recipe.task.messages_for(text))


def golden_query(recipe: Recipe, number: int) -> LabelledQuery:
    text, label = make_text(number)
    return LabelledQuery(id=f"g{number}", messages=recipe.task.messages_for(text), reference=label)


def make_run(
    root: Path, recipe: Recipe, *, golden: int = 120, held_out: int = 60, train: int = 200
) -> RunFolder:
    """The stages before evaluate, finished."""
    run = RunFolder(root)
    teacher = teacher_double()
    goldens = [golden_query(recipe, n) for n in range(10_000, 10_000 + golden)]

    def finish(name: str, seconds: float, files: dict[str, Any]) -> None:
        key = StageKey(name, {}, {}, {}, recipe.seed)
        work = run.open_partial(key)
        for file, content in files.items():
            if isinstance(content, list) and not file.endswith(".json"):
                write_records(work / file, content)
            elif isinstance(content, list):
                (work / file).write_text(json.dumps(content), encoding="utf-8")
            else:
                write_json(work / file, content)
        if name == "train":
            (work / "student").mkdir()
            (work / "student" / "weights").write_text("student")
            (work / "twin" / "student").mkdir(parents=True)
            (work / "twin" / "student" / "weights").write_text("twin")
        run.finish(key, Outcome(cost_usd=0.25 if name == "ask" else 0.0), seconds, 512.5)

    traffic: dict[str, Any] = {"queries.jsonl": [query_of(recipe, n) for n in range(train)]}
    answers: dict[str, Any] = {
        "completions.jsonl": [completion_of(teacher, query_of(recipe, n)) for n in range(train)],
        "timings.json": {
            "queries_per_second": 4.0,
            "latency_p50_ms": 210.0,
            "latency_p95_ms": 480.0,
        },
    }
    if golden:
        traffic["golden.jsonl"] = goldens
        answers["golden_completions.jsonl"] = [completion_of(teacher, q) for q in goldens]
    finish("traffic", 1.25, traffic)
    finish("check", 3.5, {"check.json": {"n": 80, "better_than_baseline": True}})
    finish("ask", 40.0, answers)
    finish(
        "dataset",
        2.0,
        {
            "train.jsonl": [example_of(recipe, teacher, n, f"t{n}") for n in range(train)],
            "held_out.jsonl": [
                example_of(recipe, teacher, n, f"h{n // 2}") for n in range(5_000, 5_000 + held_out)
            ],
            "rejections.jsonl": [
                Rejection(query_id=f"r{n}", reason=reason, detail="made up")
                for n, reason in enumerate(["duplicate"] * 5 + ["label"] * 2)
            ],
        },
    )
    history = [
        {
            "step": 10 * k,
            "epoch": k / 5,
            "loss": 1.5 * 0.8**k,
            "held_out_divergence": 0.4 * 0.8**k if k % 2 else None,
            "held_out_agreement": 1 - 0.3 * 0.8**k if k % 2 else None,
        }
        for k in range(1, 16)
    ]
    finish(
        "train",
        180.0,
        {
            "history.json": history,
            "convergence.json": {
                "verdict": {
                    "state": "capacity_ceiling",
                    "sentence": "The student is too small for this task: 82.0%.",
                    "actions": ["a bigger student"],
                },
                "findings": [{"name": "capacity_ceiling", "found": True, "seen": "82.0%"}],
                "looks": [],
            },
            "train.json": {"student": {"parameters": 11_000_000, "size_bytes": 44_000_000}},
        },
    )
    return run


def install_students(monkeypatch: pytest.MonkeyPatch, opened: list[Double]) -> None:
    """`stillhouse.models.student` replaced by doubles; those opened are noted."""

    def open_student(folder: Path, task: object, head: str, batch_size: int, device: str) -> Double:
        twin = folder.parent.name == "twin"
        double = Double(str(folder), 0.21 if twin else 0.17, 1, 11_000_000)
        opened.append(double)
        return double

    module = types.SimpleNamespace(open_student=open_student)
    monkeypatch.setattr(stage, "require", lambda *_: module)


def finish_evaluate(recipe: Recipe, run: RunFolder, work: Path, outcome: Outcome) -> None:
    """What the pipeline does after the stage."""
    assert work == run.partial("evaluate")
    run.finish(StageKey("evaluate", {}, {}, {}, recipe.seed), outcome, 20.0, 900.0)
