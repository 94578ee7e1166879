"""From examples to padded batches: tokenise once, group by length, pad to the longest of a batch.

Half of what naive batches of short texts hold is padding; `LengthGroupedSampler` puts texts of like
length together. It forms whole optimizer batches first, so the same examples meet in a step
whatever the micro-batch size, and its order depends on seed and epoch alone. Knows tokenizers and
examples; knows no model and no loss.

Legend: B batch, T tokens, C classes, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import DataError
from stillhouse.core.records import Example, Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.chat import answer_ids, end_ids, prompt_ids, prompt_text
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.signals import from_class_probabilities
from stillhouse.train.outputs import ALIGNED

OTHER: Final = "other_"  # before the keys that hold another tokenizer's rows
PAIRS: Final = "pairs"  # of an item: its targets that are paired, (student's, teacher's)
DOMAIN: Final = "domain"  # number of what an item is about
GROUPED_BATCHES: Final = 50  # batches that are sorted by length together
SIGNAL_ROWS: Final = "signal_rows"  # of a batch: numbers of its examples in a signal cache
Item = Mapping[str, Any]


class Chat(Protocol):
    """A prompt and its answer: an `Example`, say."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The chat without the answer."""

    @property
    def completion(self) -> str:
        """The answer."""


class Rows(Dataset[Item]):
    """Tokenised examples in memory."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        """An item; -1 - i is item i without targets, which fills up a batch and counts nowhere."""
        return self.items[index] if index >= 0 else without_targets(self.items[-1 - index])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(item["input_ids"]) for item in self.items]

    def set_epoch(self, epoch: int) -> None:
        """An epoch begins: rows that draw anew each time (masks) hear of it. These do not."""


def without_targets(item: Item) -> Item:
    """An item that fills up a batch (`Rows`)."""
    labels = item["labels"]
    none = IGNORE_INDEX if isinstance(labels, int) else [IGNORE_INDEX] * len(labels)
    found = {**item, "labels": none}
    if PAIRS in item:
        found |= {PAIRS: [], OTHER + "labels": [IGNORE_INDEX] * len(item[OTHER + "labels"])}
    if "signal_row" in item and not isinstance(labels, int):
        found["signal_row"] = -1 - item["signal_row"]  # has no targets for it to speak of
    return found


class Encoded(NamedTuple):
    """Tokenised examples, and how many inputs were too long and lost tokens.

    `facts` are what else `train.json` keeps of them, and `said` the same for people.
    """

    rows: Rows
    cut: int
    facts: Mapping[str, object] | None = None
    said: str | None = None


def encode_labels(
    examples: Sequence[Example],
    task: ClassificationTask,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> Encoded:
    """Examples for a `label` student: the varying text in, the teacher's label and belief out.

    Raises:
        DataError: an example without a label of the task.
    """
    numbers = {label: number for number, label in enumerate(task.labels)}
    texts = [task.input_text(example.to_query()) for example in examples]
    whole = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    rows = tokenizer(texts, truncation=True, max_length=max_tokens, padding=False)["input_ids"]
    items: list[Item] = []
    for example, row in zip(examples, rows, strict=True):
        if example.label not in numbers:
            raise DataError(
                f"example {example.id}", "has no label of the task", value=example.label
            )
        item: dict[str, Any] = {"input_ids": row, "labels": numbers[example.label]}
        if example.label_probabilities is not None:
            item["teacher_probabilities"] = example.label_probabilities
        items.append(item)
    return Encoded(Rows(items), sum(len(a) > len(b) for a, b in zip(whole, rows, strict=True)))


def encode_chats(
    chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Encoded:
    """Examples for a `text` student: the chat in, loss on the completion's tokens alone.

    The prompt's tokens are those the model is asked with (`models.chat`), so the boundary is exact.
    `labels` equal `input_ids` on the completion and its end token, and `IGNORE_INDEX` before it.
    A prompt that is too long loses its head: the completion and the words that ask for it stay.
    """
    end = end_ids(tokenizer)[:1]
    prompts = prompt_ids(tokenizer, [chat.prompt for chat in chats])
    items: list[Item] = []
    cut = 0
    for chat, prompt in zip(chats, prompts, strict=True):
        text = prompt_text(tokenizer, chat.prompt)
        completion = [*answer_ids(tokenizer, chat.completion, text), *end]
        completion = completion[: max_tokens - 1]  # one token before it must predict its first
        room = max_tokens - len(completion)
        cut += len(prompt) > room
        prompt = prompt[-room:]
        items.append(
            {
                "input_ids": prompt + completion,
                "labels": [IGNORE_INDEX] * len(prompt) + completion,
            }
        )
    return Encoded(Rows(items), cut)


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads a list of items on the right to the longest of them.

    Gives `input_ids` [B, T], `attention_mask` [B, T], `labels` ([B] or [B, T]); where the items
    hold the teacher's belief, `teacher_logits` [B, C] (log-probabilities, nats); where they hold
    `hidden` states, `inputs_embeds` [B, T, H]; and where they hold a `signal_row`, `signal_rows`
    [B] in their order, which is that of the targets. Where a teacher has a tokenizer of its own,
    its rows are `other_input_ids`, `other_attention_mask` and `other_labels` [B, T'], and `aligned`
    [P, 2] pairs the student's targets with the teacher's. `domain` [B] numbers what rows are about.
    """

    pad_token_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": _pad([item["input_ids"] for item in items], self.pad_token_id),
            "attention_mask": _pad([[1] * len(item["input_ids"]) for item in items], 0),
        }
        if isinstance(items[0]["labels"], int):
            batch["labels"] = torch.tensor([item["labels"] for item in items])
        else:
            batch["labels"] = _pad([item["labels"] for item in items], IGNORE_INDEX)
        if all("teacher_probabilities" in item for item in items):
            beliefs = [item["teacher_probabilities"] for item in items]
            batch["teacher_logits"] = from_class_probabilities(beliefs).logits
        if "signal_row" in items[0]:
            batch[SIGNAL_ROWS] = torch.tensor([item["signal_row"] for item in items])
        if "hidden" in items[0]:
            batch["inputs_embeds"] = pad_sequence([i["hidden"] for i in items], batch_first=True)
        if DOMAIN in items[0]:
            batch[DOMAIN] = torch.tensor([item[DOMAIN] for item in items])
        if PAIRS in items[0]:
            batch |= _other_tokens(items)
        return batch


