"""What a causal language model believes of closed labels: likelihoods under constrained decoding.

The answer is decoded over the trie of the labels' token sequences, each ended by the end-of-turn
token, so that probabilities over labels sum to one without renormalising:

    log p(label) = sum over the trie's branching nodes on the label's path of
                   log softmax over the node's children of the model's logits

in nats. Where first tokens differ this needs one position of logits. Knows token ids and logits;
does not know tasks or records.

Shapes: B batch, C labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stillhouse.core.records import Message
from stillhouse.models.chat import answer_ids, end_ids, prompt_ids, prompt_text
from stillhouse.models.label_trie import branches, ended_sequences
from stillhouse.models.prefix_cache import PrefixReader


class LabelScorer:
    """Log-probabilities over `labels` for batches of chats.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer, with a pad token.
        labels: the closed set, at least two.

    Raises:
        UserError: two labels are the same tokens, or cannot be told apart without an end token.
    """

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._tokenizer = tokenizer
        self._reader = PrefixReader(model, tokenizer.pad_token_id or 0)
        prompt = prompt_text(tokenizer, [Message(role="user", content="x")])
        self.sequences = ended_sequences(
            self.labels,
            [answer_ids(tokenizer, label, prompt) for label in self.labels],
            end_ids(tokenizer, model),
        )
        self._branches = branches(self.sequences)
        self._deep = any(branch.path for branch in self._branches)

    def score(self, chats: Sequence[Sequence[Message]]) -> Tensor:
        """Log-probabilities [B, C] in nats, float32, rows sum to one in probability."""
        return self.score_ids(prompt_ids(self._tokenizer, chats))

    @torch.inference_mode()
    def score_ids(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `score`, for prompts that are token ids already."""
        read = self._reader.read(prompts, keep=self._deep)
        total = torch.zeros(len(prompts), len(self.labels), device=read.logits.device)
        for branch in self._branches:
            if not branch.path:
                logits = read.logits
            elif read.key_values is not None:
                logits = self._reader.follow(read, branch.path)
            else:
                logits = self._reader.read([[*prompt, *branch.path] for prompt in prompts]).logits
            log_p = logits[:, list(branch.ways)].float().log_softmax(-1)  # [B, ways]
            for label, way in enumerate(branch.taken):
                if way >= 0:
                    total[:, label] += log_p[:, way]
        return total
