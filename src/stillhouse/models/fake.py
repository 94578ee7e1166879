"""A deterministic completer for tests and dry runs: the in-package double of every model.

Its answers depend on the query's text and the sample number alone. Knows no network, no weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from stillhouse.core.records import Completion, Query, message_key
from stillhouse.models.completer import ModelInfo, Sampling


class FakeCompleter:
    """Answers with `answer(query, sample)`, else with a label (or an echo) picked by content hash.

    Args:
        name: its model name.
        answer: text of a sample; overrides the default.
        belief: log-probabilities over the labels for a query; makes it a white-box model.
    """

    def __init__(
        self,
        name: str = "fake",
        answer: Callable[[Query, int], str] | None = None,
        belief: Callable[[Query], dict[str, float]] | None = None,
    ) -> None:
        self._name = name
        self._answer = answer
        self._belief = belief
        self.asked: list[str] = []

    @property
    def info(self) -> ModelInfo:
        """A model of no size that lives here."""
        return ModelInfo(
            name=self._name,
            revision="fake-1",
            gives_label_logprobs=self._belief is not None,
            local=True,
        )

    async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
        """Answer at once."""
        self.asked.append(query.id)
        belief = self._belief(query) if self._belief is not None and sampling.labels else None
        return [
            Completion(
                query_id=query.id,
                text=self._text(query, sampling, sample, belief),
                model=self._name,
                revision="fake-1",
                sample=sample,
                prompt_tokens=sum(len(m.content.split()) for m in query.messages),
                completion_tokens=1,
                label_logprobs=belief,
            )
            for sample in range(sampling.n)
        ]

    def _text(
        self, query: Query, sampling: Sampling, sample: int, belief: dict[str, float] | None
    ) -> str:
        if self._answer is not None:
            return self._answer(query, sample)
        if belief is not None:
            return max(belief, key=lambda label: belief[label])
        if sampling.labels:
            digest = hashlib.sha256(message_key(query.messages).encode()).digest()
            return sampling.labels[digest[0] % len(sampling.labels)]
        return f"echo: {query.last_user_text}"

    async def aclose(self) -> None:
        """Nothing to free."""


def keyword_belief(
    labels: Sequence[str], words: dict[str, str], strength: float = 0.9
) -> Callable[[Query], dict[str, float]]:
    """A belief that gives `strength` to the label of the first of `words` found in the text."""

    def belief(query: Query) -> dict[str, float]:
        text = query.last_user_text.casefold()
        chosen = next((label for word, label in words.items() if word in text), labels[0])
        rest = (1.0 - strength) / (len(labels) - 1)
        return {label: math.log(strength if label == chosen else rest) for label in labels}

    return belief
