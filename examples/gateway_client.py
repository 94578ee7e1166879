"""Ask through the gateway with the official openai client: only the base URL changes.

stillhouse serve gateway.yaml
python examples/gateway_client.py http://127.0.0.1:8080/v1 reviews
"""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

import openai


class Answers(NamedTuple):
    """One question, asked four ways; and who answered."""

    plain: str
    streamed: str
    awaited: str
    awaited_stream: str
    variant: str
    request_id: str


def ask(base_url: str, task: str, question: str, key: str = "none") -> Answers:
    """Ask a task's question: plain and streamed, blocking and awaited."""
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": question}
    ]
    with openai.OpenAI(base_url=base_url, api_key=key) as client:
        raw = client.chat.completions.with_raw_response.create(model=task, messages=messages)
        plain = raw.parse().choices[0].message.content or ""
        with client.chat.completions.create(model=task, messages=messages, stream=True) as stream:
            streamed = "".join(c.choices[0].delta.content or "" for c in stream)
    awaited, awaited_stream = asyncio.run(_await(base_url, task, messages, key))
    return Answers(
        plain,
        streamed,
        awaited,
        awaited_stream,
        raw.headers["x-stillhouse-variant"],
        raw.headers["x-request-id"],
    )


async def _await(
    base_url: str,
    task: str,
    messages: list[openai.types.chat.ChatCompletionMessageParam],
    key: str,
) -> tuple[str, str]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key) as client:
        answer = await client.chat.completions.create(model=task, messages=messages)
        parts: list[str] = []
        async with await client.chat.completions.create(
            model=task, messages=messages, stream=True
        ) as stream:
            async for chunk in stream:
                parts.append(chunk.choices[0].delta.content or "")
    return answer.choices[0].message.content or "", "".join(parts)


if __name__ == "__main__":
    for name, value in ask(sys.argv[1], sys.argv[2], "A gem of a film.")._asdict().items():
        print(f"{name}: {value}")
