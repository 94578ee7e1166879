"""Signals that came with the answers: class beliefs, and an API's logprobs aligned to token ids.

An API names tokens by their text. An answer is aligned where its student's tokenizer cuts it into
the same pieces: every token's text is that of exactly one id, the ids are the targets in their
order, and the texts together are the answer. All else falls back to hard labels, with a reason that
is counted. Knows records and tokenizers; no teacher is asked.

Legend: C classes, K kept entries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from stillhouse.core.progress import Ticker
from stillhouse.core.records import Completion, Example, TokenLogprob
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.signal_codec import Arrays, encode_belief, encode_sparse
from stillhouse.models.signal_layout import Layout
from stillhouse.models.signals import SparseSignal, from_class_probabilities
from stillhouse.train.batches import Rows

BLOCK: Final = 4096
Kept = dict[int, float]  # token id: log-probability, nats


@dataclass(frozen=True, slots=True)
class ClassBeliefs:
    """Beliefs over classes, as the examples hold them since they were labelled."""

    examples: Sequence[Example]
    layout: Layout

    def arrays(self, numbers: Sequence[int], ticker: Ticker) -> list[Arrays]:
        """Stored arrays of some examples, in their order."""
        found: list[Arrays] = []
        for number in numbers:
            probabilities = self.examples[number].label_probabilities
            assert probabilities is not None, "the plan looked for beliefs"
            belief = from_class_probabilities([probabilities])
            found.append(encode_belief(self.layout, belief.logits))
            ticker.advance()
        return found


class TokenNames:
    """The id of each token's text, where exactly one id has it."""

    def __init__(self, tokenizer: Any) -> None:
        # A piece alone may lose its leading space (SentencePiece): it is read after another.
        anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        before = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
        ids: dict[str, int] = {}
        twice: set[str] = set()
        for start in range(0, len(tokenizer), BLOCK):
            block = range(start, min(start + BLOCK, len(tokenizer)))
            texts = tokenizer.batch_decode(
                [[*anchor, number] for number in block], clean_up_tokenization_spaces=False
            )
            for number, text in zip(block, texts, strict=True):
                name = text[before:]
                if ids.setdefault(name, number) != number:
                    twice.add(name)
        self._ids = {name: number for name, number in ids.items() if name and name not in twice}

    def id_of(self, text: str) -> int | None:
        """The one id whose text this is."""
        return self._ids.get(text)


class Aligned(NamedTuple):
    """An answer's beliefs, one mapping for each target; or why there are none."""

    kept: Sequence[Kept]
    reason: str | None


def align(
    completion: Completion | None,
    answer: str,
    targets: Sequence[int],  # ids of the answer, with its end token where that was not cut off
    names: TokenNames,
) -> Aligned:
    """An answer's stored logprobs as beliefs over token ids, a target each.

    A target past the last token (the end token, which most APIs do not list) is a hard label.
    Reasons: `no_logprobs`, `other_text` (the tokens are not the accepted answer), `unknown_token`
    (a text of no one id), `other_tokens` (the student's tokenizer cuts the answer elsewhere).
    """
    if completion is None or not completion.logprobs:
        return Aligned((), "other_text" if completion is None else "no_logprobs")
    tokens = list(completion.logprobs)
    if "".join(token.token for token in tokens[:-1]) == answer:
        tokens.pop()  # the end token, under whatever name
    if "".join(token.token for token in tokens) != answer:
        return Aligned((), "other_text")
    ids = [names.id_of(token.token) for token in tokens]
    if any(number is None for number in ids):
        return Aligned((), "unknown_token")
    known = min(len(ids), len(targets))
    if list(targets[:known]) != ids[:known] or len(targets) > len(ids) + 1:
        return Aligned((), "other_tokens")
    kept = [_kept(token, target, names) for token, target in zip(tokens, targets, strict=False)]
    kept += [{target: 0.0} for target in targets[known:]]
    return Aligned(kept, None)


def _kept(token: TokenLogprob, target: int, names: TokenNames) -> Kept:
    """The alternatives that are one id each; what the others had is part of the tail."""
    found = {target: token.logprob}
    for text, logprob in token.top:
        number = names.id_of(text)
        if number is not None:
            found.setdefault(number, logprob)
    return found


@dataclass(slots=True)
class LogprobBeliefs:
    """An API's stored logprobs. Alignment is done at once, for all examples.

    Args:
        examples: the accepted answers.
        rows: the same, as the student reads them.
        completions: all answers, by query id.
        names: of the student's tokenizer.
        layout: of format `top_k`.
    """

    examples: Sequence[Example]
    rows: Rows
    completions: Mapping[str, Sequence[Completion]]
    names: TokenNames
    layout: Layout
    unaligned: Counter[str] = field(default_factory=Counter)
    hard_rows: int = 0
    _kept: list[Sequence[Kept]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for example, item in zip(self.examples, self.rows.items, strict=True):
            targets = [label for label in item["labels"][1:] if label != IGNORE_INDEX]
            answers = self.completions.get(example.id, ())
            said = next((one for one in answers if one.text == example.completion), None)
            kept, reason = align(said, example.completion, targets, self.names)
            if reason is not None:
                self.unaligned[reason] += 1
                kept = [{target: 0.0} for target in targets]
            self.hard_rows += sum(row == {t: 0.0} for row, t in zip(kept, targets, strict=True))
            self._kept.append(kept)

    def arrays(self, numbers: Sequence[int], ticker: Ticker) -> list[Arrays]:
        """Stored arrays of some examples, in their order."""
        found: list[Arrays] = []
        for number in numbers:
            rows = [_filled(row, self.layout) for row in self._kept[number]]
            signal = SparseSignal(
                torch.tensor([row.ids for row in rows]),
                torch.tensor([row.log_probs for row in rows]),
                torch.tensor([row.tail for row in rows]),
            )
            found.append(encode_sparse(self.layout, signal))
            ticker.advance(len(rows))
        return found


class _Filled(NamedTuple):
    ids: list[int]
    log_probs: list[float]
    tail: float


def _filled(kept: Kept, layout: Layout) -> _Filled:
    """Exactly K entries: the likeliest, or, where there are fewer, impossible ones from the far end
    of the vocabulary, where tokenizers keep their rarest."""
    best = sorted(kept.items(), key=lambda entry: (-entry[1], entry[0]))[: layout.k]
    left = 1.0 - sum(math.exp(value) for _, value in best)
    tail = math.log(left) if left > 1e-7 else -math.inf  # an API's rounding is no mass
    taken = {number for number, _ in best}
    spare = (n for n in range(layout.width - 1, -1, -1) if n not in taken)
    while len(best) < layout.k:
        best.append((next(spare), -math.inf))
    return _Filled([number for number, _ in best], [value for _, value in best], tail)
