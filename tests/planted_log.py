"""A log with known tasks in it: several programs, one user base, four formats, personal data.

`write_logs` gives the files in the order in which they are to be read, and the planted task of each
request in that order, so that what mining finds can be held against what is there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 10.0
Turns = list[dict[str, str]]

_TOPICS = {
    "billing": "invoice charge refund payment card price subscription receipt euro fee",
    "bug": "crash error screen button freeze blank login page update slow",
    "account": "password email profile name delete username access locked verify settings",
    "other": "thanks question partnership press office hours visit job idea feedback",
}
TOPICS = {topic: text.split() for topic, text in _TOPICS.items()}
_FILLER = (
    "the my a this when after since today again please we they it was is has does not never always "
    "still very really about with from into over under before while team app phone order week"
)
FILLER = _FILLER.split()
_FRENCH = "bonjour merci maison voiture travail demain toujours jamais beaucoup encore"
FRENCH = _FRENCH.split()


class Planted(NamedTuple):
    """The files in reading order, and the task name of each request in that order."""

    files: list[Path]
    truth: list[str]


class Request(NamedTuple):
    """One planted request."""

    task: str
    messages: Turns
    answer: str
    model: str = "gpt-4.1"
    extra: dict[str, Any] = {}
    tool_call: bool = False


def words(rng: random.Random, low: int, high: int, topic: str | None = None) -> str:
    """A text of random length; half of its words are of the topic."""
    pool = TOPICS[topic] if topic else [word for topic in TOPICS.values() for word in topic]
    picked = [
        rng.choice(pool) if rng.random() < 0.5 else rng.choice(FILLER)
        for _ in range(rng.randint(low, high))
    ]
    text = " ".join(picked).capitalize() + rng.choice([".", "!", "?", ""])
    if rng.random() < 0.1:
        text += f" Write to {rng.choice(picked)}.{rng.randint(1, 999)}@example.org."
    if rng.random() < 0.05:
        text += f" Call +49 30 {rng.randint(100000, 999999)}."
    return text


def _routing(rng: random.Random) -> Request:
    topic = rng.choice(list(TOPICS))
    day = START + timedelta(days=rng.randint(0, 9))
    system = (
        f"You route support tickets. Today is {day:%A}, {day:%d %B %Y}. Reply with one word: "
        "billing, bug, account or other."
    )
    # A third begin alike, as people do: this is no template.
    hello = "Hello dear support team, I am writing because " if rng.random() < 0.3 else ""
    answer = topic if rng.random() > 0.01 else "I am not sure, it may be a bug."
    text = hello + words(rng, 8, 40, topic)
    return Request("routing", [_system(system), _user(text)], answer)


def _sentiment(rng: random.Random) -> Request:
    text = words(rng, 5, 40)
    prompt = f"Classify the sentiment of this review.\n\nReview: {text}\n\nSentiment:"
    label = rng.choice(["Positive", "Negative", "Neutral"])
    return Request("sentiment", [_user(prompt)], rng.choice([label, label, label.lower() + "."]))


def _summary(rng: random.Random) -> Request:
    text = " ".join(words(rng, 10, 20) for _ in range(6))
    prompt = f"Summarise the following article in one sentence:\n\n{text}"
    return Request("summary", [_user(prompt)], words(rng, 15, 30))


def _order(rng: random.Random) -> Request:
    number, product = (
        f"A-{rng.randint(10000, 99999)}",
        rng.choice(["lamp", "chair", "desk", "sofa"]),
    )
    system = "Extract the order from the customer's message as JSON. Use null for what is missing."
    text = f"{words(rng, 4, 20)} Order {number}, the {product}. {words(rng, 4, 20)}"
    found: dict[str, Any] = {
        "order_number": number,
        "product": product,
        "quantity": rng.choice([1, 2, 3, None]),
        "urgent": rng.random() < 0.2,
    }
    body = json.dumps(found)
    return Request(
        "order",
        [_system(system), _user(text)],
        body if rng.random() < 0.7 else f"```json\n{body}\n```",
    )


CONTACT_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": ["string", "null"]}, "city": {"type": ["string", "null"]}},
    "required": ["name", "city"],
    "additionalProperties": False,
}


def _contact(rng: random.Random) -> Request:
    # The program's prompt was reworded halfway: it is one task all the same.
    version = rng.choice(["as it stands in the signature", "as it stands in the signature block"])
    system = (
        "You read the signature of an e-mail and return the sender's name and city. Copy the name "
        f"{version}. Return null where the signature has none. Never guess a city."
    )
    city = rng.choice(["Lyon", "Porto", "Graz", "Turku"])
    text = f"{words(rng, 8, 30)}\n--\nA. {rng.choice(FILLER).capitalize()}\n{city}"
    answer = json.dumps({"name": f"A. {rng.choice(FILLER)}", "city": city})
    wanted = {"type": "json_schema", "json_schema": {"name": "contact", "schema": CONTACT_SCHEMA}}
    return Request(
        "contact", [_system(system), _user(text)], answer, extra={"response_format": wanted}
    )


ASSISTANT = "You are a helpful assistant."


def _french(rng: random.Random) -> Request:
    text = words(rng, 4, 20)
    answer = " ".join(rng.choice(FRENCH) for _ in text.split())
    return Request("french", [_system(ASSISTANT), _user(f"Translate to French: {text}")], answer)


def _moderation(rng: random.Random) -> Request:
    text = words(rng, 4, 30)
    prompt = f"Does the text below insult anyone?\nText: <<<{text}>>>\nAnswer yes or no."
    return Request(
        "moderation",
        [_system(ASSISTANT), _user(prompt)],
        rng.choice(["Yes", "No", "No", "No"]),
        model="gpt-4.1-mini",
    )


def _chat(rng: random.Random) -> Request:
    turns = [_system(ASSISTANT)]
    for _ in range(rng.randint(1, 3)):
        turns += [_user(words(rng, 3, 15)), {"role": "assistant", "content": words(rng, 20, 60)}]
    return Request("chat", [*turns, _user(words(rng, 3, 15))], words(rng, 60, 160))


def _agent(rng: random.Random) -> Request:
    tool = {"type": "function", "function": {"name": "search_orders", "parameters": {}}}
    turns = [_system("You are the shop's agent. Use the tools."), _user(words(rng, 5, 20))]
    return Request("agent", turns, "", extra={"tools": [tool]}, tool_call=True)


def _intent(rng: random.Random) -> Request:
    shots = []
    for text, label in (("where is my parcel", "track"), ("i want my money back", "refund")):
        shots += [_user(text), {"role": "assistant", "content": label}]
    label = rng.choice(["track", "refund", "cancel", "greet", "human"])
    turns = [_system("Name the intent."), *shots, _user(words(rng, 3, 12))]
    return Request("intent", turns, label)


def _ping(rng: random.Random) -> Request:
    return Request("ping", [_user("ping")], "pong", model="gpt-4.1-nano")


def _grounded(rng: random.Random) -> Request:
    document = " ".join(words(rng, 20, 40) for _ in range(3))
    system = f"Answer from the context alone, in one or two sentences.\n\nContext:\n{document}"
    turns = [_system(system), _user(words(rng, 5, 12))]
    return Request("grounded", turns, words(rng, 20, 50))


TASKS: dict[str, tuple[Callable[[random.Random], Request], float]] = {
    "routing": (_routing, 0.25),
    "sentiment": (_sentiment, 0.12),
    "summary": (_summary, 0.1),
    "order": (_order, 0.13),
    "contact": (_contact, 0.08),
    "french": (_french, 0.05),
    "moderation": (_moderation, 0.08),
    "chat": (_chat, 0.04),
    "agent": (_agent, 0.03),
    "intent": (_intent, 0.05),
    "ping": (_ping, 0.03),
    "grounded": (_grounded, 0.04),
}


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def requests(count: int, seed: int) -> list[Request]:
    """`count` requests; one in twenty of the closed tasks repeats an earlier input."""
    rng = random.Random(seed)
    names = list(TASKS)
    weights = [weight for _, weight in TASKS.values()]
    made: list[Request] = []
    earlier: dict[str, list[Request]] = {}
    for name in rng.choices(names, weights, k=count):
        request = TASKS[name][0](rng)
        known = earlier.setdefault(name, [])
        if known and name in ("sentiment", "moderation") and rng.random() < 0.05:
            old = rng.choice(known)
            request = old if rng.random() < 0.9 else request._replace(messages=old.messages)
        known.append(request)
        made.append(request)
    return made


def write_logs(folder: Path, count: int, seed: int = 0) -> Planted:
    """Write the requests into four files of four formats, in turn of formats at random."""
    rng = random.Random(seed + 1)
    rows: dict[str, list[tuple[str, Any]]] = {name: [] for name in WRITERS}
    for number, request in enumerate(requests(count, seed)):
        form = rng.choice(list(WRITERS))
        at = START + timedelta(days=DAYS * number / count)
        rows[form].append((request.task, WRITERS[form](request, number, at)))
    files, truth = [], []
    for form, listed in rows.items():
        truth += [task for task, _ in listed]
        if form == "langfuse":
            path = folder / f"{form}.json"
            body = ",\n".join(json.dumps(row) for _, row in listed)
            path.write_text(f"[\n{body}\n]\n", encoding="utf-8")
        else:
            path = folder / f"{form}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for _, row in listed), encoding="utf-8")
        files.append(path)
    return Planted(files, truth)


def _tokens(request: Request) -> tuple[int, int]:
    return sum(len(m["content"]) for m in request.messages) // 4 + 8, len(request.answer) // 4 + 1


def _message(request: Request) -> dict[str, Any]:
    if request.tool_call:
        call = {"name": "search_orders", "arguments": "{}"}
        calls = [{"id": "c", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    return {"role": "assistant", "content": request.answer}


def _bodies(request: Request, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    prompt, completion = _tokens(request)
    asked = {"model": request.model, "messages": request.messages, **request.extra}
    said = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "model": f"{request.model}-2025-04-14",
        "choices": [{"index": 0, "message": _message(request), "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }
    return asked, said


def _gateway(request: Request, number: int, at: datetime) -> dict[str, Any]:
    asked, said = _bodies(request, number)
    return {
        "log": "stillhouse",
        "id": f"req-{number}",
        "at": at.isoformat(),
        "user": f"user-{number % 700}",
        "model": f"openai:{request.model}",
        "request": asked,
        "response": said,
        "usage": said["usage"],
        "latency_ms": 400 + number % 300,
    }


def _openai(request: Request, number: int, at: datetime) -> dict[str, Any]:
    asked, said = _bodies(request, number)
    return {"request": asked, "response": {**said, "created": int(at.timestamp())}}


def _litellm(request: Request, number: int, at: datetime) -> dict[str, Any]:
    asked, said = _bodies(request, number)
    prompt, completion = _tokens(request)
    return {
        "request_id": f"req-{number}",
        "call_type": "acompletion",
        "spend": (prompt * 2.0 + completion * 8.0) / 1e6,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "startTime": at.isoformat(),
        "endTime": (at + timedelta(seconds=0.5)).isoformat(),
        "model": request.model,
        "custom_llm_provider": "openai",
        "end_user": f"user-{number % 700}",
        "messages": "{}",
        "response": json.dumps(said),
        "proxy_server_request": json.dumps(asked),
        "cache_hit": "False",
    }


def _langfuse(request: Request, number: int, at: datetime) -> dict[str, Any]:
    prompt, completion = _tokens(request)
    asked: Any = request.messages
    if request.extra.get("tools"):
        asked = {"messages": request.messages, "tools": request.extra["tools"]}
    return {
        "id": f"obs-{number}",
        "traceId": f"trace-{number}",
        "type": "GENERATION",
        "startTime": at.isoformat().replace("+00:00", "Z"),
        "endTime": (at + timedelta(seconds=0.7)).isoformat().replace("+00:00", "Z"),
        "model": request.model,
        "modelParameters": {
            k: json.dumps(v) for k, v in request.extra.items() if k == "response_format"
        },
        "input": asked,
        "output": _message(request),
        "usageDetails": {"input": prompt, "output": completion, "total": prompt + completion},
        "costDetails": {"total": (prompt * 2.0 + completion * 8.0) / 1e6},
        "userId": f"user-{number % 700}",
    }


WRITERS: dict[str, Callable[[Request, int, datetime], dict[str, Any]]] = {
    "gateway": _gateway,
    "openai": _openai,
    "litellm": _litellm,
    "langfuse": _langfuse,
}
