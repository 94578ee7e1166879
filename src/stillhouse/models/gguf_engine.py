"""llama.cpp with one GGUF model, in this process (xllamacpp): raw requests in, checked answers out.

Its helper server (chat template, tokenizer) listens on the loopback interface only, on a free port,
behind a key made up at start. Knows llama.cpp's requests, not queries or completions; imports no
torch. Calls block.
"""

from __future__ import annotations

import json
import os
import secrets
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError

from stillhouse.core.errors import TeacherError, UnanswerableQueryError, UserError
from stillhouse.core.optional import require

CONTEXT_PER_SLOT: Final = 2048  # tokens; slots share one pool, so one long prompt may take more
HELPER_TIMEOUT_S: Final = 60.0


class GgufEngine:
    """One loaded model.

    Args:
        path: the GGUF file.
        slots: requests answered at once.
        context: tokens that each slot brings to the pool they share.

    Raises:
        UserError: llama.cpp cannot load the file.
        MissingExtraError: xllamacpp is not installed.
    """

    def __init__(self, path: Path, slots: int, context: int = CONTEXT_PER_SLOT) -> None:
        library: Any = require("xllamacpp", "gguf", f"gguf:{path}")
        self._key = secrets.token_urlsafe(24)
        settings = library.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel = slots
        settings.n_ctx = slots * context
        settings.kv_unified = True
        settings.verbosity = -1
        settings.warmup = False
        threads = os.environ.get("OMP_NUM_THREADS", "")  # torch heeds it too
        if threads.isdigit() and int(threads):
            settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
        settings.api_keys = [self._key]
        settings.ui = settings.endpoint_slots = False
        try:
            self._server: Any = library.Server(settings)
        except RuntimeError:
            raise UserError(
                f"gguf:{path}",
                "llama.cpp cannot load this model",
                action="check that the file is whole and its architecture known to xllamacpp",
            ) from None
        self._at = str(self._server.listening_address)
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def chat(self, query_id: str, request: Mapping[str, object]) -> dict[str, Any]:
        """An answer in the chat API's form."""
        return _checked(query_id, self._server.handle_chat_completions, request)

    def complete(self, query_id: str, request: Mapping[str, object]) -> dict[str, Any]:
        """An answer in the completion API's form."""
        return _checked(query_id, self._server.handle_completions, request)

    def stream(
        self,
        query_id: str,
        request: Mapping[str, object],
        take: Callable[[Mapping[str, Any]], bool],
    ) -> None:
        """An answer in the completion API's form, chunk by chunk, until `take` returns False.

        Raises:
            TeacherError: llama.cpp refused the request, or broke off.
        """
        problems: list[Exception] = []

        def heard(chunk: dict[str, Any]) -> bool:
            try:
                _raise_error(query_id, chunk)
                return not take(chunk)
            except Exception as error:  # the library would pass over it
                problems.append(error)
                return True

        try:
            self._server.handle_completions({**request, "stream": True}, heard)
        except (ValueError, RuntimeError) as error:
            raise _refusal(query_id, error) from None
        if problems:
            raise problems[0]

    def prompt(self, query_id: str, turns: Sequence[Mapping[str, str]]) -> str:
        """The chat as the model reads it, up to where its answer begins."""
        try:
            return str(self._helper("/apply-template", {"messages": turns})["prompt"])
        except (OSError, KeyError) as error:
            if isinstance(error, HTTPError):
                error.close()
            raise TeacherError(f"query {query_id}: the chat template failed ({error})") from None

    def tokens(self, text: str, add_special: bool = False) -> list[int]:
        """Token ids; special tokens in the text are read as such.

        With `add_special` come those that the file says go around a text.
        """
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._helper("/tokenize", body)["tokens"])

    @cached_property
    def letter(self) -> int:
        """A token that is one whole character and ends nothing."""
        return self.tokens("a")[-1]

    def close(self) -> None:
        """Free the model."""
        self._server = None

    def _helper(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._at + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"},
        )
        with self._http.open(request, timeout=HELPER_TIMEOUT_S) as response:
            answer: dict[str, Any] = json.loads(response.read())
        return answer


def _checked(query_id: str, ask: Any, request: Mapping[str, object]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = ask(dict(request))
    except (ValueError, RuntimeError) as error:
        raise _refusal(query_id, error) from None
    _raise_error(query_id, answer)
    return answer


def _refusal(query_id: str, error: Exception) -> TeacherError:
    return TeacherError(f"query {query_id}: llama.cpp refused the request: {error}")


def _raise_error(query_id: str, answer: Mapping[str, Any]) -> None:
    if "error" in answer:
        problem = answer["error"]
        message = problem.get("message", problem) if isinstance(problem, dict) else problem
        kind = UnanswerableQueryError if "context size" in str(message) else TeacherError
        raise kind(f"query {query_id}: llama.cpp: {message}")
