"""What a teacher is asked when it writes new inputs, and how its reply is read.

Three ways: more of the kind of several seeds (self-instruct, Wang et al. 2022), one seed changed by
an operation (evolve, Xu et al. 2023), or one seed's topic written by another person (persona, Ge et
al. 2024). A reply is JSON of one fixed shape or it is refused. Knows texts; asks nobody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from stillhouse.core.records import Message
from stillhouse.core.tasks import TEXT_SLOT, ClassificationTask, ExtractionTask, Task, json_value

Method = Literal["self_instruct", "evolve", "persona"]

SYSTEM: Final = (
    "You write realistic inputs that are used to test a system. You write inputs only; you never "
    "answer them. You reply with JSON only."
)
OPERATIONS: Final = (
    "add a detail or a condition that makes the right answer harder to find",
    "replace what is general by something specific: names, figures, places, dates",
    "change it so that the right answer takes more steps of reasoning",
    "make its form harder: longer, with remarks that do not matter, informal or with typing errors",
    "write about something rarer of the same domain, which such a system seldom sees",
)
PERSONS: Final = (
    "an expert of the field",
    "someone who is new to the topic",
    "someone in a hurry",
    "someone who is upset",
    "a person of another country, age and occupation",
)


class Reply(NamedTuple):
    """A reply that was read: new inputs, or the problem why there are none.

    `refused` are single inputs of a readable reply that cannot be used, with the reason's word.
    """

    inputs: tuple[str, ...]
    persona: str | None
    refused: tuple[tuple[str, str], ...]
    problem: str | None


def reply_schema(method: Method) -> dict[str, object]:
    """JSON Schema of a reply, in the form that structured-output APIs take."""
    properties: dict[str, object] = {"inputs": {"type": "array", "items": {"type": "string"}}}
    if method == "persona":
        properties = {"persona": {"type": "string"}, **properties}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def request_messages(
    task: Task, method: Method, seeds: Sequence[str], count: int, turn: int
) -> tuple[Message, ...]:
    """The chat that asks for `count` new inputs.

    Args:
        task: what the inputs are for.
        method: how they are made.
        seeds: real inputs; `evolve` and `persona` use the first.
        count: how many are asked for.
        turn: number of the request: picks the operation or the person.
    """
    # As JSON strings no seed can end its own quotation.
    quoted = [json.dumps(seed, ensure_ascii=False) for seed in seeds]
    shape = '{"inputs": ["...", "..."]}'
    if method == "self_instruct":
        body = (
            "Inputs that real users sent:\n" + "\n".join(quoted) + "\n\n"
            f"Write {count} new inputs of the same kind: in the same language, style and length, "
            "about other things and in other words. None may repeat another or one of those above."
        )
    elif method == "evolve":
        operation = OPERATIONS[turn % len(OPERATIONS)]
        body = (
            f"An input that a real user sent:\n{quoted[0]}\n\n"
            f"Write {count} new inputs from it. For each: {operation}. Keep the language, and let "
            "each be something that a user could really send. No two may be alike."
        )
    else:
        person = PERSONS[turn % len(PERSONS)]
        shape = '{"persona": "...", "inputs": ["...", "..."]}'
        body = (
            f"An input that a real user sent:\n{quoted[0]}\n\n"
            f"First imagine a person who could send such inputs: {person}. Describe the person in "
            f"one sentence. Then write {count} new inputs of the same kind as this person would, "
            "in the same language. No two may be alike."
        )
    text = f"{_about(task)}\n\n{body}\n\nReply with JSON only: {shape}"
    return (Message(role="system", content=SYSTEM), Message(role="user", content=text))


def read_reply(text: str, method: Method, seeds: Sequence[str], max_chars: int) -> Reply:
    """Read a reply strictly: one JSON object of the shape asked for, a code fence allowed."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```") and "\n" in stripped:
        stripped = stripped.partition("\n")[2].removesuffix("```")
    try:
        value = json_value(stripped)
    except ValueError:
        return _unreadable(f"not JSON: {text[:60]!r}")
    wanted = {"inputs", "persona"} if method == "persona" else {"inputs"}
    if not isinstance(value, Mapping) or set(value) != wanted:
        return _unreadable(f"not an object with the keys {', '.join(sorted(wanted))}")
    listed, persona = value["inputs"], value.get("persona")
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        return _unreadable("inputs is not a list of strings")
    if "persona" in wanted and not isinstance(persona, str):
        return _unreadable("persona is not a string")
    shown = {seed.strip() for seed in seeds}
    inputs: list[str] = []
    refused: list[tuple[str, str]] = []
    for item in map(str, listed):
        trimmed = item.strip()
        if not trimmed or trimmed == "...":
            refused.append((item, "empty"))
        elif len(trimmed) > max_chars:
            refused.append((item, "length"))
        elif trimmed in shown:
            refused.append((item, "seed"))
        else:
            inputs.append(trimmed)
    return Reply(tuple(inputs), str(persona) if persona is not None else None, tuple(refused), None)


def _unreadable(problem: str) -> Reply:
    return Reply((), None, (), problem)


def _about(task: Task) -> str:
    """What the inputs are for, without asking for the answer."""
    parts = ["A system gets inputs from its users."]
    if task.system:
        parts.append(f"Its instruction is: {json.dumps(task.system, ensure_ascii=False)}.")
    if task.prompt.strip() != TEXT_SLOT:
        around = task.prompt.replace(TEXT_SLOT, "[INPUT]")
        parts.append(f"Each input is put into: {json.dumps(around, ensure_ascii=False)}.")
    if isinstance(task, ClassificationTask):
        parts.append(
            f"It sorts them into: {', '.join(task.labels)}. New inputs should be of all these "
            "kinds, some of them hard to tell apart."
        )
    elif isinstance(task, ExtractionTask):
        fields = task.json_schema.get("properties")
        names = ", ".join(fields) if isinstance(fields, Mapping) else ""
        parts.append(f"It reads from them: {names}.")
    return " ".join(parts)
