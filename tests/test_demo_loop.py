"""The demo of the whole loop, step by step, with a tiny student and a teacher that reads a word.

Everything else is what the demo runs: the gateway, the monitor, a retraining with its training, the
registry and the dashboard, each in a process of its own. The real models are `make demo-loop`.
"""

from __future__ import annotations

import asyncio
import random
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from stillhouse.core.jsonl import write_json, write_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, LabelledQuery, Message, Query
from stillhouse.core.tasks import ClassificationTask
from stillhouse.evaluate.results import STUDENT, TEACHER, Prediction
from stillhouse.retrain.registry import Registry

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "tests" / "serve")]

from demo_loop import Demo  # noqa: E402
from demo_loop_files import NAME, Places, Scale  # noqa: E402
from demo_loop_processes import Processes, free_ports  # noqa: E402
from demo_loop_teacher import Teacher, application  # noqa: E402
from demo_loop_traffic import Said  # noqa: E402
from gateway_servers import Loop  # noqa: E402
from tiny_students import taught_student  # noqa: E402

LABELS = ("positive", "negative")
TASK = ClassificationTask(
    kind="classification", name="mood", labels=LABELS, prompt="{text}\nSentiment:"
)
# Words of the tiny tokenizer. The student has learned the first of each; the shift brings others.
REVIEWS = {"positive": ("gripping", "moving", "wonderful"), "negative": ("dull", "boring", "long")}
EDITORIALS = {"positive": ("warm", "funny"), "negative": ("tired", "lifeless")}
SCALE = Scale(
    stage=30,
    most=600,
    window=100,
    normal=2,
    shifted=4,
    share=0.8,
    new=300,
    held_out=60,
    epochs=25,
    learning_rate=None,
    canaries=10,
    embedder="hashing",
)


def texts(words: dict[str, tuple[str, ...]], frame: str, count: int, seed: int) -> list[Said]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        label = rng.choice(LABELS)
        found.append(Said(frame.format(word=rng.choice(words[label]), number=number), label))
    return found


def label_of(text: str) -> str:
    """What the teacher says."""
    spoken = set(text.replace(",", " ").split())
    return LABELS[bool(spoken & {*REVIEWS["negative"], *EDITORIALS["negative"]})]


def make_run(folder: Path) -> tuple[Path, list[Said]]:
    """What of a finished run the demo reads, and reviews that were not in it."""
    said = texts(REVIEWS, "a {word} film from start {number} to finish", 900, 1)
    train, held, golden = said[:200], said[200:320], said[320:]
    student = folder / "train" / "student"
    taught_student(student, [one.text for one in train], [one.label for one in train], LABELS, 60)
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": TASK.model_dump(),
            "traffic": {"path": "traffic.jsonl"},
            "teacher": {"model": "embedded"},
            "student": {"head": "label", "from": "embedded-encoder", "max_tokens": 40},
            "train": {"learning_rate": 5e-3, "device": "cpu"},
            "evaluate": {"resamples": 200},
        }
    )
    for part in ("traffic", "dataset", "evaluate"):
        (folder / part).mkdir()
    write_json(folder / "recipe.json", recipe.model_dump(mode="json", by_alias=True))
    write_json(folder / "report.json", {})
    chats = {one.text: TASK.messages_for(one.text) for one in said}
    write_records(
        folder / "traffic" / "queries.jsonl",
        [Query(id=f"q{number}", messages=chats[one.text]) for number, one in enumerate(train)],
    )
    write_records(
        folder / "traffic" / "golden.jsonl",
        [
            LabelledQuery(id=f"g{number}", messages=chats[one.text], reference=one.label)
            for number, one in enumerate(golden)
        ],
    )
    write_records(
        folder / "dataset" / "held_out.jsonl",
        [
            Example(
                id=f"h{number}",
                messages=(*chats[one.text], Message(role="assistant", content=one.label)),
                task="mood",
                group=f"h{number}",
                teacher="embedded",
                teacher_revision="1",
                label=one.label,
            )
            for number, one in enumerate(held)
        ],
    )
    write_records(
        folder / "evaluate" / "predictions.jsonl",
        [
            Prediction(
                set="held_out",
                id=f"h{number}",
                text=one.text,
                reference=one.label,
                answers={TEACHER: one.label, STUDENT: one.label},
                agreement=1.0,
            )
            for number, one in enumerate(held)
        ],
    )
    return folder, golden


