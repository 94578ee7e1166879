"""The demo's teacher as a server: what the run paid for at once, anything else by the model itself.

    python recipes/demo_loop_teacher.py --run runs/quickstart --port 9000

An OpenAI-compatible server on this machine. A chat that the run's store holds (its training,
labelled and golden queries) is answered from there, since the model says some 10 to 16 labels a
second on two cores and thousands of requests are replayed. What nobody asked before goes to the
tuned model of the run, once; `GET /counts` says how many came from where.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from stillhouse.core.jsonl import read_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Message, Query, message_key
from stillhouse.models.completer import Completer, Sampling
from stillhouse.teacher.build import open_teacher, teacher_sampling

Ask = Callable[[Query], Awaitable[str]]


class Stored(NamedTuple):
    """What the run's teacher said, by chat, and which weights said it."""

    answers: dict[str, str]
    revision: str


def stored_answers(run: Path) -> Stored:
    """Of the run's store of paid answers."""
    found: dict[str, str] = {}
    revision = ""
    with (run / "store" / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            answer = json.loads(line)
            if answer.get("completions"):
                found[answer["chat"]] = answer["completions"][0]["text"]
                revision = answer["completions"][0]["revision"]
    return Stored(found, revision)


def the_model(run: Path) -> Ask:
    """The teacher itself, tuned as the run tuned it."""
    recipe = Recipe.model_validate(read_json(run / "recipe.json"))
    tuned = run / "tune" / "model"
    teacher: Completer = open_teacher(
        recipe.teacher, recipe.prices, tuned if tuned.is_dir() else None
    )
    sampling: Sampling = teacher_sampling(recipe, teacher.info)

    async def ask(query: Query) -> str:
        return (await teacher.complete(query, sampling))[0].text

    return ask


class Teacher:
    """Answers from the store, else by the model; the model is asked once about a chat."""

    def __init__(self, known: dict[str, str], ask: Ask) -> None:
        self._known, self._ask = known, ask
        self._open: dict[str, asyncio.Future[str]] = {}
        self.counts = {"stored": 0, "asked": 0}

    async def answer(self, messages: list[dict[str, str]]) -> str:
        """The label."""
        chat = tuple(Message(role=one["role"], content=one["content"]) for one in messages)  # type: ignore[arg-type]
        key = message_key(chat)
        if key in self._known:
            self.counts["stored"] += 1
            return self._known[key]
        waiting = self._open.get(key)
        if waiting is None:
            self.counts["asked"] += 1
            waiting = asyncio.ensure_future(self._ask(Query(id=key, messages=chat)))
            self._open[key] = waiting
        text = await asyncio.shield(waiting)
        self._known[key] = text
        return text


def application(teacher: Teacher, revision: str) -> web.Application:
    """The server's routes. Answers name the revision as their model, as providers do, so that who
    learns from them knows that it is still the teacher of the run."""

    async def chat(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        text = await teacher.answer(body["messages"])
        words = sum(len(str(one["content"]).split()) for one in body["messages"])
        return web.json_response(
            {
                "id": f"chatcmpl-{time.monotonic_ns()}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": revision,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": words,
                    "completion_tokens": 1,
                    "total_tokens": words + 1,
                },
            }
        )

    async def counts(_request: web.Request) -> web.Response:
        return web.json_response(teacher.counts)

    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "teacher", "object": "model"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/counts", counts)
    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    stored = stored_answers(arguments.run)
    app = application(Teacher(stored.answers, the_model(arguments.run)), stored.revision)
    web.run_app(app, host="127.0.0.1", port=arguments.port, print=None)


if __name__ == "__main__":
    main()
