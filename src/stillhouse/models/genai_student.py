"""A text student in an onnxruntime-genai artefact as a completer: it answers as `HfCompleter` does.

Prompts are put together, cut and ended in the same way, by the same tokenizer; label likelihoods
go over the same trie. One query at a time. `json_schema` is not enforced: the task's check rejects
what does not fit. Imports no torch. Knows the engine and the artefact's settings.

Shapes: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pydantic import Field
from transformers import AutoTokenizer

from stillhouse.core.artefact import Artefact, settings_as
from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, FinishReason, Message, Query, Record, TokenLogprob
from stillhouse.models.batching import Answer, BatchingCompleter, Call
from stillhouse.models.chat import answer_ids, each_prompt_ids, prompt_text
from stillhouse.models.completer import ModelInfo, Sampling, draw_seed
from stillhouse.models.genai_engine import Floats, GenaiEngine, Reading, log_softmax
from stillhouse.models.label_trie import Branch, branches, ended_sequences
from stillhouse.models.quiet import quiet_transformers

ROUND: Final = 6  # decimals of log-probabilities on the wire


class GenaiSettings(Record):
    """What a genai artefact says of its files under `settings`: `positions` is the model's context,
    `max_tokens` the longest prompt it was trained on, `ends` are the tokens that end an answer."""

    parameters: int = Field(ge=1)
    positions: int = Field(ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    ends: tuple[int, ...]


class _Labels(NamedTuple):
    sequences: tuple[tuple[int, ...], ...]
    nodes: Sequence[Branch]


def open_genai_student(folder: Path, artefact: Artefact) -> GenaiStudent:
    """Open a verified artefact of kind `genai`.

    Raises:
        UserError: its settings are damaged, or onnxruntime-genai cannot load it.
    """
    settings = settings_as(GenaiSettings, folder, artefact)
    return GenaiStudent(folder, artefact, settings)


class GenaiStudent(BatchingCompleter):
    """Answers from onnxruntime-genai: label likelihoods, or text; see the module."""

    def __init__(self, folder: Path, artefact: Artefact, settings: GenaiSettings) -> None:
        super().__init__(1)
        with quiet_transformers():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Of its own: a fast tokenizer must not be used by two threads at a time.
        self._measuring = copy.deepcopy(self._tokenizer)
        self._engine, self._settings = GenaiEngine(folder), settings
        self._labels: dict[tuple[str, ...], _Labels] = {}
        self._info = ModelInfo(
            name=artefact.made_from.name or folder.name,
            revision=artefact.made_from.student[:24] + artefact.files["model.onnx"][:8],
            parameters=settings.parameters,
            size_bytes=artefact.size_bytes,
            gives_label_logprobs=True,
            gives_logprobs=True,
            local=True,
            takes_seed=True,
            notes={
                "head": "text",
                "device": "cpu",
                "dtype": artefact.precision,
                "runtime": "onnxruntime-genai",
            },
        )

    @property
    def info(self) -> ModelInfo:
        """A local model with all its likelihoods."""
        return self._info

    def length_of(self, query: Query) -> int:
        """Tokens of the prompt; characters where there is none."""
        prompt = each_prompt_ids(self._measuring, [query.messages])[0]
        return super().length_of(query) if isinstance(prompt, UserError) else len(prompt)

    def run_batch(self, calls: Sequence[Call]) -> Sequence[Answer]:
        """Answer one after the other."""
        return [self._answer(call) for call in calls]

    def _answer(self, call: Call) -> Answer:
        query, sampling = call
        prompt = each_prompt_ids(self._tokenizer, [query.messages])[0]
        if isinstance(prompt, UserError):
            return UnanswerableQueryError(f"query {query.id}: {prompt}")
        closed = bool(sampling.labels) and sampling.n == 1 and sampling.sampling_temperature == 0
        if closed:
            return [self._classify(query, prompt, sampling.labels)]
        return [self._write(query, prompt, sampling, sample) for sample in range(sampling.n)]

    def _classify(self, query: Query, prompt: list[int], labels: tuple[str, ...]) -> Completion:
        if labels not in self._labels:
            before = prompt_text(self._tokenizer, [Message(role="user", content="x")])
            found = [answer_ids(self._tokenizer, label, before) for label in labels]
            sequences = ended_sequences(labels, found, self._settings.ends)
            self._labels[labels] = _Labels(sequences, branches(sequences))
        sequences, nodes = self._labels[labels]
        longest = max(map(len, sequences))
        prompt = prompt[-max(1, min(self._trained, self._settings.positions) - longest) :]
        reading, belief = self._engine.read(prompt, longest), [0.0] * len(labels)
        for node in nodes:
            if node.path:
                reading.back_to(len(prompt))
                reading.add(node.path)
            log_p = log_softmax(reading.logits[list(node.ways)])
            for label, way in enumerate(node.taken):
                belief[label] += float(log_p[way]) if way >= 0 else 0.0
        best = int(np.argmax(belief))
        return Completion(
            query_id=query.id,
            text=labels[best],
            model=self._info.name,
            revision=self._info.revision,
            prompt_tokens=len(prompt),
            completion_tokens=len(sequences[best]),
            label_logprobs={
                label: round(value, ROUND) for label, value in zip(labels, belief, strict=True)
            },
        )

    @property
    def _trained(self) -> int:
        return self._settings.max_tokens or self._settings.positions

    def _write(
        self, query: Query, prompt: list[int], sampling: Sampling, sample: int
    ) -> Completion:
        positions = self._settings.positions
        answer = min(sampling.max_tokens, positions // 2)
        prompt = prompt[-max(1, min(self._trained - 1, positions - answer)) :]
        room = max(1, min(sampling.max_tokens, positions - len(prompt)))
        draw = np.random.default_rng(draw_seed(sampling.seed, query.id, sample))
        reading = self._engine.read(prompt, room)
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        finish: FinishReason = "length"
        while True:
            token = _chosen(reading, sampling.sampling_temperature, draw)
            tokens.append(token)
            if sampling.logprobs:
                logprobs.append(self._logprob(reading.logits, token, sampling.logprobs))
            if token in self._settings.ends:
                finish = "stop"
            if finish == "stop" or len(tokens) == room:
                break
            reading.add([token])
        return Completion(
            query_id=query.id,
            text=self._tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            model=self._info.name,
            revision=self._info.revision,
            sample=sample,
            finish_reason=finish,
            prompt_tokens=len(prompt),
            completion_tokens=len(tokens),
            logprobs=tuple(logprobs) if sampling.logprobs else None,
        )

    def _logprob(self, logits: Floats, token: int, top: int) -> TokenLogprob:
        log_p, name = log_softmax(logits), self._tokenizer.decode
        best = np.argsort(-log_p, kind="stable")[:top]
        return TokenLogprob(
            token=name([token]),
            logprob=round(float(log_p[token]), ROUND),
            top=tuple((name([int(i)]), round(float(log_p[i]), ROUND)) for i in best),
        )


def _chosen(reading: Reading, sampling_temperature: float, draw: np.random.Generator) -> int:
    if sampling_temperature == 0:
        return int(reading.logits.argmax())
    p = np.exp(log_softmax(reading.logits / sampling_temperature))
    return int(draw.choice(len(p), p=p / p.sum()))
