"""A text student in a GGUF artefact as a completer: llama.cpp answers as transformers did.

Prompts are put together, cut and ended as `HfCompleter` does with `cuts`: what differs is the
arithmetic. Imports no torch. Knows the engine and the artefact's settings; does not know how the
file was written.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import Field

from stillhouse.core.artefact import Artefact, settings_as
from stillhouse.core.errors import TeacherError, UnanswerableQueryError
from stillhouse.core.records import Completion, FinishReason, Message, Query, Record
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.completer import ModelInfo, Sampling, draw_seed
from stillhouse.models.gguf_completer import MOST_SLOTS, ROUND, token_logprobs
from stillhouse.models.gguf_engine import CONTEXT_PER_SLOT, GgufEngine
from stillhouse.models.gguf_file import gguf_facts
from stillhouse.models.gguf_labels import read_labels
from stillhouse.models.gguf_threads import GgufAnswers
from stillhouse.models.label_trie import Branch, branches, ended_sequences
from stillhouse.models.writing import Piece, Say, Writing, Written

FIRST: Final = "a"  # stands for a query where labels are cut into tokens


class GgufSettings(Record):
    """What a GGUF artefact says of its file under `settings`.

    `positions` is the model's context, `max_tokens` the longest prompt it was trained on. `plain`
    students have no chat template: an answer follows after a space. `merges_system`: the template
    refuses system messages, which go to the head of the first user message. `composes`: text is
    composed (NFC) before it is cut.
    """

    file: str = Field(min_length=1)
    positions: int = Field(ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    ends: tuple[int, ...]
    plain: bool = False
    adds_special: bool = False
    merges_system: bool = False
    composes: bool = False


class _Labels(NamedTuple):
    sequences: tuple[tuple[int, ...], ...]
    nodes: Sequence[Branch]


def open_gguf_student(
    folder: Path,
    artefact: Artefact,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    batch_size: int,
) -> GgufStudent:
    """Open a verified GGUF artefact.

    Raises:
        UserError: its settings are damaged, or llama.cpp cannot load the file.
        MissingExtraError: xllamacpp or gguf is not installed.
    """
    settings = settings_as(GgufSettings, folder, artefact)
    return GgufStudent(folder, artefact, settings, task, batch_size)


class GgufStudent(GgufAnswers):
    """Answers from llama.cpp: label likelihoods, or text; see the module.

    An extraction is first written freely, as by the float student; where that is not what the
    schema asks for, it is written again under a grammar of the schema.
    """

    def __init__(
        self,
        folder: Path,
        artefact: Artefact,
        settings: GgufSettings,
        task: ClassificationTask | ExtractionTask | GenerationTask,
        batch_size: int,
    ) -> None:
        path = folder / settings.file
        facts = gguf_facts(path, str(path))
        self._settings, self._task = settings, task
        slots = min(batch_size, MOST_SLOTS)
        trained = min(settings.max_tokens or 0, settings.positions)
        context = min(settings.positions, max(CONTEXT_PER_SLOT, trained * 2))
        self._labels: dict[tuple[str, ...], _Labels] = {}
        info = ModelInfo(
            name=path.stem,
            revision=artefact.files[settings.file][:32],
            parameters=facts.parameters,
            size_bytes=artefact.size_bytes,
            gives_label_logprobs=True,
            gives_logprobs=True,
            local=True,
            notes={
                "head": "text",
                "engine": "llama.cpp",
                "architecture": facts.architecture,
                "precision": artefact.precision,
            },
        )
        super().__init__(GgufEngine(path, slots, context), slots, info)

    def _prompt(self, query_id: str, messages: Sequence[Message]) -> str:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if self._settings.merges_system:
            turns = merged_system(turns)
        try:
            text = self._engine.prompt(query_id, turns)
        except TeacherError as error:
            raise UnanswerableQueryError(str(error)) from None
        return unicodedata.normalize("NFC", text) if self._settings.composes else text

    def _ids(self, query: Query, answer_tokens: int, least: int) -> list[int]:
        """The prompt, cut from its head to what leaves room for the answer."""
        prompt = self._prompt(query.id, query.messages)
        ids = self._engine.tokens(prompt, self._settings.adds_special)
        positions = self._settings.positions
        trained = self._settings.max_tokens or positions
        if least:  # a closed answer, which is never shortened
            return ids[-max(1, min(trained, positions) - least) :]
        return ids[-max(1, min(trained - 1, positions - min(answer_tokens, positions // 2))) :]

    def _classify(self, query: Query, sampling: Sampling) -> Completion:
        labels = sampling.labels
        if labels not in self._labels:
            self._labels[labels] = self._read_labels(labels)
        sequences, nodes = self._labels[labels]
        prompt = self._ids(query, 0, max(map(len, sequences)))
        belief = read_labels(self._engine, query.id, prompt, labels, nodes).log_p
        best = max(labels, key=lambda label: belief[label])
        return Completion(
            query_id=query.id,
            text=best,
            model=self._info.name,
            revision=self._info.revision,
            prompt_tokens=len(prompt),
            completion_tokens=len(sequences[labels.index(best)]),
            label_logprobs={label: round(value, ROUND) for label, value in belief.items()},
        )

    def _read_labels(self, labels: tuple[str, ...]) -> _Labels:
        prompt = self._prompt("labels", [Message(role="user", content=FIRST)])
        before = self._engine.tokens(prompt)
        found = []
        for label in labels:
            text = f" {label}" if self._settings.plain else label
            whole = self._engine.tokens(prompt + text)
            joined = whole[: len(before)] == before and len(whole) > len(before)
            found.append(whole[len(before) :] if joined else self._engine.tokens(text))
        sequences = ended_sequences(labels, found, self._settings.ends)
        return _Labels(sequences, branches(sequences))

    def believe(self, query: Query, labels: tuple[str, ...]) -> Completion:
        """The likeliest label, with the belief over all; blocks.

        Raises:
            TeacherError: llama.cpp did not answer.
        """
        return self._classify(query, Sampling(labels=labels))

    def write(self, asked: Writing, say: Say) -> Written:
        """Write one answer, piece by piece, until `say` returns False; blocks. May be called from
        as many threads as there are slots.

        Raises:
            TeacherError: llama.cpp did not answer.
        """
        prompt = self._ids(asked.query, asked.max_tokens, 0)
        request = self._request(prompt, asked.max_tokens, asked.sampling_temperature, asked.seed)
        request |= {
            "top_p": asked.top_p,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
            "stream_options": {"include_usage": True},
        }
        if asked.logprobs is not None:
            request["n_probs"] = max(1, asked.logprobs)
        if asked.json_schema is not None:
            request["json_schema"] = dict(asked.json_schema)
        finish: FinishReason = "stop"
        count = 0

        def take(chunk: Mapping[str, Any]) -> bool:
            nonlocal finish, count
            choice: Mapping[str, Any] = (chunk.get("choices") or ({},))[0]
            if choice.get("finish_reason") == "length":
                finish = "length"
            usage = chunk.get("usage")
            if usage:
                count = int(usage["completion_tokens"])
            else:
                count += 1
            most = asked.logprobs or 0
            shown = [
                one.model_copy(update={"top": one.top[:most]}) for one in token_logprobs(choice)
            ]
            return say(Piece(str(choice.get("text") or ""), tuple(shown)))

        self._engine.stream(asked.query.id, request, take)
        return Written(finish, len(prompt), count)

    def _request(
        self, prompt: list[int], most: int, temperature: float, seed: int
    ) -> dict[str, object]:
        return {
            "prompt": prompt,
            "n_predict": max(1, min(most, self._settings.positions - len(prompt))),
            "temperature": temperature,
            "seed": seed,
            "top_k": 0,  # draws are from the model's own distribution, not a truncated one
            "top_p": 1.0,
            "min_p": 0.0,
        }

    def _write(self, query: Query, sampling: Sampling, sample: int) -> Completion:
        prompt = self._ids(query, sampling.max_tokens, 0)
        seed = draw_seed(sampling.seed, query.id, sample)
        request = self._request(prompt, sampling.max_tokens, sampling.sampling_temperature, seed)
        if sampling.logprobs:
            request["n_probs"] = sampling.logprobs
        choice, usage = self._ask(query.id, request)
        if (
            sampling.json_schema is not None
            and isinstance(self._task, ExtractionTask)
            and self._task.parse(choice["text"]).problem is not None
        ):
            schema = {"json_schema": dict(sampling.json_schema)}
            choice, usage = self._ask(query.id, request | schema)
        finish: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
        return Completion(
            query_id=query.id,
            text=str(choice["text"]).strip(),
            model=self._info.name,
            revision=self._info.revision,
            sample=sample,
            finish_reason=finish,
            prompt_tokens=len(prompt),
            completion_tokens=usage["completion_tokens"],
            logprobs=token_logprobs(choice) if sampling.logprobs else None,
        )

    def _ask(
        self, query_id: str, request: Mapping[str, object]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        answer = self._engine.complete(query_id, request)
        return answer["choices"][0], answer["usage"]


def merged_system(turns: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The chat with a first system message at the head of the message after it."""
    if len(turns) < 2 or turns[0]["role"] not in ("system", "developer"):
        return [dict(turn) for turn in turns]
    head, first, *rest = turns
    content = f"{head['content']}\n\n{first['content']}"
    return [{"role": first["role"], "content": content}, *map(dict, rest)]