@pytest.fixture
def teacher() -> Iterator[tuple[str, Teacher]]:
    """A server, and what it counts."""

    async def ask(query: Query) -> str:
        return label_of(query.last_user_text)

    said = Teacher({}, ask)
    (port,) = free_ports(1)
    with Loop() as loop:

        async def start() -> web.AppRunner:
            runner = web.AppRunner(application(said, "tiny-1"))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            return runner

        runner = loop.do(start())
        yield f"http://127.0.0.1:{port}/v1", said
        loop.do(runner.cleanup())


def step(demo: Demo, name: str) -> dict[str, Any]:
    """The last step of a name."""
    return [one for one in demo.story.steps if one["step"] == name][-1]


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_loop_runs_by_itself_from_the_first_student_to_the_next(
    tmp_path: Path, teacher: tuple[str, Teacher]
) -> None:
    url, said = teacher
    run, golden = make_run(tmp_path / "run")
    other = texts(EDITORIALS, "the {word} script number {number}, and a {word} cast", 900, 2)
    listen, admin, board = free_ports(3)
    places = Places(tmp_path / "demo", run, url, listen, admin)
    places.root.mkdir()
    with Processes(tmp_path / "logs") as processes:
        demo = Demo(places, SCALE, golden, other, processes, taught_by=None)

        demo.start()
        registry = Registry(places.registry)
        first = registry.live(NAME)
        assert first is not None
        canaries = places.kept / "canaries.jsonl"
        assert len(canaries.read_text(encoding="utf-8").splitlines()) == SCALE.canaries

        demo.promote_the_first()
        climbed = step(demo, "first_full")
        assert climbed["stages"].count("advance") == 2
        assert SCALE.stage <= climbed["requests"] <= SCALE.most

        demo.watch_usual_traffic()
        usual = step(demo, "usual")
        assert usual["severity"] is None
        assert usual["alerts"] == []

        demo.shift()
        alert = step(demo, "found")["alert"]
        assert (alert["kind"], alert["cause"]) == ("input_shift", "input_shift")
        assert alert["action"]
        assert any("script number" in str(one) for one in alert["examples"])
        shifted = step(demo, "shifted")
        assert shifted["accuracy"] < usual["accuracy"] - 0.05

        asked = said.counts["asked"]
        demo.retrain()
        cycle = step(demo, "retrained")["cycle"]
        assert {one["against"] for one in cycle["checks"]} == {"teacher", "incumbent", "window"}
        assert all(one["passed"] for one in cycle["checks"])
        assert said.counts["asked"] > asked

        demo.promote_the_new()
        new = step(demo, "new_live")
        live = Registry(places.registry).live(NAME)
        assert live is not None
        assert (live.id, live.parent) == (new["student"], first.id)
        assert Registry(places.registry).get(first.id).stage == "retired"
        assert demo.state().student == live.id
        assert demo.state().kind == "full"

        demo.after()
        assert step(demo, "after")["accuracy"] > shifted["accuracy"] + 0.03

        demo.show(board)
        with urllib.request.urlopen(step(demo, "dashboard")["url"], timeout=30) as page:
            assert NAME in page.read().decode()
    names = [one["step"] for one in demo.story.steps]
    assert names == list(dict.fromkeys(names)) or names.count("shifted") > 1
    assert (places.root / "story.json").exists()


def test_the_teacher_is_asked_once_about_a_chat_and_answers_what_is_stored() -> None:
    asked: list[str] = []

    async def ask(query: Query) -> str:
        asked.append(query.last_user_text)
        await asyncio.sleep(0)
        return "positive"

    async def both() -> list[str]:
        said = Teacher({}, ask)
        chat = [{"role": "user", "content": "new"}]
        first = await asyncio.gather(said.answer(chat), said.answer(chat))
        return [*first, await said.answer(chat)]

    assert asyncio.run(both()) == ["positive"] * 3
    assert asked == ["new"]
