"""Chats with a student that is one GGUF file; needs xllamacpp alone.

    python chat.py student.gguf                         # a chat; an empty line ends it
    python chat.py student.gguf "a gripping film"       # one answer to each text
    python chat.py student.gguf --prompt "{text}\\nJSON:" < texts.txt    # a text a line, each alone

Weights, tokenizer and chat template are in the file. Answers are the likeliest, token by token,
and are written as they come. `--prompt` is the recipe's task.prompt, which a student of one task
expects around each text.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import xllamacpp


class Student:
    """One loaded file."""

    def __init__(self, path: str, context: int = 2048) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = path
        settings.n_parallel = 1
        settings.n_ctx = context
        settings.verbosity = -1
        settings.ui = settings.endpoint_slots = False
        threads = os.environ.get("OMP_NUM_THREADS", "")
        if threads.isdigit() and int(threads):
            settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
        if not os.path.isfile(path):
            raise SystemExit(f"{path}: there is no such file")
        try:
            self._server: Any = xllamacpp.Server(settings)
        except RuntimeError as error:
            raise SystemExit(f"{path}: llama.cpp cannot load it: {error}") from None

    def answer(
        self,
        turns: Sequence[dict[str, str]],
        max_tokens: int,
        say: Callable[[str], object] = lambda _: None,
    ) -> str:
        """The next answer of a chat; `say` is given each piece of it as it comes."""
        parts: list[str] = []
        faults: list[object] = []

        def take(chunk: dict[str, Any]) -> None:
            if "error" in chunk:
                faults.append(chunk["error"])
            for choice in chunk.get("choices", ()):
                piece = choice["delta"].get("content")
                if piece:
                    parts.append(piece)
                    say(piece)

        request = {
            "messages": list(turns),
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
        }
        self._server.handle_chat_completions(request, take)
        if faults:
            fault = faults[0]
            said = fault.get("message", fault) if isinstance(fault, dict) else fault
            raise SystemExit(f"llama.cpp: {said}")
        return "".join(parts)


def main(arguments: Sequence[str]) -> None:
    """One answer a text, or a chat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--prompt", default="{text}")
    parser.add_argument("--max-tokens", type=int, default=256)
    asked = parser.parse_intermixed_args(arguments)
    template = asked.prompt.replace("\\n", "\n")
    if "{text}" not in template:
        raise SystemExit("--prompt: must hold {text}")
    student = Student(asked.file)

    def show(turns: Sequence[dict[str, str]]) -> str:
        said = student.answer(
            turns, asked.max_tokens, lambda piece: print(piece, end="", flush=True)
        )
        print(flush=True)
        return said

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": template.replace("{text}", text)}

    if asked.texts or not sys.stdin.isatty():
        for text in asked.texts or (line.rstrip("\n") for line in sys.stdin):
            show([user(text)])
        return
    turns: list[dict[str, str]] = []
    while text := _line():
        turns.append(user(text))
        turns.append({"role": "assistant", "content": show(turns)})


def _write(piece: str) -> None:
    print(piece, end="", flush=True)


def _line() -> str:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main(sys.argv[1:])
