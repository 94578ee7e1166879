"""A language model in this process as a completer: label likelihoods, or generated text.

Knows causal language models of transformers; does not know whether it is teacher or student.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
from stillhouse.models.batching import Answer, BatchingCompleter, Call
from stillhouse.models.chat import each_prompt_ids, end_ids
from stillhouse.models.completer import Completer, ModelInfo, Sampling, draw_seed
from stillhouse.models.hf_classifier import ClassifierTeacher
from stillhouse.models.label_likelihood import LabelScorer
from stillhouse.models.loading import Loaded, holds_classifier, load_causal_lm, load_classifier
from stillhouse.models.quiet import quiet_transformers
from stillhouse.models.seeded_sampling import SeededSampler, Step

ROUND = 6  # decimals of log-probabilities on the wire


class Kind(NamedTuple):
    """Calls that may share a batch: equal in all but seed and query."""

    labels: tuple[str, ...]
    n: int
    max_tokens: int
    sampling_temperature: float
    logprobs: int


def open_hf_teacher(
    source: str, batch_size: int, device: str = "auto", *, plain: bool = False
) -> Completer:
    """Load `embedded`, `hf:ID_OR_PATH` or a folder, ready to be asked.

    A sequence classifier reads the last user message as it is (`ClassifierTeacher`); all else is a
    language model. `plain` asks that without the chat template; see `load_causal_lm`.

    Raises:
        UserError: it cannot be loaded.
    """
    if holds_classifier(source):
        return ClassifierTeacher(load_classifier(source, device=device), batch_size)
    return HfCompleter(load_causal_lm(source, device=device, plain=plain), batch_size)


class HfCompleter(BatchingCompleter):
    """Answers from a causal language model of transformers.

    A query closed to labels and asked once, greedily, is answered from label likelihoods: the text
    is the likeliest label. All else is generated; a draw depends on seed, query id and sample, not
    on the batch. `json_schema` is not enforced: the task's check rejects what does not fit.

    A prompt that does not fit fails alone. With `cuts` it loses its head instead, as it did in a
    student's training (`train.batches.encode_chats`): no prompt is longer than the tokenizer's
    `model_max_length` less one token of the answer.
    """

    def __init__(self, loaded: Loaded, batch_size: int, *, cuts: bool = False) -> None:
        super().__init__(batch_size)
        self._loaded, self._cuts = loaded, cuts
        # Of its own: a fast tokenizer must not be used by two threads at a time.
        self._measuring = copy.deepcopy(loaded.tokenizer)
        self._scorers: dict[tuple[str, ...], LabelScorer] = {}
        self._ends = end_ids(loaded.tokenizer, loaded.model)

    @property
    def info(self) -> ModelInfo:
        """A local model with all its likelihoods."""
        return self._loaded.info("text")

    def length_of(self, query: Query) -> int:
        """Tokens of the prompt; characters where there is none."""
        prompt = each_prompt_ids(self._measuring, [query.messages])[0]
        return super().length_of(query) if isinstance(prompt, UserError) else len(prompt)

    def run_batch(self, calls: Sequence[Call]) -> Sequence[Answer]:
        """Answer a batch, each kind of call in one go."""
        chats = [call.query.messages for call in calls]
        prompts: list[list[int]] = [[] for _ in calls]
        answers: list[Answer] = [()] * len(calls)
        groups: dict[Kind, list[int]] = {}
        for index, prompt in enumerate(each_prompt_ids(self._loaded.tokenizer, chats)):
            name, kind = calls[index].query.id, kind_of(calls[index].sampling)
            if isinstance(prompt, UserError):
                answers[index] = UnanswerableQueryError(f"query {name}: {prompt}")
                continue
            if self._cuts:
                prompt = prompt[-self._room(kind) :]
            problem = self._too_long(prompt, kind)
            if problem is not None:
                answers[index] = UnanswerableQueryError(f"query {name}: {problem}")
            else:
                prompts[index] = prompt
                groups.setdefault(kind, []).append(index)
        for kind, members in groups.items():
            run = self._classify if _closed(kind) else self._generate
            chosen = run(kind, [calls[i] for i in members], [prompts[i] for i in members])
            for index, answer in zip(members, chosen, strict=True):
                answers[index] = answer
        return answers

    def _positions(self) -> int | None:
        limit: int | None = getattr(self._loaded.model.config, "max_position_embeddings", None)
        return limit

    def _room(self, kind: Kind) -> int:
        """Most prompt tokens of a model that cuts: what leaves room for the answer.

        A long answer takes at most half of the model's positions; `_longest_answer` is what is then
        left for it. Depends on the kind of call only, never on what shares its batch.
        """
        trained = int(self._loaded.tokenizer.model_max_length)
        positions = self._positions() or trained
        if _closed(kind):
            longest = max(len(sequence) for sequence in self._scorer(kind.labels).sequences)
            return max(1, min(trained, positions) - longest)
        return max(1, min(trained - 1, positions - min(kind.max_tokens, positions // 2)))

    def _longest_answer(self, kind: Kind) -> int:
        positions = self._positions()
        if positions is None or not self._cuts:
            return kind.max_tokens
        return max(1, min(kind.max_tokens, positions - self._room(kind)))

    def _too_long(self, prompt: Sequence[int], kind: Kind) -> str | None:
        limit = self._positions()
        room = 1 if _closed(kind) else self._longest_answer(kind)
        if limit is None or len(prompt) + room <= limit:
            return None
        return f"{len(prompt)} prompt tokens and {room} to answer exceed the model's {limit}"

    def _scorer(self, labels: tuple[str, ...]) -> LabelScorer:
        if labels not in self._scorers:
            self._scorers[labels] = LabelScorer(self._loaded.model, self._loaded.tokenizer, labels)
        return self._scorers[labels]

    def _classify(
        self, kind: Kind, calls: Sequence[Call], prompts: list[list[int]]
    ) -> list[Sequence[Completion]]:
        scorer = self._scorer(kind.labels)
        log_p = scorer.score_ids(prompts)  # [B, C]
        best, rows = log_p.argmax(-1).tolist(), log_p.tolist()
        return [
            [
                Completion(
                    query_id=call.query.id,
                    text=kind.labels[best[i]],
                    model=self._loaded.name,
                    revision=self._loaded.revision,
                    prompt_tokens=len(prompts[i]),
                    completion_tokens=len(scorer.sequences[best[i]]),
                    label_logprobs={
                        label: round(value, ROUND)
                        for label, value in zip(kind.labels, rows[i], strict=True)
                    },
                )
            ]
            for i, call in enumerate(calls)
        ]

    @torch.inference_mode()
    def _generate(
        self, kind: Kind, calls: Sequence[Call], prompts: list[list[int]]
    ) -> list[Sequence[Completion]]:
        rows = [(i, sample) for i in range(len(calls)) for sample in range(kind.n)]
        sampler = SeededSampler(
            [draw_seed(calls[i].sampling.seed, calls[i].query.id, sample) for i, sample in rows],
            kind.sampling_temperature,
            kind.logprobs if kind.logprobs else None,
        )
        tokens = self._decode(kind, [prompts[i] for i, _ in rows], sampler)
        answers: list[list[Completion]] = [[] for _ in calls]
        for row, (i, sample) in enumerate(rows):
            count, finish = self._ending(tokens[row])
            answers[i].append(
                Completion(
                    query_id=calls[i].query.id,
                    text=self._text(tokens[row][:count]),
                    model=self._loaded.name,
                    revision=self._loaded.revision,
                    sample=sample,
                    finish_reason=finish,
                    prompt_tokens=len(prompts[i]),
                    completion_tokens=count,
                    logprobs=self._logprobs(sampler.steps, tokens[row][:count], row)
                    if kind.logprobs
                    else None,
                )
            )
        return list(answers)

    def _decode(
        self, kind: Kind, prompts: Sequence[Sequence[int]], sampler: SeededSampler
    ) -> list[list[int]]:
        """New tokens of each row, from left-padded prompts."""
        model, pad = self._loaded.model, self._loaded.tokenizer.pad_token_id or 0
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[*[pad] * (longest - len(p)), *p] for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self._longest_answer(kind),
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=self._ends or None,
        )
        with quiet_transformers():
            out: Tensor = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([sampler]),
            )
        new: list[list[int]] = out[:, longest:].tolist()
        return new

    def _ending(self, tokens: Sequence[int]) -> tuple[int, FinishReason]:
        """Number of tokens up to and with the end token, and why it ended."""
        for index, token in enumerate(tokens):
            if token in self._ends:
                return index + 1, "stop"
        return len(tokens), "length"

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self._loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        return text.strip()

    def _logprobs(
        self, steps: Sequence[Step], tokens: Sequence[int], row: int
    ) -> tuple[TokenLogprob, ...]:
        name = self._loaded.tokenizer.decode
        return tuple(
            TokenLogprob(
                token=name([token]),
                logprob=round(float(step.chosen[row]), ROUND),
                top=tuple(
                    (name([int(other)]), round(float(value), ROUND))
                    for other, value in zip(step.top_ids[row], step.top[row], strict=True)
                ),
            )
            for token, step in zip(tokens, steps, strict=False)
        )


def kind_of(sampling: Sampling) -> Kind:
    """What a call has in common with those that it may share a batch with."""
    return Kind(
        sampling.labels,
        sampling.n,
        sampling.max_tokens,
        sampling.sampling_temperature,
        sampling.logprobs,
    )


def _closed(kind: Kind) -> bool:
    return bool(kind.labels) and kind.n == 1 and kind.sampling_temperature == 0
