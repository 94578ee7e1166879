"""A text student of transformers that writes batches piece by piece.

Prompts, cutting, labels and draws are `HfCompleter`'s, so that an answer is the one that was
evaluated. Rows of one batch end each on its own: by the end token, its own limit, or because nobody
wants more of it. Knows a language model; does not know who asks.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, FinishReason, Query, TokenLogprob
from stillhouse.models.batching import Call
from stillhouse.models.chat import each_prompt_ids
from stillhouse.models.completer import Sampling
from stillhouse.models.hf_completer import HfCompleter, kind_of
from stillhouse.models.loading import load_causal_lm
from stillhouse.models.quiet import quiet_transformers
from stillhouse.models.seeded_sampling import SeededSampler
from stillhouse.models.writing import Piece, Say, Writing, Written


class _Row:
    """One answer on its way."""

    def __init__(self, asked: Writing, prompt: list[int], most: int, say: Say) -> None:
        self.asked, self.prompt, self.most, self.say = asked, prompt, most, say
        self.tokens: list[int] = []
        self.said = 0  # characters
        self.finish: FinishReason | None = None


Answer = Written | UnanswerableQueryError


class Asked(NamedTuple):
    """One answer to be written, and who takes its pieces."""

    writing: Writing
    say: Say


class HfWriter(HfCompleter):
    """See the module."""

    def believe(self, queries: Sequence[Query], labels: tuple[str, ...]) -> list[Completion]:
        """The likeliest label of each, with the belief over all; blocks.

        Raises:
            UnanswerableQueryError: a prompt that the chat template cannot render.
        """
        calls = [Call(query, Sampling(labels=labels)) for query in queries]
        found = []
        for answer in self.run_batch(calls):
            if isinstance(answer, Exception):
                raise answer
            found.append(answer[0])
        return found

    def write(self, asked: Sequence[Asked], step: Callable[[], None]) -> list[Answer]:
        """Write a batch; blocks. `step` is called after each token of the batch.

        A row whose prompt cannot be rendered has its error in its place.
        """
        answers: list[Answer | None] = [None] * len(asked)
        rows: dict[int, _Row] = {}
        chats = [one.writing.query.messages for one in asked]
        for index, prompt in enumerate(each_prompt_ids(self._loaded.tokenizer, chats)):
            writing, say = asked[index]
            if isinstance(prompt, UserError):
                answers[index] = UnanswerableQueryError(str(prompt))
                continue
            kind = kind_of(Sampling(max_tokens=writing.max_tokens))
            cut = prompt[-self._room(kind) :]
            rows[index] = _Row(writing, cut, self._longest_answer(kind), say)
        if rows:
            self._run(list(rows.values()), step)
        for index, row in rows.items():
            finish = row.finish or "length"
            answers[index] = Written(finish, len(row.prompt), len(row.tokens))
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def _run(self, rows: Sequence[_Row], step: Callable[[], None]) -> None:
        model, pad = self._loaded.model, self._loaded.tokenizer.pad_token_id or 0
        longest = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[*[pad] * (longest - len(r.prompt)), *r.prompt] for r in rows])
        mask = torch.tensor([[0] * (longest - len(r.prompt)) + [1] * len(r.prompt) for r in rows])
        wanted = [row.asked.logprobs for row in rows if row.asked.logprobs is not None]
        sampler = _Draws(rows, max(1, *wanted) if wanted else None)
        watch = _Watch(self, rows, sampler, step)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=max(row.most for row in rows), do_sample=False, pad_token_id=pad
        )
        with quiet_transformers():
            model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([watch]),
            )

    def take(self, row: _Row, token: int, draws: _Draws, number: int) -> None:
        """One more token of a row: say what it adds, note whether it was the last."""
        row.tokens.append(token)
        if token in self._ends:
            row.finish = "stop"
        elif len(row.tokens) >= row.most:
            row.finish = "length"
        text = self._loaded.tokenizer.decode(row.tokens, skip_special_tokens=True)
        # A character in two tokens reads as U+FFFD until it is whole.
        whole = row.finish is not None or not text.endswith("\ufffd")
        more = text[row.said :] if whole else ""
        row.said += len(more)
        logprobs: tuple[TokenLogprob, ...] = ()
        most = row.asked.logprobs
        if most is not None and row.finish != "stop":
            last = draws.steps[-1:]
            logprobs = tuple(
                one.model_copy(update={"top": one.top[:most]})
                for one in self._logprobs(last, [token], number)
            )
        if not row.say(Piece(more, logprobs)):
            row.finish = row.finish or "stop"


class _Draws(SeededSampler):
    """A sampler whose rows have temperatures of their own."""

    def __init__(self, rows: Sequence[_Row], alternatives: int | None) -> None:
        super().__init__([row.asked.seed for row in rows], 0.0, alternatives)
        self._rows = [row.asked.sampling_temperature for row in rows]

    def draw(self, log_p: Tensor) -> Tensor:
        """[B, V], of which the argmax is drawn."""
        if not any(self._rows):
            return log_p
        noise = self.gumbel(log_p.shape[-1]).to(log_p.device)
        scale = torch.tensor(self._rows, device=log_p.device)[:, None]  # [B, 1]
        drawn = log_p / scale.clamp_min(1e-6) + noise
        return torch.where(scale > 0, drawn, log_p)


class _Watch(StoppingCriteria):
    """Hears every token of a batch; ends rows, and the batch with its last row."""

    def __init__(
        self,
        writer: HfWriter,
        rows: Sequence[_Row],
        draws: _Draws,
        step: Callable[[], None],
    ) -> None:
        self._writer, self._rows, self._draws, self._step = writer, rows, draws, step

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        """[B] of whether each row has ended."""
        for number, (row, token) in enumerate(
            zip(self._rows, input_ids[:, -1].tolist(), strict=True)
        ):
            if row.finish is None:
                self._writer.take(row, int(token), self._draws, number)
        self._draws.steps.clear()
        self._step()
        ended = [row.finish is not None for row in self._rows]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def open_writer(folder: str, batch_size: int, device: str = "auto") -> HfWriter:
    """Open a text student's folder of transformers' own weights.

    Raises:
        UserError: it cannot be loaded.
    """
    return HfWriter(load_causal_lm(folder, device=device), batch_size, cuts=True)
