"""Universal logit distillation: teacher and student with different tokenizers.

Their vocabularies have nothing in common, so what is compared is the shape of the two beliefs: the
probabilities in falling order, by L1 distance, which is the cheapest transport between the two
where all moves cost the same (Boizard et al. 2024, arXiv:2402.12030). Where the paper pairs the
n-th token with the n-th token, here positions are paired that stand at the same byte of the answer:
only there do both models say what comes next after the same text.

Knows offsets and probabilities; knows no tokenizer and no model.

Legend: P pairs, V, W vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse.models.divergence import Summed


class Pair(NamedTuple):
    """A student's token and a teacher's that begin at the same byte of the answer."""

    student: int
    teacher: int


def aligned(student_starts: Sequence[int], teacher_starts: Sequence[int]) -> list[Pair]:
    """Pairs of tokens that begin at the same byte, in order.

    Args:
        student_starts: for each token of the student's answer, and its end token, the byte at which
            it begins; rising. Several tokens that share a byte (parts of one character) are
            counted from the first, which alone begins there.
        teacher_starts: the same of the teacher.
    """
    teacher = _first_at(teacher_starts)
    return [
        Pair(number, teacher[start])
        for start, number in _first_at(student_starts).items()
        if start in teacher
    ]


def byte_starts(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of `text` (UTF-8) at which tokens begin.

    Args:
        text: the answer.
        spans: characters [start, end) of each token, as tokenizers give them. A token begins where
            the one before it ended: some tokenizers leave the space before a word out of its span.
            Further parts of one character begin where its first part does.

    Returns:
        One byte offset a token, and last the length of the text, where the end token begins.
    """
    bytes_before = [0]
    for character in text:
        bytes_before.append(bytes_before[-1] + len(character.encode("utf-8", "surrogatepass")))
    starts: list[int] = []
    end = 0
    for before, after in spans:
        part = bool(starts) and before < end  # of a character that began in the token before
        starts.append(starts[-1] if part else bytes_before[end])
        end = max(end, min(after, len(text)))
    return [*starts, bytes_before[-1]]


def sorted_l1(
    teacher_logits: Tensor,  # [P, W]
    student_logits: Tensor,  # [P, V]
    distillation_temperature: float = 1.0,
) -> Summed:
    """Sum over pairs of sum_k |p_(k) - q_(k)|, probabilities in falling order, the shorter filled
    up with zeros; between 0 and 2, without unit.

    p = softmax(teacher / T), q = softmax(student / T). No factor T^2: the distance is not quadratic
    where the two meet. The teacher gets no gradient.
    """
    p = _falling(teacher_logits.detach(), distillation_temperature)
    q = _falling(student_logits, distillation_temperature)
    shared = min(p.shape[-1], q.shape[-1])
    total = (p[..., :shared] - q[..., :shared]).abs().sum()
    total = total + p[..., shared:].sum() + q[..., shared:].sum()
    return Summed(total, torch.tensor(len(student_logits), device=student_logits.device))


def _falling(logits: Tensor, distillation_temperature: float) -> Tensor:
    z = logits if logits.dtype == torch.float64 else logits.float()
    return (z / distillation_temperature).softmax(-1).sort(-1, descending=True).values


def _first_at(starts: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for number, start in enumerate(starts):
        found.setdefault(start, number)
    return found
