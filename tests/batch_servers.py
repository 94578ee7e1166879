"""A real HTTP server on loopback that speaks the batch protocols of OpenAI and of Anthropic.

It checks what it is sent as the providers do, answers in shuffled order, counts every answer that
it would bill, and fails where it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from teacher_servers import KEY, anthropic_answer, error, openai_answer

Json = dict[str, Any]
CUSTOM_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
PROMPT, ANSWER = 100, 20
RESET = web.Response()


@dataclass
class Faults:
    """What goes wrong.

    `batch(number)` is how the number-th batch made ends; `row(text)` is an error of one request:
    (status, code, message), or "missing"; `unreadable(text)`: it is answered, and billed, in a form
    that nobody can read; `request(method, path, number)` may answer the number-th
    request of all in the server's place, or drop its connection (`RESET`).
    """

    batch: Callable[[int], str] = lambda number: "completed"
    row: Callable[[str], Any] = lambda text: None
    unreadable: Callable[[str], bool] = lambda text: False
    request: Callable[[str, str, int], web.StreamResponse | None] = lambda *_: None
    lose_creates: int = 0  # batches that are made, and whose answer is lost
    drop_creates: int = 0  # batches whose request is lost before they are made
    cut_downloads: int = 0  # downloads that break off
    short_downloads: int = 0  # downloads that end early, in good order
    drip_s: float = 0.0  # between the two halves of a download
    hidden_s: float = 0.0  # until a new batch is listed
    half: float = 0.5  # of an expired or cancelled batch that is answered


@dataclass
class Made:
    """One batch."""

    id: str
    number: int
    requests: list[Json]
    made: float
    ends_as: str
    file: str = ""
    metadata: Json = field(default_factory=dict)
    looks: int = 0
    done: bool = False
    answered: list[Json] = field(default_factory=list)
    errors: list[Json] = field(default_factory=list)


class BatchServer:
    """`looks` is how often a batch is looked at, `runs_s` how long it runs, before it has ended."""

    def __init__(self, faults: Faults, looks: int, runs_s: float, delay_s: float) -> None:
        self.faults, self.looks, self.runs_s, self.delay_s = faults, looks, runs_s, delay_s
        self.random = random.Random(0)
        self.files: dict[str, tuple[str, bytes]] = {}
        self.batches: dict[str, Made] = {}
        self.billed: Counter[str] = Counter()  # by question, answered in batches
        self.live: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self.key = KEY
        self.url = ""
        self.text: Callable[[str], str] = lambda text: f"answer to {text}"
        self.refuse_temperature = False
        self.most_requests = 50_000
        self.made = 0

    # --- both ---------------------------------------------------------------------------------

    @web.middleware
    async def around(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        self.log.append((request.method, request.path))
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if (sent or request.headers.get("x-api-key", "")) != self.key:
            return error(401, f"Incorrect API key provided: {sent}")
        instead = self.faults.request(request.method, request.path, len(self.log) - 1)
        if instead is RESET:
            hang_up(request)
        if instead is not None:
            return instead
        answer: web.StreamResponse = await handler(request)
        return answer

    def make(self, requests: list[Json], **more: Any) -> Made:
        number, self.made = self.made, self.made + 1
        made = Made(
            f"batch_{number:04d}", number, requests, time.time(), self.faults.batch(number), **more
        )
        self.batches[made.id] = made
        return made

    def look(self, made: Made) -> None:
        """Let time pass for a batch."""
        made.looks += 1
        if made.done or made.looks <= self.looks or time.time() < made.made + self.runs_s:
            return
        if made.ends_as == "stuck":
            return
        made.done = True
        if made.ends_as in ("failed", "later"):
            return
        rows = list(made.requests)
        self.random.shuffle(rows)
        partial = made.ends_as in ("expired", "cancelled")
        run = int(len(rows) * self.faults.half) if partial else len(rows)
        for index, row in enumerate(rows):
            body = row.get("body") or row["params"]
            text = body["messages"][-1]["content"]
            wrong = self.faults.row(text)
            if wrong == "missing":
                continue
            if index >= run:
                made.errors.append({"id": row["custom_id"], "end": made.ends_as})
            elif wrong is not None:
                made.errors.append({"id": row["custom_id"], "wrong": wrong})
            else:
                self.billed[text] += 1
                made.answered.append({"id": row["custom_id"], "text": text, "n": body.get("n", 1)})

    async def download(self, request: web.Request, lines: list[Json]) -> web.StreamResponse:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        if self.faults.short_downloads > 0:
            self.faults.short_downloads -= 1
            data = data[: data.rfind(b"\n", 0, len(data) * 2 // 3) + 1]
        answer = web.StreamResponse(headers={"Content-Type": "application/binary"})
        cut = self.faults.cut_downloads > 0
        if cut:
            self.faults.cut_downloads -= 1
            answer.enable_chunked_encoding()
        await answer.prepare(request)
        middle = len(data) // 2 + 3
        await answer.write(data[:middle])
        if self.faults.drip_s:
            await asyncio.sleep(self.faults.drip_s)
        if not cut:
            await answer.write(data[middle:])
        else:
            hang_up(request)
        return answer

    def lost(self, request: web.Request) -> web.StreamResponse:
        self.faults.lose_creates -= 1
        hang_up(request)
        return web.Response()

    # --- OpenAI -------------------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.refuse_temperature and "temperature" in body:
            return error(400, "Unsupported parameter: 'temperature'", param="temperature")
        text = body["messages"][-1]["content"]
        wrong = self.faults.row(text)
        if wrong is not None and wrong != "missing":
            return error(wrong[0], wrong[2], code=wrong[1])
        self.live[text] += 1
        return openai_answer(self.text(text), n=body.get("n", 1), usage=(PROMPT, ANSWER))

    async def upload(self, request: web.Request) -> web.StreamResponse:
        name, data = "", b""
        async for part in await request.multipart():
            assert part is not None
            if part.name == "file":  # type: ignore[union-attr]
                name, data = part.filename or "", await part.read(decode=False)  # type: ignore[union-attr]
        the_id = f"file-{len(self.log)}"
        self.files[the_id] = (name, data)
        return web.json_response(self.file(the_id))

    def file(self, the_id: str) -> Json:
        name, data = self.files[the_id]
        return {
            "id": the_id, "object": "file", "bytes": len(data), "created_at": 1, "filename": name,
            "purpose": "batch", "status": "processed",
        }  # fmt: skip

    async def list_files(self, request: web.Request) -> web.StreamResponse:
        data = [self.file(the_id) for the_id in reversed(self.files)]
        return web.json_response({"object": "list", "data": data, "has_more": False})

    async def delete_file(self, request: web.Request) -> web.StreamResponse:
        the_id = request.match_info["id"]
        if self.files.pop(the_id, None) is None:
            return error(404, "no such file")
        return web.json_response({"id": the_id, "object": "file", "deleted": True})

    async def file_content(self, request: web.Request) -> web.StreamResponse:
        kind, _, batch = request.match_info["id"].partition("-")
        made = self.batches[batch]
        if kind == "out":
            return await self.download(request, [self.openai_row(row) for row in made.answered])
        return await self.download(request, [self.openai_error(row) for row in made.errors])

    def openai_row(self, row: Json) -> Json:
        answer = openai_answer(self.text(row["text"]), n=row["n"], usage=(PROMPT, ANSWER))
        body = json.loads(answer.text or "")
        if self.faults.unreadable(row["text"]):
            body["choices"] = []
        return {
            "id": "r", "custom_id": row["id"], "error": None,
            "response": {"status_code": 200, "request_id": "r", "body": body},
        }  # fmt: skip

    @staticmethod
    def openai_error(row: Json) -> Json:
        if "end" in row:
            code = f"batch_{row['end']}"
            wrong = {"code": code, "message": "This request could not be executed in time."}
            return {"id": "r", "custom_id": row["id"], "response": None, "error": wrong}
        status, code, message = row["wrong"]
        body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        return {
            "id": "r", "custom_id": row["id"], "error": None,
            "response": {"status_code": status, "request_id": "r", "body": body},
        }  # fmt: skip

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.faults.drop_creates > 0:
            self.faults.drop_creates -= 1
            return error(500, "lost")
        if body["input_file_id"] not in self.files:
            return error(400, "no such file", param="input_file_id")
        data = self.files[body["input_file_id"]][1]
        rows = [json.loads(line) for line in data.splitlines()]
        ids = [row["custom_id"] for row in rows]
        assert len(set(ids)) == len(ids), "custom ids are not distinct"
        assert len(ids) <= self.most_requests
        assert all(set(row) == {"custom_id", "method", "url", "body"} for row in rows)
        made = self.make(rows, file=body["input_file_id"], metadata=body.get("metadata") or {})
        if self.faults.lose_creates > 0:
            return self.lost(request)
        return web.json_response(self.openai_batch(made))

    def openai_batch(self, made: Made) -> Json:
        status, errors = "in_progress", None
        if made.done:
            status = "failed" if made.ends_as in ("failed", "later") else made.ends_as
        if status == "failed":
            later = made.ends_as == "later"
            code = "token_limit_exceeded" if later else "invalid_json_line"
            message = "Enqueued token limit reached" if later else "This line is not valid JSON."
            errors = {
                "object": "list",
                "data": [{"code": code, "message": message, "line": None if later else 3}],
            }
        return {
            "id": made.id, "object": "batch", "endpoint": "/v1/chat/completions",
            "completion_window": "24h", "input_file_id": made.file, "status": status,
            "created_at": int(made.made), "metadata": made.metadata, "errors": errors,
            "output_file_id": f"out-{made.id}" if made.answered else None,
            "error_file_id": f"err-{made.id}" if made.errors else None,
            "request_counts": {
                "total": len(made.requests), "completed": len(made.answered),
                "failed": len(made.errors),
            },
        }  # fmt: skip

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        made = self.batches.get(request.match_info["id"])
        if made is None:
            return error(404, "No batch found with this id")
        self.look(made)
        return web.json_response(self.openai_batch(made))

    def listed(self) -> list[Made]:
        newest_first = list(self.batches.values())[::-1]
        return [m for m in newest_first if time.time() >= m.made + self.faults.hidden_s]

    async def list(self, request: web.Request) -> web.StreamResponse:
        page, more = self.page(request, "after", 100)
        data = [self.openai_batch(made) for made in page]
        last = data[-1]["id"] if data else None
        return web.json_response(
            {"object": "list", "data": data, "has_more": more, "last_id": last}
        )

    def page(self, request: web.Request, after: str, most: int) -> tuple[list[Made], bool]:
        found, limit = self.listed(), min(int(request.query.get("limit", "20")), most)
        if after in request.query:
            ids = [made.id for made in found]
            found = found[ids.index(request.query[after]) + 1 :]
        return found[:limit], len(found) > limit

    # --- Anthropic ----------------------------------------------------------------------------

    async def message(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][-1]["content"]
        wrong = self.faults.row(text)
        if wrong is not None and wrong != "missing":
            return error(wrong[0], wrong[2])
        self.live[text] += 1
        return anthropic_answer(self.text(text))

    async def create_messages(self, request: web.Request) -> web.StreamResponse:
        rows = (await request.json())["requests"]
        if self.faults.drop_creates > 0:
            self.faults.drop_creates -= 1
            return error(529, "Overloaded")
        ids = [row["custom_id"] for row in rows]
        assert len(set(ids)) == len(ids)
        assert all(CUSTOM_ID.match(the_id) for the_id in ids)
        assert all(set(row) == {"custom_id", "params"} for row in rows)
        made = self.make(rows)
        if self.faults.lose_creates > 0:
            return self.lost(request)
        return web.json_response(self.message_batch(made))

    def message_batch(self, made: Made) -> Json:
        ended = [row for row in made.errors if "end" in row]
        when = f"2026-11-24T00:00:{made.number // 10:02d}.{made.number % 10}00000Z"
        counts = {
            "processing": 0 if made.done else len(made.requests),
            "succeeded": len(made.answered),
            "errored": len(made.errors) - len(ended),
            "canceled": len(ended) if made.ends_as == "cancelled" else 0,
            "expired": len(ended) if made.ends_as == "expired" else 0,
        }
        # Rows that a test lets vanish still count.
        counts["errored"] += len(made.requests) - sum(counts.values())
        return {
            "id": made.id, "type": "message_batch", "created_at": when, "expires_at": when,
            "ended_at": when if made.done else None, "archived_at": None,
            "cancel_initiated_at": when if made.ends_as == "cancelled" and made.done else None,
            "processing_status": "ended" if made.done else "in_progress",
            "results_url": f"{self.url}/v1/messages/batches/{made.id}/results"
            if made.done else None,
            "request_counts": counts,
        }  # fmt: skip

    async def retrieve_messages(self, request: web.Request) -> web.StreamResponse:
        made = self.batches.get(request.match_info["id"])
        if made is None:
            return error(404, "Not found")
        self.look(made)
        return web.json_response(self.message_batch(made))

    async def list_messages(self, request: web.Request) -> web.StreamResponse:
        page, more = self.page(request, "after_id", 1000)
        data = [self.message_batch(made) for made in page]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        return web.json_response(
            {"data": data, "has_more": more, "first_id": first, "last_id": last}
        )

    async def results(self, request: web.Request) -> web.StreamResponse:
        made = self.batches[request.match_info["id"]]
        rows = []
        for row in made.answered:
            message = json.loads(anthropic_answer(self.text(row["text"])).text or "")
            if self.faults.unreadable(row["text"]):
                message["content"] = None
            rows.append(
                {"custom_id": row["id"], "result": {"type": "succeeded", "message": message}}
            )
        for row in made.errors:
            result: Json = {"type": "canceled" if row.get("end") == "cancelled" else "expired"}
            if "wrong" in row:
                inner = {"type": row["wrong"][1], "message": row["wrong"][2]}
                result = {"type": "errored", "error": {"type": "error", "error": inner}}
            rows.append({"custom_id": row["id"], "result": result})
        self.random.shuffle(rows)
        return await self.download(request, rows)


def hang_up(request: web.Request) -> None:
    if request.transport is not None:  # the other side may have been killed
        request.transport.close()


@contextlib.contextmanager
def serve_batches(
    faults: Faults | None = None, *, looks: int = 1, runs_s: float = 0.0, delay_s: float = 0.0
) -> Iterator[BatchServer]:
    """Run the server in a thread of its own while the block runs."""
    server = BatchServer(faults or Faults(), looks, runs_s, delay_s)
    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=2**28, middlewares=[server.around])
    app.router.add_routes(
        [
            web.post("/v1/chat/completions", server.chat),
            web.post("/v1/files", server.upload),
            web.get("/v1/files", server.list_files),
            web.delete("/v1/files/{id}", server.delete_file),
            web.get("/v1/files/{id}/content", server.file_content),
            web.post("/v1/batches", server.create),
            web.get("/v1/batches", server.list),
            web.get("/v1/batches/{id}", server.retrieve),
            web.post("/v1/messages", server.message),
            web.post("/v1/messages/batches", server.create_messages),
            web.get("/v1/messages/batches", server.list_messages),
            web.get("/v1/messages/batches/{id}", server.retrieve_messages),
            web.get("/v1/messages/batches/{id}/results", server.results),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
