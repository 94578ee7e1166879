"""onnxruntime-genai with one model: token ids in, next-token logits out, with a cache between.

Sampling is not left to it: who asks chooses from the logits. Its telemetry is switched off. Knows
ids and logits; no tokenizer, no query. Imports no torch.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai

from stillhouse.core.errors import UserError

Floats = npt.NDArray[np.float64]


class Reading:
    """A text that is being read; `logits` [V] are of the token after it."""

    def __init__(self, generator: Any, ids: Sequence[int]) -> None:
        self._generator = generator
        self.logits: Floats
        self.add(ids)

    def add(self, ids: Sequence[int]) -> None:
        """Read on."""
        self._generator.append_tokens(np.array(ids, dtype=np.int32))
        logits: Any = self._generator.get_logits()
        self.logits = np.asarray(logits, dtype=np.float64).reshape(-1, logits.shape[-1])[-1]

    def back_to(self, length: int) -> None:
        """Forget all after the first `length` tokens; `logits` are stale until `add`."""
        self._generator.rewind_to(length)


class GenaiEngine:
    """One loaded folder.

    Raises:
        UserError: onnxruntime-genai cannot load it.
    """

    def __init__(self, folder: Path) -> None:
        onnxruntime_genai.disable_telemetry_events()
        try:
            self._model: Any = onnxruntime_genai.Model(str(folder))
        except RuntimeError as error:
            raise UserError(
                str(folder),
                f"onnxruntime-genai cannot load it: {error}",
                action="make it again with: stillhouse compress",
            ) from None

    def read(self, ids: Sequence[int], room: int = 64) -> Reading:
        """Begin with a text of at least one token; `room` is for the tokens that may follow."""
        settings = onnxruntime_genai.GeneratorParams(self._model)
        settings.set_search_options(max_length=len(ids) + room, do_sample=False)
        return Reading(onnxruntime_genai.Generator(self._model, settings), ids)


def log_softmax(logits: Floats) -> Floats:
    """[V] nats."""
    shifted = logits - logits.max()
    found: Floats = shifted - np.log(np.exp(shifted).sum())
    return found
