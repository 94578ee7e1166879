"""Ask through the gateway with LangChain (pip install langchain-openai): only the URL changes.

stillhouse serve gateway.yaml
python examples/gateway_langchain.py http://127.0.0.1:8080/v1 reviews
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from gateway_client import served_alone
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

# LangChain sends nothing to its makers unless it is told to.
os.environ.setdefault("LANGSMITH_TRACING", "false")


class Answers(NamedTuple):
    """One question, asked three ways."""

    plain: str
    streamed: str
    batched: str


def ask(base_url: str, task: str, question: str, key: str = "none") -> Answers:
    """Ask a task's question, as a chain would."""
    headers = {"x-stillhouse-user": "ann"}  # whom the experiment sticks to
    model = ChatOpenAI(model=task, base_url=base_url, api_key=key, default_headers=headers)  # type: ignore[arg-type]
    messages = [SystemMessage("Say whether the review is good or bad."), HumanMessage(question)]
    return Answers(
        plain=str(model.invoke(messages).content),
        streamed="".join(str(piece.content) for piece in model.stream(messages)),
        batched=", ".join(str(one.content) for one in model.batch([messages, messages])),
    )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        answers = ask(sys.argv[1], sys.argv[2], "A gem of a film.")
    else:
        answers = served_alone(ask)
    for name, value in answers._asdict().items():
        print(f"{name}: {value}")
