"""A GGUF model as a completer, through llama.cpp in this process (xllamacpp).

llama.cpp batches the requests itself: each waiting query holds a thread of a small pool and a slot
of the engine. Its helper server (chat template, tokenizer) listens on the loopback interface only,
on a free port, behind a key made up at start. Knows llama.cpp's requests; imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import TeacherError, UnanswerableQueryError, UserError
from stillhouse.core.optional import require
from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
from stillhouse.core.runfolder import hash_file
from stillhouse.models.completer import Completer, ModelInfo, Sampling, draw_seed
from stillhouse.models.gguf_file import gguf_facts
from stillhouse.models.label_trie import Branch, branches, ended_sequences

ROUND: Final = 6  # decimals of log-probabilities on the wire
MOST_SLOTS: Final = 8
CONTEXT_PER_SLOT: Final = 2048  # tokens; slots share one pool, so one long prompt may take more
LABEL_BIAS: Final = 100.0  # lifts the allowed tokens over all others: softmax over them alone
LEAST_PROBABILITY: Final = 1e-38  # smallest normal float32
HELPER_TIMEOUT_S: Final = 60.0


def open_gguf(path: str, batch_size: int) -> Completer:
    """Load a GGUF file, ready to be asked.

    Raises:
        UserError: the file is missing, is not GGUF, or llama.cpp cannot load it.
        MissingExtraError: xllamacpp or gguf is not installed.
    """
    return GgufCompleter(Path(path).expanduser(), batch_size)


class GgufCompleter:
    """Answers from llama.cpp: label likelihoods, chat text, or JSON under a schema.

    A query closed to labels and asked once, greedily, is answered from label likelihoods under
    constrained decoding (`label_trie`); sampled answers are held to the labels by a grammar.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        facts = gguf_facts(path, f"gguf:{path}")
        self._engine = _Engine(path, min(batch_size, MOST_SLOTS))
        self._threads = ThreadPoolExecutor(min(batch_size, MOST_SLOTS), thread_name_prefix="gguf")
        self._end = facts.end_token
        self._tries: dict[
            tuple[str, ...], tuple[tuple[tuple[int, ...], ...], Sequence[Branch]]
        ] = {}
        self._info = ModelInfo(
            name=path.stem,
            revision=hash_file(path),
            parameters=facts.parameters,
            size_bytes=path.stat().st_size,
            gives_label_logprobs=True,
            gives_logprobs=True,
            local=True,
            notes={"head": "text", "engine": "llama.cpp", "architecture": facts.architecture},
        )

    @property
    def info(self) -> ModelInfo:
        """A local model with its likelihoods."""
        return self._info

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer one query; see `Completer`."""
        loop = asyncio.get_running_loop()
        if sampling.labels and sampling.n == 1 and sampling.sampling_temperature == 0:
            return [await loop.run_in_executor(self._threads, self._classify, query, sampling)]
        samples = [
            loop.run_in_executor(self._threads, self._chat, query, sampling, sample)
            for sample in range(sampling.n)
        ]
        return list(await asyncio.gather(*samples))

    async def aclose(self) -> None:
        """Stop the threads and free the model."""
        await asyncio.to_thread(self._threads.shutdown, wait=True)
        self._engine.close()

    def _chat(self, query: Query, sampling: Sampling, sample: int) -> Completion:
        request: dict[str, object] = {
            "messages": _turns(query),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.sampling_temperature,
            "seed": draw_seed(sampling.seed, query.id, sample),
            "top_k": 0,  # draws are from the model's own distribution, not a truncated one
            "top_p": 1.0,
            "min_p": 0.0,
        }
        if sampling.logprobs:
            request |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if sampling.labels:
            request["grammar"] = "root ::= " + " | ".join(
                json.dumps(label, ensure_ascii=False) for label in sampling.labels
            )
        elif sampling.json_schema is not None:
            schema = {"name": "answer", "schema": sampling.json_schema}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        answer = self._engine.chat(query.id, request)
        choice, usage = answer["choices"][0], answer["usage"]
        finish: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
        return Completion(
            query_id=query.id,
            text=(choice["message"].get("content") or "").strip(),
            model=self._info.name,
            revision=self._info.revision,
            sample=sample,
            finish_reason=finish,
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            logprobs=_logprobs(choice) if sampling.logprobs else None,
        )

    def _classify(self, query: Query, sampling: Sampling) -> Completion:
        labels = sampling.labels
        prompt = self._engine.prompt(query.id, _turns(query))
        if labels not in self._tries:
            self._tries[labels] = self._trie(labels, prompt)
        sequences, nodes = self._tries[labels]
        belief = dict.fromkeys(labels, 0.0)
        tokens = 0
        for node in nodes:
            answer = self._engine.complete(query.id, _choice_request(prompt, node))
            tokens = max(tokens, answer["usage"]["prompt_tokens"])
            log_p = _ways(answer, node.ways)
            for label, way in zip(labels, node.taken, strict=True):
                if way >= 0:
                    belief[label] += log_p[way]
        best = max(labels, key=lambda label: belief[label])
        return Completion(
            query_id=query.id,
            text=best,
            model=self._info.name,
            revision=self._info.revision,
            prompt_tokens=tokens,
            completion_tokens=len(sequences[labels.index(best)]),
            label_logprobs={label: round(value, ROUND) for label, value in belief.items()},
        )

    def _trie(
        self, labels: Sequence[str], prompt: str
    ) -> tuple[tuple[tuple[int, ...], ...], Sequence[Branch]]:
        before = self._engine.tokens(prompt)
        found = []
        for label in labels:
            whole = self._engine.tokens(prompt + label)
            joined = whole[: len(before)] == before and len(whole) > len(before)
            found.append(whole[len(before) :] if joined else self._engine.tokens(label))
        ends = [] if self._end is None else [self._end]
        sequences = ended_sequences(labels, found, ends)
        return sequences, branches(sequences)


class _Engine:
    """llama.cpp with one model: raw requests in, checked answers out. Calls block."""

    def __init__(self, path: Path, slots: int) -> None:
        library: Any = require("xllamacpp", "gguf", f"gguf:{path}")
        self._key = secrets.token_urlsafe(24)
        settings = library.CommonParams()
        settings.model.path = str(path)
        settings.n_parallel = slots
        settings.n_ctx = slots * CONTEXT_PER_SLOT
        settings.kv_unified = True
        settings.verbosity = -1
        settings.warmup = False
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

    def prompt(self, query_id: str, turns: Sequence[Mapping[str, str]]) -> str:
        """The chat as the model reads it, up to where its answer begins."""
        try:
            return str(self._helper("/apply-template", {"messages": turns})["prompt"])
        except (OSError, KeyError) as error:
            raise TeacherError(f"query {query_id}: the chat template failed ({error})") from None

    def tokens(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are read as such, none are added."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return list(self._helper("/tokenize", body)["tokens"])

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
        raise TeacherError(f"query {query_id}: llama.cpp refused the request: {error}") from None
    if "error" in answer:
        problem = answer["error"]
        message = problem.get("message", problem) if isinstance(problem, dict) else problem
        kind = UnanswerableQueryError if "context size" in str(message) else TeacherError
        raise kind(f"query {query_id}: llama.cpp: {message}")
    return answer


def _choice_request(prompt: str, node: Branch) -> dict[str, object]:
    """Ask for one token after prompt and path, out of the node's ways only."""
    return {
        "prompt": [prompt, *node.path] if node.path else prompt,
        "n_predict": 1,
        "temperature": 1.0,
        "samplers": ["temperature"],
        "n_probs": len(node.ways),
        "post_sampling_probs": True,  # the probabilities after the bias
        "logit_bias": [[token, LABEL_BIAS] for token in node.ways],
    }


def _ways(answer: Mapping[str, Any], ways: Sequence[int]) -> list[float]:
    """Log-probabilities of the ways, normalised over them, in nats."""
    top = answer["choices"][0]["logprobs"]["content"][0]["top_probs"]
    by_token = {int(entry["id"]): float(entry["prob"]) for entry in top}
    p = [max(by_token.get(token, 0.0), LEAST_PROBABILITY) for token in ways]
    total = math.fsum(p)
    return [math.log(value / total) for value in p]


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token=entry["token"],
            logprob=round(entry["logprob"], ROUND),
            top=tuple((o["token"], round(o["logprob"], ROUND)) for o in entry["top_logprobs"]),
        )
        for entry in (choice.get("logprobs") or {}).get("content") or ()
    )


def _turns(query: Query) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in query.messages]
