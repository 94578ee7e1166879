"""How close a GGUF file's next-token distributions are to the float student's.

    mean KL = mean over positions of sum_v p(v) (log p(v) - log q(v))

in nats per position, p of the float student in transformers, q of llama.cpp, both over the whole
vocabulary and on the same token ids. Knows both runtimes; does not know tasks or scores.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.core.errors import UserError
from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.gguf_labels import LEAST_LOG_P, next_log_p


class Likeness(NamedTuple):
    """Float student against file.

    Attributes:
        mean_kl: nats per position.
        worst_kl: of one position, in nats.
        same_best: share of positions with the same likeliest token.
        positions: how many were compared.
    """

    mean_kl: float
    worst_kl: float
    same_best: float
    positions: int


def likeness(model: Any, engine: GgufEngine, texts: Sequence[Sequence[int]]) -> Likeness:
    """Compare the two at every position of some token sequences.

    Args:
        model: the float student, a causal language model in eval mode.
        engine: llama.cpp with the file.
        texts: token ids.

    Raises:
        UserError: there is no token to compare.
        TeacherError: llama.cpp did not answer.
    """
    found: list[float] = []
    same = 0
    for ids in texts:
        expected = _float_log_p(model, ids)  # [T, V]
        for position in range(len(ids)):
            log_p = expected[position]
            log_q = np.full(len(log_p), LEAST_LOG_P)
            for token, value in next_log_p(engine, "likeness", ids[: position + 1]).items():
                log_q[token] = value
            found.append(float(np.sum(np.exp(log_p) * (log_p - log_q))))
            same += int(log_p.argmax() == log_q.argmax())
    if not found:
        raise UserError("texts", "there is no token to compare", action="give some texts")
    return Likeness(float(np.mean(found)), max(found), same / len(found), len(found))


@torch.inference_mode()
def _float_log_p(model: Any, ids: Sequence[int]) -> NDArray[np.float64]:
    logits = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0]
    log_p: NDArray[np.float64] = logits.double().log_softmax(-1).cpu().numpy()
    return log_p
