"""How far an exported language model is from its float parent: logits, token by token.

Both are read by transformers on one machine; a runtime of another kind may round otherwise. Knows
two folders and some texts.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse.core.errors import UserError
from stillhouse.models.quiet import quiet_transformers


class Drift(NamedTuple):
    """Over all next-token predictions of the texts."""

    tokens: int
    mean_kl: float  # KL(float || exported), nats
    agreement: float  # share of tokens with the same first choice


@torch.no_grad()
def drift(
    student: Path, exported: Path, texts: Sequence[str], *, max_tokens: int = 512, **settings: Any
) -> Drift:
    """Compare two folders' logits.

    Args:
        student: the float parent.
        exported: what was made of it, loadable by transformers.
        texts: at least one.
        max_tokens: of each text.
        settings: how the exported one is loaded (`dtype`, `quantization_config`).

    Raises:
        UserError: there is no token to predict.
    """
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(student, local_files_only=True)
        auto: Any = AutoModelForCausalLM
        plain = auto.from_pretrained(student, dtype=torch.float32, local_files_only=True).eval()
        other = auto.from_pretrained(exported, local_files_only=True, **settings).eval()
        tokens, kl, agreed = 0, 0.0, 0
        for text in texts:
            ids: Any = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_tokens)[
                "input_ids"
            ]
            if ids.shape[1] == 0:
                continue
            p: Tensor = plain(input_ids=ids).logits[0].log_softmax(-1)  # [N, V]
            q: Tensor = other(input_ids=ids).logits[0].float().log_softmax(-1)
            kl += float((p.exp() * (p - q)).sum())
            agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
            tokens += len(p)
    if not tokens:
        raise UserError("texts", "hold no token to predict", action="give texts of the task")
    return Drift(tokens, kl / tokens, agreed / tokens)
