"""What a student said, in the shapes of OpenAI's chat API: whole answers and events of streams.

Knows completions and pieces of text; no model, no process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from stillhouse.core.records import Completion, FinishReason, TokenLogprob
from stillhouse.core.tasks import schema_problem
from stillhouse.models.writing import Piece, Say, Stopper, Trimmer, Written
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.sse import DONE
from stillhouse.serve.student_frames import END, PIECE, answered, framed
from stillhouse.serve.student_requests import Asked

LEAST: Final = -9999.0  # what the API writes for an impossible token
Send = Callable[[bytes], None]


class Voice(NamedTuple):
    """What every answer of a student says of it."""

    model: str
    fingerprint: str

    def head(self, kind: str) -> dict[str, Any]:
        """The beginning of an answer, or of a chunk."""
        return {
            "id": f"chatcmpl-{os.urandom(12).hex()}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def refusal(number: int, error: ApiError) -> bytes:
    """A request that is not for this student, as a frame."""
    return answered(number, error.status, error.body())


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The API's usage."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def entry(one: TokenLogprob) -> dict[str, Any]:
    """A token with its log-probability (nats) and the alternatives."""
    return {
        **_token(one.token, one.logprob),
        "top_logprobs": [_token(token, value) for token, value in one.top],
    }


def label_logprob(completion: Completion, most: int) -> TokenLogprob:
    """A label as one token, with its class log-probability and up to `most` of all classes."""
    belief = completion.label_logprobs or {completion.text: 0.0}
    ranked = sorted(belief.items(), key=lambda one: -one[1])[:most]
    return TokenLogprob(token=completion.text, logprob=belief[completion.text], top=tuple(ranked))


def _sureness(completion: Completion, most: int) -> list[TokenLogprob]:
    """A label as one token, or the tags of the tokens that were read."""
    if completion.logprobs is None:
        return [label_logprob(completion, most)]
    return [one.model_copy(update={"top": one.top[:most]}) for one in completion.logprobs]


def label_answer(number: int, asked: Asked, completion: Completion, voice: Voice) -> bytes:
    """A label, or what was extracted, as frames: `n` times the same, since nothing is drawn."""
    text, finish = _cut(completion.text, asked.stop), "stop"
    logprobs = None
    if asked.logprobs is not None:
        logprobs = _logprobs([entry(one) for one in _sureness(completion, asked.logprobs)])
    tokens = completion.completion_tokens or 1
    usage = usage_of(completion.prompt_tokens or 0, asked.n * tokens)
    if not asked.streams:
        message = {"role": "assistant", "content": text, "refusal": None}
        choices = [
            {"index": i, "message": message, "logprobs": logprobs, "finish_reason": finish}
            for i in range(asked.n)
        ]
        return answered(
            number,
            200,
            _json({**voice.head("chat.completion"), "choices": choices, "usage": usage}),
        )
    head = voice.head("chat.completion.chunk")
    events = []
    for index in range(asked.n):
        delta = {"role": "assistant", "content": text}
        events.append(_event(head, _chunk(index, delta, logprobs)))
        events.append(_event(head, _chunk(index, {}, None, finish)))
    events += _end(head, usage if asked.wants_usage else None)
    return framed(PIECE, number, b"".join(events)) + framed(END, number)


class Answering:
    """One request that is being written: its answers' pieces, and what is sent of them.

    Args:
        send: takes frames; may be called from several threads.
        gone: whether nobody waits for it any more.
    """

    def __init__(
        self,
        number: int,
        asked: Asked,
        voice: Voice,
        send: Send,
        gone: Callable[[int], bool],
    ) -> None:
        self.number, self.asked = number, asked
        self._send, self._gone = send, gone
        self._kind = "chat.completion.chunk" if asked.streams else "chat.completion"
        self._head = voice.head(self._kind)
        self._parts = [_Part(asked.stop) for _ in range(asked.n)]
        self._left = asked.n
        self._failed = False

    def say(self, index: int) -> Say:
        """Takes the pieces of one of the answers."""
        part = self._parts[index]

        def say(piece: Piece) -> bool:
            if self._failed or self._gone(self.number):
                return False
            text = part.trimmer.feed(part.stopper.feed(piece.text))
            self._add(index, text, piece.logprobs)
            return not part.stopper.stopped

        return say

    def ended(self, index: int, written: Written) -> None:
        """One of the answers is written; the last of them ends the request."""
        part = self._parts[index]
        self._add(index, part.trimmer.feed(part.stopper.end()), ())
        part.written = written
        if part.stopper.stopped:
            part.written = written._replace(finish="stop")
        if self.asked.streams and not self._failed:
            chunk = _chunk(index, {}, None, part.written.finish)
            self._send(framed(PIECE, self.number, _event(self._head, chunk)))
        self._left -= 1
        if not self._left and not self._failed:
            self._finish()

    def fail(self, error: ApiError) -> None:
        """No answer; told once."""
        if not self._failed:
            self._failed = True
            self._send(refusal(self.number, error))

    def _add(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        part = self._parts[index]
        shown = [entry(one) for one in logprobs]
        if not self.asked.streams:
            part.texts.append(text)
            part.logprobs += shown
            return
        part.logprobs += shown
        if not text:  # its log-probabilities come with the text that they belong to
            return
        delta = {"content": text} if part.begun else {"role": "assistant", "content": text}
        part.begun = True
        told = None if self.asked.logprobs is None else _logprobs(part.logprobs)
        part.logprobs = []
        self._send(framed(PIECE, self.number, _event(self._head, _chunk(index, delta, told))))

    def _finish(self) -> None:
        ends = [part.written for part in self._parts]
        usage = usage_of(
            max(one.prompt_tokens for one in ends), sum(one.completion_tokens for one in ends)
        )
        if self.asked.streams:
            events = _end(self._head, usage if self.asked.wants_usage else None)
            self._send(framed(PIECE, self.number, b"".join(events)) + framed(END, self.number))
            return
        choices = []
        for index, part in enumerate(self._parts):
            text = "".join(part.texts)
            problem = self._schema_problem(text, part.written.finish)
            if problem is not None:
                self.fail(ApiError(422, f"The student's answer does not fit: {problem}."))
                return
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": None if self.asked.logprobs is None else _logprobs(part.logprobs),
                    "finish_reason": part.written.finish,
                }
            )
        body = _json({**self._head, "choices": choices, "usage": usage})
        self._send(answered(self.number, 200, body))

    def _schema_problem(self, text: str, finish: FinishReason) -> str | None:
        """Runtimes pass over what they do not know of a schema; a cut answer is the client's."""
        if self.asked.json_schema is None or finish != "stop":
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "it is not JSON"
        return schema_problem(value, self.asked.json_schema, "")


class _Part:
    """One of a request's answers."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.stopper, self.trimmer = Stopper(stop), Trimmer()
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.begun = False
        self.written = Written("stop", 0, 0)


def _cut(text: str, stops: Sequence[str]) -> str:
    stopper = Stopper(stops)
    return stopper.feed(text) + stopper.end()


def _token(token: str, logprob: float) -> dict[str, Any]:
    value = max(LEAST, min(0.0, logprob))
    return {"token": token, "logprob": value, "bytes": list(token.encode("utf-8", "replace"))}


def _logprobs(content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": content, "refusal": None}


def _chunk(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _event(head: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return b"data: " + _json({**head, "choices": [choice]}) + b"\n\n"


def _end(head: dict[str, Any], usage: dict[str, int] | None) -> list[bytes]:
    if usage is None:
        return [DONE]
    return [b"data: " + _json({**head, "choices": [], "usage": usage}) + b"\n\n", DONE]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
