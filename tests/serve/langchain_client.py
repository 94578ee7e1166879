"""LangChain's OpenAI client through the gateway: every feature once, each a line of the result.

python langchain_client.py BASE_URL KEY, with LANGCHAIN_FOLDER naming where it is installed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

# Behind this environment's own packages.
sys.path.append(os.environ["LANGCHAIN_FOLDER"])
os.environ |= {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}

import openai
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

TEXT = "good film"


class Label(BaseModel):
    """A review's label."""

    label: str


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sun in {city}"


async def awaited(model: Any) -> None:
    """The same, awaited and streamed."""
    assert (await model.ainvoke("hello")).content == TEXT
    pieces = [piece async for piece in model.astream("hello")]
    assert "".join(str(one.content) for one in pieces) == TEXT


def main(base_url: str, key: str) -> None:
    """All of them, in order."""
    at: dict[str, Any] = {"base_url": base_url, "api_key": key, "max_retries": 0}
    model = ChatOpenAI(model="t", **at)
    answer = model.invoke([("system", "Be brief."), ("user", "hello")])
    assert answer.content == TEXT
    assert answer.usage_metadata["total_tokens"] == 13
    print("plain")
    pieces = list(ChatOpenAI(model="t", stream_usage=True, **at).stream("hello"))
    assert "".join(str(one.content) for one in pieces) == TEXT
    assert sum((one.usage_metadata or {}).get("total_tokens", 0) for one in pieces) == 13
    print("streamed")
    asyncio.run(awaited(ChatOpenAI(model="t", **at)))
    print("awaited")
    [call] = model.bind_tools([weather]).invoke("hello").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
    print("tools")
    assert model.with_structured_output(Label).invoke("hello") == Label(label="fresh")
    print("schema")
    embeddings = OpenAIEmbeddings(model="t", check_embedding_ctx_length=False, **at)
    assert embeddings.embed_documents(["a", "b"]) == [[1.0, 2.0]] * 2
    print("embeddings")
    try:
        ChatOpenAI(model="other", **at).invoke("hello")
    except openai.NotFoundError as error:
        print("errors" if error.code == "model_not_found" else error.code)


if __name__ == "__main__":
    main(*sys.argv[1:3])
