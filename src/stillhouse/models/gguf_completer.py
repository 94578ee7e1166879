"""A GGUF model as a completer, through llama.cpp in this process (xllamacpp).

llama.cpp batches the requests itself: each waiting query holds a thread of a small pool and a slot
of the engine (`gguf_engine`). Knows llama.cpp's requests; imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
from stillhouse.core.stage_files import hash_file
from stillhouse.models.completer import Completer, ModelInfo, Sampling, draw_seed
from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.gguf_file import gguf_facts
from stillhouse.models.gguf_labels import read_labels
from stillhouse.models.gguf_threads import GgufAnswers
from stillhouse.models.label_trie import Branch, branches, ended_sequences

ROUND: Final = 6  # decimals of log-probabilities on the wire
MOST_SLOTS: Final = 8


def open_gguf(path: str, batch_size: int) -> Completer:
    """Load a GGUF file, ready to be asked.

    Raises:
        UserError: the file is missing, is not GGUF, or llama.cpp cannot load it.
        MissingExtraError: xllamacpp or gguf is not installed.
    """
    return GgufCompleter(Path(path).expanduser(), batch_size)


class GgufCompleter(GgufAnswers):
    """Answers from llama.cpp: label likelihoods, chat text, or JSON under a schema.

    A query closed to labels and asked once, greedily, is answered from label likelihoods under
    constrained decoding (`label_trie`); sampled answers are held to the labels by a grammar.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        facts = gguf_facts(path, f"gguf:{path}")
        slots = min(batch_size, MOST_SLOTS)
        self._end = facts.end_token
        self._tries: dict[
            tuple[str, ...], tuple[tuple[tuple[int, ...], ...], Sequence[Branch]]
        ] = {}
        info = ModelInfo(
            name=path.stem,
            revision=hash_file(path),
            parameters=facts.parameters,
            size_bytes=path.stat().st_size,
            gives_label_logprobs=True,
            gives_logprobs=True,
            local=True,
            notes={"head": "text", "engine": "llama.cpp", "architecture": facts.architecture},
        )
        super().__init__(GgufEngine(path, slots), slots, info)

    def _write(self, query: Query, sampling: Sampling, sample: int) -> Completion:
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
            logprobs=token_logprobs(choice) if sampling.logprobs else None,
        )

    def _classify(self, query: Query, sampling: Sampling) -> Completion:
        labels = sampling.labels
        prompt = self._engine.prompt(query.id, _turns(query))
        if labels not in self._tries:
            self._tries[labels] = self._trie(labels, prompt)
        sequences, nodes = self._tries[labels]
        belief, tokens = read_labels(self._engine, query.id, prompt, labels, nodes)
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


def token_logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    """What an answer of llama.cpp says of its tokens."""
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