def _other_tokens(items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """The rows as another tokenizer has them. Its pad token is 0: no target, and never attended."""
    keys = ("input_ids", "labels")
    found = Collator(0)([{key: item[OTHER + key] for key in keys} for item in items])
    pairs: list[tuple[int, int]] = []
    ours = theirs = 0
    for item in items:
        pairs += [(ours + student, theirs + teacher) for student, teacher in item[PAIRS]]
        ours += sum(label != IGNORE_INDEX for label in item["labels"])
        theirs += sum(label != IGNORE_INDEX for label in item[OTHER + "labels"])
    aligned = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return {ALIGNED: aligned, **{OTHER + name: value for name, value in found.items()}}


def _pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


class LengthGroupedSampler(Sampler[int]):
    """Example numbers in an order whose every `batch_size` slice is one optimizer batch.

    A permutation by (seed, epoch) is cut into runs of `GROUPED_BATCHES` batches, each run sorted by
    length and cut into batches, and the full batches shuffled; a last short batch stays last. It is
    filled up to a multiple of `multiple` with an example without targets (`Rows`), so that several
    processes have equally many micro-batches and no example counts twice. `on_epoch` hears the
    number of an epoch before the first example of it is asked for.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        multiple: int = 1,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._multiple = multiple
        self._batch_size = batch_size
        self._seed = seed
        self._on_epoch = on_epoch
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the trainer calls this, also when it resumes."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._multiple) * self._multiple

    def __iter__(self) -> Iterator[int]:
        if self._on_epoch is not None:
            self._on_epoch(self._epoch)
        draw = np.random.default_rng((self._seed, self._epoch))
        order = draw.permutation(len(self._lengths))
        size, run = self._batch_size, self._batch_size * GROUPED_BATCHES
        batches: list[list[int]] = []
        for start in range(0, len(order), run):
            block = order[start : start + run]
            block = block[np.argsort(self._lengths[block], kind="stable")]
            batches += [block[i : i + size].tolist() for i in range(0, len(block), size)]
        last = [batches.pop()] if len(batches[-1]) < size else []
        for number in draw.permutation(len(batches)):
            yield from batches[number]
        for batch in last:
            yield from batch
            fill = len(self) - len(self._lengths)
            yield from [-1 - batch[0]] * fill


def padding_share(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """Share of padding among the tokens of a whole epoch in this order."""
    padded = real = 0
    for start in range(0, len(order), batch_size):
        rows = [lengths[i] for i in order[start : start + batch_size]]
        padded += max(rows) * len(rows)
        real += sum(rows)
    return 1.0 - real / padded
