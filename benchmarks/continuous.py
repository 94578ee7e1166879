"""Continuous distillation on a stream whose topics change over ten windows.

    python benchmarks/continuous.py [--rows 700] [--new 110] [--held-out 30] [--start warm]

A teacher (MiniLM, fine-tuned on true labels of articles that are nowhere else) answers; a student
(three of MiniLM's layers) is distilled from a part of the first window and retrained on each that
follows by `retrain.cycle.run_cycle`, as `stillhouse retrain` runs it: choice of queries, replay of
all earlier ones, a student from scratch (or, with `--start warm`, from the live one), gate,
registry. Beside it, one student of the same kind is distilled from the teacher's answers to
every request of all windows at once, which is what its teacher cost is compared with. All students
are then measured on test passages of each window, which no part of the loop ever saw, against the
true sections. Intervals draw articles, whose passages go together, not passages; they hold no
variation between trainings, of which there is one. The settings of the retraining (start, epochs,
replay) were chosen on this stream, those of the student of everything were not.

Saves benchmarks/results/continuous.json: the matrix of accuracies, the gap to the student of
everything at once, the share of teacher answers that were paid, and the worst loss on an earlier
window. Claims: within 2 points, at most 20%, at most 2 points.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from continuous_data import Passage, Stream, read_stream
from machine_line import save
from retention_data import TOPICS
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stillhouse.core.jsonl import read_json, write_json, write_records
from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.loop_retrain import RetrainSection
from stillhouse.core.progress import Silent, Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Message, Query
from stillhouse.core.statistics import paired_difference
from stillhouse.evaluate.metrics import Resampling
from stillhouse.models.completer import Sampling
from stillhouse.models.loading import locate
from stillhouse.models.student import open_student
from stillhouse.pipeline import run_stages
from stillhouse.retrain.cycle import run_cycle
from stillhouse.retrain.cycle_files import TaskFolder
from stillhouse.retrain.forgetting import transfer
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.registry import Registry
from stillhouse.retraining import PipelineWorkshop

ROOT: Final = Path(__file__).parents[1]
WORK: Final = ROOT / ".cache" / "continuous"
SETTINGS: Final = WORK / "settings.json"
DAY_S: Final = 86_400.0
TOKENS: Final = 48


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--rows", type=int, default=700, help="Requests of a window.")
    parser.add_argument("--new", type=int, default=110, help="New queries of a cycle.")
    parser.add_argument("--held-out", type=int, default=30, help="Held out of a window.")
    parser.add_argument("--test", type=int, default=800, help="Test passages of a window.")
    parser.add_argument("--taught", type=int, default=1600, help="The teacher's training set.")
    parser.add_argument("--replay", type=float, default=1.0, help="Share of earlier examples.")
    parser.add_argument("--start", choices=("scratch", "warm"), default="scratch")
    parser.add_argument("--epochs", type=float, default=12.0, help="Of a retraining.")
    parser.add_argument("--first-epochs", type=float, default=12.0, help="Of the first student.")
    parser.add_argument("--all-epochs", type=float, default=3.0, help="Of the one of everything.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="Go on where the last run stopped.")
    parser.add_argument("--name", default="continuous", help="Of the result.")
    return parser.parse_args()


def train_teacher(passages: Sequence[Passage], folder: Path) -> None:
    """Fine-tune MiniLM on true labels, two epochs."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    source = str(locate("embedded-encoder").folder)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(TOPICS),
        id2label=dict(enumerate(TOPICS)),
        label2id={name: number for number, name in enumerate(TOPICS)},
        problem_type="single_label_classification",
        local_files_only=True,
    )
    rate, size, epochs = 1e-4, 32, 2
    steps = epochs * (len(passages) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(passages), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(passages) - size + 1, size):
            batch = [passages[int(i)] for i in order[start : start + size]]
            read = tokenizer(
                [one.text for one in batch],
                padding=True,
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            labels = torch.tensor([TOPICS.index(one.section) for one in batch])
            loss = model(**read, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_of(teacher: Path, traffic: Path, epochs: float) -> Recipe:
    """Both kinds of students' recipe."""
    return Recipe.model_validate(
        {
            "name": "continuous",
            "task": {
                "kind": "classification",
                "name": "section",
                "labels": list(TOPICS),
            },
            "traffic": {"path": str(traffic)},
            "teacher": {
                "model": f"hf:{teacher}",
                "terms": {"waived_by": "benchmark", "reason": "trained here"},
                "batch_size": 64,
            },
            "dataset": {"held_out": 0.1, "min_examples": 20},
            "student": {
                "head": "label",
                "from": "embedded-encoder",
                "layers": 3,
                "max_tokens": TOKENS,
            },
            "train": {
                "alpha": 0.7,
                "epochs": epochs,
                "learning_rate": 3e-4,
                "head_learning_rate": 1e-3,
                "batch_size": 16,
                "patience": None,
            },
            "evaluate": {
                "resamples": 200,
                "speed_queries": 20,
                "speed_repeats": 1,
                "max_queries": 100,
                "margin": 0.3,
            },
        }
    )


class Log:
    """The stream as the gateway's log: the live student's answers, no teacher's."""

    def __init__(self, windows: Sequence[Sequence[Passage]]) -> None:
        self.windows = windows
        self.answers: dict[str, tuple[str, float]] = {}

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        for window, passages in enumerate(self.windows):
            for number, passage in enumerate(passages):
                at = (window + number / len(passages)) * DAY_S
                if (since is None or at >= since) and (until is None or at < until):
                    yield self._row(f"w{window}-{number}", at, passage)

    def _row(self, name: str, at: float, passage: Passage) -> LiveRow:
        answer = None
        if name in self.answers:
            text, confidence = self.answers[name]
            answer = LiveAnswer(id=name, text=text, confidence=confidence, latency_ms=1.0)
        return LiveRow(
            id=name,
            at=at,
            written_at=at,
            task=task_name(),
            tenant="t",
            unit=name,
            messages=(Message(role="user", content=passage.text),),
            seen="student",
            arm="student",
            student=answer,
        )

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        return (row.id for row in self.rows(task, since, until))

    def newest(self, task: str, count: int) -> list[LiveRow]:
        return list(self.rows(task))[-count:]


def task_name() -> str:
    """The gateway's name of the task."""
    return "section"


def queries_of(passages: Sequence[Passage], prefix: str) -> list[Query]:
    """The passages as requests."""
    return [
        Query(
            id=f"{prefix}-{number}",
            messages=(Message(role="user", content=one.text),),
            task="section",
        )
        for number, one in enumerate(passages)
    ]


def main() -> None:
    """Run all of it and save the result."""
    options = arguments()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    asked = {k: v for k, v in vars(options).items() if k not in ("keep", "threads", "name")}
    if options.keep and SETTINGS.exists() and read_json(SETTINGS) != asked:
        sys.exit(f"--keep: the last run had other options (see {SETTINGS}); give them, or not it")
    if not options.keep:
        shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    write_json(SETTINGS, asked)
    stream = read_stream(
        ROOT / ".cache", options.windows, options.rows, options.test, options.taught
    )
    teacher = WORK / "teacher"
    train_teacher(stream.teacher, teacher)
    say(f"teacher trained, {time.monotonic() - started:.0f} s")

    log = Log(stream.windows)
    asked_first = options.new + options.held_out
    first = stream.windows[0][:asked_first]
    write_records(WORK / "first.jsonl", queries_of(first, "w0"))
    recipe = recipe_of(teacher, WORK / "first.jsonl", options.first_epochs)
    run_stages(recipe, WORK / "first", Silent(), last="evaluate")
    loop = loop_of(options, recipe, log)
    students = [WORK / "first" / "train" / "student"]
    clock: Clock = loop.clock  # type: ignore[assignment]
    for line in loop.files.journal():  # of a run that was stopped
        same = line.outcome != "promoted" or line.candidate is None
        students.append(students[-1] if same else loop.registry.folder(str(line.candidate)))
    for number, window in list(enumerate(stream.windows))[len(students) :]:
        clock.now = (number + 1) * DAY_S
        log.answers |= answered(students[-1], loop, queries_of(window, f"w{number}"))
        cycle = run_cycle(loop, "benchmark")
        live = loop.registry.live(task_name())
        students.append(students[-1] if live is None else loop.registry.folder(live.id))
        say(f"window {number}: {cycle.asked} asked, {cycle.verdict}")

    every = WORK / "everything"
    traffic = WORK / "everything.jsonl"
    write_records(
        traffic,
        [q for n, part in enumerate(stream.windows) for q in queries_of(part, f"w{n}")],
    )
    run_stages(recipe_of(teacher, traffic, options.all_epochs), every, Silent(), last="train")
    say(f"everything at once trained, {time.monotonic() - started:.0f} s in all")
    result = measured(options, stream, loop, students, every / "train" / "student")
    command = "python benchmarks/continuous.py " + " ".join(sys.argv[1:])
    save(options.name, command.strip(), result)


def answered(student: Path, loop: Loop, queries: Sequence[Query]) -> dict[str, tuple[str, float]]:
    """What the live student says to a window, and how sure it is, as the gateway logs it."""
    completer = open_student(student, loop.workshop.task, "label", 64)
    sampling = Sampling(labels=TOPICS)

    async def ask() -> list[tuple[str, float]]:
        found = await asyncio.gather(*(completer.complete(q, sampling) for q in queries))
        beliefs = [one[0].label_logprobs or {} for one in found]
        sure = [math.exp(max(belief.values())) for belief in beliefs]
        return [(one[0].text, s) for one, s in zip(found, sure, strict=True)]

    return dict(zip((q.id for q in queries), asyncio.run(ask()), strict=True))


class Clock:
    """The stream's time."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def loop_of(options: argparse.Namespace, recipe: Recipe, log: Log) -> Loop:
    """The loop, as loop.yaml would make it."""
    section = RetrainSection.model_validate(
        {
            "new": options.new,
            "held_out": options.held_out,
            "min_requests": 100,
            "window": "1d",
            "replay": options.replay,
            "start": options.start,
            "epochs": options.epochs,
            "margin": 0.3,
            "incumbent_margin": 0.1,
            "max_forgetting": 0.02,
            "choose": {"chance": 0.5},
        }
    )
    files = TaskFolder(WORK / "loop" / task_name())
    progress = Terminal() if sys.stderr.isatty() else Silent()
    clock = Clock()
    return Loop(
        name=task_name(),
        section=section,
        workshop=PipelineWorkshop(recipe, section, files.root, WORK / "first", progress),
        live=log,
        registry=Registry(WORK / "registry", clock),
        files=files,
        progress=progress,
        clock=clock,
        how=Resampling(0.95, 500, 0),
        margin=recipe.evaluate.margin,
        near_duplicate=recipe.dataset.near_duplicate,
        first_run=WORK / "first",
    )


def measured(
    options: argparse.Namespace,
    stream: Stream,
    loop: Loop,
    students: Sequence[Path],
    every: Path,
) -> dict[str, Any]:
    """Accuracy of all students on all windows' tests, and what was paid."""
    tests = stream.tests
    articles = [name for part in stream.articles for name in part]
    queries = [q for n, part in enumerate(tests) for q in queries_of(part, f"t{n}")]
    truth = [one.section for part in tests for one in part]
    window = [n for n, part in enumerate(tests) for _ in part]
    said: dict[Path, list[float]] = {}
    for folder in (*students, every):
        if folder not in said:
            answers = loop.workshop.predict(folder, queries)
            said[folder] = [float(a == t) for a, t in zip(answers, truth, strict=True)]
    names = [str(n) for n in range(len(tests))]
    rows = [
        {
            names[j]: mean([s for s, w in zip(said[folder], window, strict=True) if w == j])
            for j in range(i + 1)
        }
        for i, folder in enumerate(students)
    ]
    found = transfer(names, rows)
    last, whole = said[students[-1]], said[every]
    gap = paired_difference(last, whole, groups=articles)
    losses = {}
    for j in range(len(tests) - 1):
        own = [s for s, w in zip(said[students[j]], window, strict=True) if w == j]
        now = [s for s, w in zip(last, window, strict=True) if w == j]
        losses[names[j]] = paired_difference(own, now, groups=stream.articles[j]).to_json()
    lines = loop.files.journal()
    asked = options.new + options.held_out + sum(line.asked for line in lines)
    everything = sum(options.rows for _ in tests)
    by_window = [
        mean([s for s, w in zip(whole, window, strict=True) if w == j]) for j in range(len(tests))
    ]
    # What each retrained student scores on its own window, before and after it learnt from it.
    fresh = [rows[j][names[j]] for j in range(len(tests))]
    stale = [
        mean([s for s, w in zip(said[students[j - 1]], window, strict=True) if w == j])
        for j in range(1, len(tests))
    ]
    return {
        "windows": len(tests),
        "requests_a_window": options.rows,
        "test_a_window": min(len(part) for part in tests),
        "accuracy_retrained": mean(last),
        "accuracy_everything": mean(whole),
        "everything_by_window": by_window,
        "gap": gap.to_json(),
        "teacher_answers": asked,
        "teacher_answers_everything": everything,
        "share_of_teacher_cost": asked / everything,
        "worst_loss": max(loss["estimate"] for loss in losses.values()),
        "losses": losses,
        "average_forgetting": found.average_forgetting,
        "backward_transfer": found.backward_transfer,
        "own_window_after": fresh,
        "next_window_before": stale,
        "matrix": [[row.get(name) for name in names] for row in rows],
        "outcomes": [line.outcome for line in lines],
        "verdicts": [line.verdict for line in lines],
        "claims": {
            "within_2_points": gap.estimate > -0.02,
            "at_most_a_fifth": asked <= 0.2 * everything,
            "no_window_loses_2_points": all(loss["estimate"] <= 0.02 for loss in losses.values()),
        },
    }


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return sum(values) / len(values)


def say(text: str) -> None:
    """One line."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    main()
