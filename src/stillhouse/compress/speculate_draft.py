"""A draft model for transformers' assisted generation: the seam of `generate(assistant_model=...)`.

transformers asks an assistant for its next tokens through its own `generate`, whose preparation
costs as much as several steps of a small draft. `Draft` answers the same call with a bare loop and
a key-value cache of its own, counts what it did, and draws over the target's ids whatever its own
are (`speculate_ids`). Sampled tokens are drawn from exactly the scores that it hands back, after
the target's logits processors: the acceptance rule needs both.

Knows causal language models and ids; the verification is transformers'.

Shapes: T tokens, G drafted tokens, V target rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from stillhouse.compress.speculate_ids import IdMap, map_ids
from stillhouse.models.loading import Loaded
from stillhouse.models.signals import accepts


class Drafted(NamedTuple):
    """What transformers reads of an assistant's answer."""

    sequences: Tensor  # [1, T + G]
    scores: tuple[Tensor, ...]  # G of [1, V]; without meaning where decoding is greedy
    past_key_values: None  # the cache stays here


@dataclass
class DraftClock:
    """What a draft did: drafted tokens, and `seconds` of `steps` passes, those that read a prompt
    left out."""

    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


@dataclass
class Draft:
    """Stands where transformers expects an assistant model.

    Args:
        model: the draft.
        ids: `None` where it speaks the target's ids.
        target: the target model, whose config and width it shows.
        ends: tokens that end an answer: nothing is drafted behind one.
        length: tokens a draft, at most.
        confidence: a draft also ends after a token that the draft itself gave less than this.
    """

    model: Any
    ids: IdMap | None
    target: Any
    ends: Sequence[int]
    length: int
    confidence: float = 0.0
    clock: DraftClock = field(default_factory=DraftClock)

    def __post_init__(self) -> None:
        self._cache: Any = None
        self._fed: list[int] = []  # draft ids whose keys and values the cache holds
        self._narrow = "logits_to_keep" in accepts(self.model)
        self._width = int(self.target.get_output_embeddings().weight.shape[0])
        self._ends = frozenset(self.ends)
        self.config = self.target.config
        self.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            num_assistant_tokens=self.length,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )

    @property
    def device(self) -> torch.device:
        """Where the draft lies."""
        device: torch.device = self.model.device
        return device

    def _supports_logits_to_keep(self) -> bool:
        return True

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,  # [1, T]
        max_new_tokens: int,
        generation_config: GenerationConfig,
        logits_processor: Sequence[Any],
        **_: Any,
    ) -> Drafted:
        """Draft up to `max_new_tokens` tokens behind `input_ids`, in the target's ids."""
        samples = bool(generation_config.do_sample)
        tokens: list[int] = input_ids[0].tolist()
        feed = self._unread(tokens)
        new: list[int] = []
        scores: list[Tensor] = []
        while len(new) < max_new_tokens:
            started, is_step = time.perf_counter(), len(self._fed) > 0
            row = self._step(feed)  # [1, V] or, greedy, over the draft's own ids
            if samples:
                row = row if self.ids is None else self.ids.logits(row, self._width)
                here = torch.tensor([tokens + new], device=row.device)
                for processor in logits_processor:
                    row = processor(here, row)
                chosen = torch.multinomial(row.softmax(-1), 1)  # [1, 1]
                scores.append(row)
                token = int(chosen)
                feed = [token] if self.ids is None else list(self.ids.spelling[token])
            else:
                token, feed = self._likeliest(row)
                scores.append(row.new_zeros(1, 1))
            new.append(token)
            if is_step:
                self.clock.steps += 1
                self.clock.seconds += time.perf_counter() - started
            if token in self._ends or (
                self.confidence > 0 and self._sure(row, token, samples) < self.confidence
            ):
                break
        self.clock.tokens += len(new)
        sequences = torch.cat([input_ids, input_ids.new_tensor([new])], dim=1)
        return Drafted(sequences, tuple(scores), None)

    @torch.no_grad()
    def beliefs(
        self, tokens: Sequence[int], first: int, sampling_temperature: float
    ) -> Tensor:  # [N, V]
        """Probabilities of the next token after `tokens[: i + 1]`, for i from `first` on, over the
        target's ids."""
        spelled = [[t] if self.ids is None else list(self.ids.spelling[t]) for t in tokens]
        ends = [sum(len(s) for s in spelled[: i + 1]) - 1 for i in range(first, len(tokens))]
        ids = torch.tensor([[x for s in spelled for x in s]], device=self.model.device)
        rows = self.model(input_ids=ids, use_cache=False).logits[0, ends].float()
        if self.ids is not None:
            rows = self.ids.logits(rows, self._width)
        p: Tensor = (rows / sampling_temperature).softmax(-1).cpu()
        return p

    def _likeliest(self, row: Tensor) -> tuple[int, list[int]]:
        if self.ids is None:
            token = int(row.argmax())
            return token, [token]
        known = self.ids.to_target[: row.shape[-1]] >= 0
        own = int(row[..., : len(known)].masked_fill(~known, -torch.inf).argmax())
        return int(self.ids.to_target[own]), [own]

    def _sure(self, row: Tensor, token: int, samples: bool) -> float:
        p = row.softmax(-1)
        return float(p[0, token] if samples else p.max())

    def _unread(self, tokens: Sequence[int]) -> list[int]:
        """Draft ids still to be read, with the cache cut back to what is right of it."""
        wanted = list(tokens) if self.ids is None else self.ids.read(tokens)
        same = 0
        for old, new in zip(self._fed, wanted, strict=False):
            if old != new:
                break
            same += 1
        same = min(same, len(wanted) - 1)
        too_many = len(self._fed) - same
        # Far back is another prompt: a cache of a sliding window cannot be cut that far.
        if self._cache is None or same == 0 or too_many > 4 * (self.length + 1):
            self._cache, self._fed = DynamicCache(config=self.model.config), []
            self._cache.activate_past_recording()
            return wanted
        if too_many:
            self._cache.crop(-too_many)
            del self._fed[same:]
        return wanted[same:]

    def _step(self, feed: Sequence[int]) -> Tensor:
        """Logits [1, K] in float32 after reading some more of the draft's ids."""
        asked: dict[str, Any] = {"logits_to_keep": 1} if self._narrow else {}
        out = self.model(
            input_ids=torch.tensor([list(feed)], device=self.model.device),
            past_key_values=self._cache,
            use_cache=True,
            **asked,
        )
        self._fed.extend(feed)
        row: Tensor = out.logits[:, -1].float()
        return row


def make_draft(
    draft: Loaded, target: Loaded, ends: Sequence[int], length: int, confidence: float = 0.0
) -> Draft:
    """A draft of a target, its ids mapped where they are not the target's.

    Raises:
        UserError: the two tokenizers do not go together.
    """
    rows = [int(m.model.get_output_embeddings().weight.shape[0]) for m in (draft, target)]
    ids = map_ids(draft.tokenizer, target.tokenizer, rows[0], rows[1])
    return Draft(draft.model, ids, target.model, tuple(ends), length, confidence)
