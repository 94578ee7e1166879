"""One request from assignment to answer: who is asked, who answers instead, what is streamed.

An answer comes from one variant alone: once a byte of it is sent, the other is not asked any more.
Knows no evidence: assignment, state and confidence come from the seams.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from stillhouse.serve.anthropic_shapes import anthropic_answer, openai_answer
from stillhouse.serve.anthropic_stream import anthropic_stream, joined_messages, openai_stream
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.ask import Ask, path_of, sent_body, translated
from stillhouse.serve.features import answer_features
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.private import raw_weight
from stillhouse.serve.quick_json import json_bytes, read_json
from stillhouse.serve.record_calls import Recorder, Went
from stillhouse.serve.records import Variant
from stillhouse.serve.relay import Judge, Relay, Unsure
from stillhouse.serve.roster import Roster
from stillhouse.serve.seams import GatePlan, Parts
from stillhouse.serve.sse import joined, own_logprobs
from stillhouse.serve.sureness import Sureness
from stillhouse.serve.upstream import Reply, Stream, Upstream, UpstreamFailed

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
_MESSAGES: Final = {
    429: "Too many requests; try again later.",
    503: "The model is not available now; try again later.",
    504: "The model did not answer in time.",
}


def base_headers(
    request_id: str, kind: bytes, *, anthropic: bool = False
) -> list[tuple[bytes, bytes]]:
    """Headers of every answer; Anthropic's clients look for the id under another name."""
    identity = request_id.encode("ascii")
    headers = [(b"content-type", kind), (b"x-request-id", identity)]
    if anthropic:
        headers.append((b"request-id", identity))
    return headers


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode("ascii"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


class Turn(NamedTuple):
    """One variant's turn at a request. `gate`: what is needed to see whether its answer is sure
    enough; `None`: it is shown as it is. `last`: nobody else can answer."""

    variant: Variant
    upstream: Upstream
    gate: GatePlan | None
    last: bool


class Exchange:
    """Answers requests that were let in."""

    def __init__(self, roster: Roster, parts: Parts, metrics: Metrics) -> None:
        self._roster = roster
        self._parts = parts
        self._metrics = metrics
        self._sure = Sureness(roster)
        self._recorder = Recorder(parts.log, metrics)
        self._shadows: dict[str, set[asyncio.Task[None]]] = {}
        self.live = 0  # requests of clients that are in work, counted by who lets them in

    async def answer(self, ask: Ask, send: Send) -> None:
        """Answer it.

        Raises:
            ApiError: nobody could, and nothing is sent yet.
        """
        with self._roster.seated(ask):
            await self._answer(ask, send)

    async def _answer(self, ask: Ask, send: Send) -> None:
        loop = asyncio.get_running_loop()
        variants = self._order(ask)
        upstreams = [self._upstream(ask, variant) for variant in variants]
        ends = loop.time() + max(one.section.deadlines.total_s for one in upstreams)
        failed: UpstreamFailed | None = None
        for number, variant in enumerate(variants):
            upstream = upstreams[number]
            own = loop.time() + upstream.section.deadlines.total_s
            last = number == len(variants) - 1
            unsure = variant == "student" and not last  # there is a teacher to fall back on
            gate = self._sure.gates(ask, upstream.section.kind) if unsure else None
            try:
                turn = Turn(variant, upstream, gate, last)
                await self._try(ask, turn, send, min(ends, own))
                break
            except Unsure:
                ask.fell_back = "low-confidence"
                if self._student_may_stand_in(ask):  # an unsure answer is better than none
                    variants.append("student")
                    upstreams.append(upstream)
            except UpstreamFailed as error:
                if failed is None or not error.why.startswith("refused_"):
                    failed = error
                shown = self._roster.label(ask) if variant == "student" else upstream.name
                self._metrics.upstream_errors.labels(shown, error.why).inc()
                ask.fell_back = f"{variant}-down"
            except asyncio.CancelledError:
                self._metrics.gone.inc()
                self._record(ask, variant, upstream, 499, None, error="client left")
                raise
            if not last:
                self._metrics.fallbacks.labels(ask.name, ask.fell_back).inc()
        else:
            assert failed is not None
            ask.fell_back = None
            self._record(ask, variants[-1], upstream, failed.status, None, error=failed.why)
            message = _MESSAGES.get(failed.status, "The model could not be reached.")
            raise ApiError(failed.status, message, code=failed.why, retry_after=failed.retry_after)
        place = ask.assignment
        # Of a running student's own traffic the new one is asked what the teacher answered for it.
        teachers = (ask.fell_back is None) != (place.arm == "incumbent")
        if place.shadowed and teachers and ask.route != "embeddings":
            self._shadow_later(ask)

    async def drain(self, seconds: float) -> None:
        """Wait so long for shadow calls; then give them up."""
        tasks = [task for some in self._shadows.values() for task in some]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _upstream(self, ask: Ask, variant: Variant) -> Upstream:
        if variant == "teacher":
            return self._roster.teacher(ask.name)
        assert ask.seat is not None
        return ask.seat.upstream

    def _order(self, ask: Ask) -> list[Variant]:
        task = ask.task
        if ask.route == "embeddings" or task.student is None:
            return ["teacher"]
        if ask.assignment.variant == "student":
            return (
                ["student", "teacher"] if task.fallback.teacher_when_student_down else ["student"]
            )
        return ["teacher", "student"] if self._student_may_stand_in(ask) else ["teacher"]

    def _student_may_stand_in(self, ask: Ask) -> bool:
        """Whether the student answers where the teacher is down, however sure."""
        killed = self._parts.states.get(ask.name).killed
        return ask.task.fallback.student_when_teacher_down and not killed

    async def _try(self, ask: Ask, turn: Turn, send: Send, ends: float) -> None:
        section = turn.upstream.section
        path = path_of(ask, section.kind)
        began = time.perf_counter()
        if turn.gate is not None:
            await self._sure.about(ask)
            if turn.gate.samples:
                reply, others = await self._sure.ask_often(ask, turn.upstream, turn.gate, ends)
                ask.upstream_s += time.perf_counter() - began
                await self._whole(ask, turn, send, reply, others)
                return
        wanted = 0 if turn.gate is None else turn.gate.alternatives
        body = sent_body(ask, section.kind, section.model, alternatives=wanted)
        if ask.streams and not translated(ask, section.kind) and ask.route != "embeddings":
            try:
                stream = await turn.upstream.stream(path, body, ends, ask.beside(section.kind))
            finally:
                ask.upstream_s += time.perf_counter() - began
            try:
                await self._stream(ask, turn, send, stream)
            finally:
                stream.close()
            return
        try:
            reply = await turn.upstream.ask(path, body, ends, ask.beside(section.kind))
        finally:
            ask.upstream_s += time.perf_counter() - began
        await self._whole(ask, turn, send, reply)

    async def _whole(
        self, ask: Ask, turn: Turn, send: Send, reply: Reply, others: Sequence[str] = ()
    ) -> None:
        content, kind = reply.body, JSON
        ask.adapter = reply.adapter
        try:
            found = read_json(content)
        except (ValueError, RecursionError):
            found = None
        if reply.status >= 400:
            await self._refused(ask, turn, send, reply, found)
            return
        if not isinstance(found, dict) or not _is_answer(found):
            raise UpstreamFailed("garbage")
        often = turn.gate is not None and turn.gate.samples > 0
        if turn.gate is not None:
            self._sure.judge(turn.gate, ask, found, whole=True, others=others)
            own_logprobs(found, ask.own_alternatives)
            content = json_bytes(found)
        if often or translated(ask, turn.upstream.section.kind):
            if translated(ask, turn.upstream.section.kind):
                found = _translation(ask, found)
                content = json_bytes(found)
            if ask.streams:
                kind = EVENTS
                if ask.route == "messages":
                    content = anthropic_stream(found)
                else:
                    content = openai_stream(found, with_usage=ask.wants_usage)
        await respond(send, reply.status, self._headers(ask, turn.variant, kind), content)
        weight = raw_weight(reply.body)
        self._record(
            ask, turn.variant, turn.upstream, reply.status, found, error=None, weight=weight
        )

    async def _refused(self, ask: Ask, turn: Turn, send: Send, reply: Reply, found: object) -> None:
        """The upstream says that the request itself is at fault."""
        if turn.variant == "student" and (not turn.last or ask.fell_back is not None):
            # What is too much for the student may be well for the teacher, once it is there again.
            raise UpstreamFailed(f"refused_{reply.status}")
        error = found.get("error") if isinstance(found, dict) else None
        content = reply.body
        if not isinstance(error, dict) or translated(ask, turn.upstream.section.kind):
            told = error.get("message") if isinstance(error, dict) else None
            message = told if isinstance(told, str) else "The model refused the request."
            content = ApiError(reply.status, message).body(anthropic=ask.route == "messages")
        await respond(send, reply.status, self._headers(ask, turn.variant, JSON), content)
        why = f"refused_{reply.status}"
        self._record(ask, turn.variant, turn.upstream, reply.status, None, error=why)

    async def _stream(self, ask: Ask, turn: Turn, send: Send, stream: Stream) -> None:
        if stream.status >= 400:
            content = b"".join([piece async for piece in stream.pieces()])
            reply = Reply(stream.status, stream.content_type, content, stream.adapter)
            await self._whole(ask, turn, send, reply)
            return
        if stream.content_type != EVENTS.decode("ascii"):
            raise UpstreamFailed("garbage")
        ask.adapter = stream.adapter
        headers = self._headers(ask, turn.variant, EVENTS)
        headers.append((b"cache-control", b"no-cache"))
        hold: int | None = 0
        judge: Judge | None = None
        if turn.gate is not None:
            hold = turn.gate.window
            judge = partial(self._sure.judge, turn.gate)
        relay = Relay(ask, send, headers, hold)
        error = await relay.run(stream.pieces(), judge)
        join = joined_messages if ask.route == "messages" else joined
        answer, weight = join(relay.events), raw_weight(b"".join(relay.events))
        if judge is not None:
            ask.features.update(answer_features(answer))
        self._record(ask, turn.variant, turn.upstream, 200, answer, error=error, weight=weight)

    def _headers(self, ask: Ask, variant: Variant, kind: bytes) -> list[tuple[bytes, bytes]]:
        headers = base_headers(ask.id, kind, anthropic=ask.route == "messages")
        headers.append((b"x-stillhouse-variant", variant.encode("ascii")))
        if ask.fell_back is not None:
            headers.append((b"x-stillhouse-fallback", ask.fell_back.encode("ascii")))
        if variant == "student" and ask.adapter is not None:
            headers.append((b"x-stillhouse-adapter", ask.adapter.encode("ascii")))
        return headers

    def _record(
        self,
        ask: Ask,
        variant: Variant,
        upstream: Upstream,
        status: int,
        response: Mapping[str, Any] | None,
        *,
        error: str | None,
        shadow_of: str | None = None,
        weight: int = 0,
    ) -> None:
        if variant == "student" and ask.adapter is not None:
            used = "own" if ask.own_adapter else ask.adapter
            self._metrics.adapters.labels(ask.name, used).inc()
        teacher = self._upstream(ask, "teacher")
        went = Went(variant, upstream, teacher, status, error, shadow_of, weight)
        self._recorder.answered(ask, went, response)

    def _shadow_later(self, ask: Ask) -> None:
        running = self._shadows.setdefault(ask.name, set())
        if len(running) >= ask.task.shadows:
            self._metrics.shadows.labels(ask.name, "dropped").inc()
            return
        task = asyncio.create_task(self._shadow(ask))
        running.add(task)
        task.add_done_callback(running.discard)

    async def _shadow(self, ask: Ask) -> None:
        """Ask the student unseen; its answer goes to the log alone."""
        seen = ask.id
        body = {name: value for name, value in ask.body.items() if name != "stream"}
        body.pop("stream_options", None)
        shadow = Ask(
            id=f"{seen}-s",
            at=ask.at,
            started=time.perf_counter(),
            route=ask.route,
            name=ask.name,
            task=ask.task,
            body=body,
            tenant=ask.tenant,
            user=ask.user,
            conversation=ask.conversation,
            assignment=ask.assignment,
            weight=ask.weight,
            asker=ask.asker,
        )
        with self._roster.seated(shadow, beside=True) as seat:
            if seat is None:  # withdrawn meanwhile
                self._metrics.shadows.labels(ask.name, "dropped").inc()
            else:
                await self._ask_unseen(shadow, seen)

    async def _ask_unseen(self, shadow: Ask, seen: str) -> None:
        student = self._upstream(shadow, "student")
        kind = student.section.kind
        ends = asyncio.get_running_loop().time() + student.section.deadlines.total_s
        response: Mapping[str, Any] | None = None
        error: str | None = None
        status, weight = 200, 0
        plan = self._sure.plan(shadow, kind)
        others: Sequence[str] = ()
        try:
            if plan is not None:
                await self._sure.about(shadow)
            if plan is not None and plan.samples:
                reply, others = await self._sure.ask_often(shadow, student, plan, ends)
            else:
                wanted = 0 if plan is None else plan.alternatives
                sent = sent_body(shadow, kind, student.section.model, alternatives=wanted)
                reply = await student.ask(path_of(shadow, kind), sent, ends, shadow.beside(kind))
            status, shadow.adapter = reply.status, reply.adapter
            found = read_json(reply.body)
            if not isinstance(found, dict) or not _is_answer(found):
                raise ValueError("no answer")
            response, weight = found, raw_weight(reply.body)
            if plan is not None:
                try:
                    self._sure.judge(plan, shadow, found, whole=True, others=others)
                except Unsure:
                    if self._roster.threshold(shadow) is not None:
                        shadow.fell_back = "low-confidence"  # as it would have, were it seen
        except UpstreamFailed as failed:
            status, error = failed.status, failed.why
        except (ValueError, RecursionError, ApiError):
            status, error = 502, "garbage"
        self._metrics.shadows.labels(shadow.name, "failed" if error else "answered").inc()
        self._record(
            shadow,
            "student",
            student,
            status,
            response,
            error=error,
            shadow_of=seen,
            weight=weight,
        )


def _translation(ask: Ask, found: Mapping[str, Any]) -> dict[str, Any]:
    """An answer in the client's API.

    Raises:
        UpstreamFailed: it is no answer.
    """
    try:
        if ask.route == "messages":
            return anthropic_answer(found)
        return openai_answer(found, int(ask.at))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UpstreamFailed("garbage") from None


def _is_answer(found: Mapping[str, Any]) -> bool:
    """Whether a body is an answer of any of the APIs."""
    return any(
        isinstance(inner := found.get(name), list) and all(isinstance(one, dict) for one in inner)
        for name in ("choices", "data", "content")
    )
