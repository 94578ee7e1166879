"""A teacher's belief restricted to some of its tokens: p(v | v is kept), under new numbers.

What a student with a trimmed vocabulary can say at all. Whole beliefs (dense, hidden states) are
restricted exactly: softmax over the kept columns. Of top-k beliefs the kept entries and the tail
are renormalised together, so the tail counts as kept; with k = V that is exact too. Knows signals;
knows no tokenizer and no loss.

Legend: N positions, K entries, V tokens, V' kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.models.signals import DenseSignal, HiddenSignal, SparseSignal, TeacherSignal


@dataclass(frozen=True, slots=True)
class Kept:
    """The tokens that are kept. `ids` [V'] int64: the teacher's id of each, in the new order."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def highest(self) -> int:
        """The largest of the teacher's ids."""
        return int(self.ids.max())

    def only(self, signal: TeacherSignal) -> TeacherSignal:
        """The belief over the kept tokens alone.

        Raises:
            ValueError: draws, which say nothing where they fell on other tokens.
        """
        match signal:
            case DenseSignal():
                return DenseSignal(signal.logits[..., self.ids.to(signal.logits.device)])
            case HiddenSignal():
                return HiddenSignal(signal.hidden, signal.head.only(self.ids))
            case SparseSignal():
                return self._sparse(signal)
            case _:
                raise ValueError("draws of a whole belief are none of a restricted one")

    def mass(self, signal: TeacherSignal) -> Tensor:
        """The probability of the kept tokens together [N], in float32; of a top-k belief, of the
        entries that are kept and the tail.

        Raises:
            ValueError: draws.
        """
        whole = signal.dense() if isinstance(signal, HiddenSignal) else signal
        match whole:
            case DenseSignal():
                logits = whole.logits.float()
                kept = logits[..., self.ids.to(logits.device)].logsumexp(-1)
                return (kept - logits.logsumexp(-1)).exp()
            case SparseSignal():
                return self._entries(whole)[2].exp()
            case _:
                raise ValueError("draws of a whole belief are none of a restricted one")

    def _entries(self, signal: SparseSignal) -> tuple[Tensor, Tensor, Tensor]:
        """New ids [N, K], -1 where not kept; their log-probabilities [N, K], -inf there; and the
        log-mass of these and the tail [N]."""
        width = max(signal.vocabulary_size or 0, self.highest + 1)
        new = torch.full((width,), -1, dtype=torch.int64)
        new[self.ids.cpu()] = torch.arange(len(self))
        ids = new.to(signal.token_ids.device)[signal.token_ids]
        log_p = signal.log_probs.float().masked_fill(ids < 0, -torch.inf)
        tail = signal.tail_log_mass.float()
        return ids, log_p, torch.cat([log_p, tail[..., None]], -1).logsumexp(-1)

    def _sparse(self, signal: SparseSignal) -> SparseSignal:
        """Rows keep unequal numbers of entries: free slots get tokens that the row does not name,
        each with an even share of the tail."""
        assert signal.token_ids.ndim == 2, "one row a position"
        ids, log_p, total = self._entries(signal)
        # Where the whole mass was on other tokens, nothing is known of the kept ones: all is tail.
        lost = total == -torch.inf
        total = total.masked_fill(lost, 0.0)
        tail = signal.tail_log_mass.float().masked_fill(lost, 0.0) - total
        log_p = log_p - total[..., None]
        named = (ids >= 0).sum(-1, keepdim=True)  # [N, 1]
        k = max(1, int(named.max())) if len(ids) else 1
        order = (ids < 0).byte().argsort(dim=-1, stable=True)[..., :k]
        ids, log_p = ids.gather(-1, order), log_p.gather(-1, order)
        free = torch.arange(k, device=ids.device) >= named  # [N, k]
        slot = (torch.arange(k, device=ids.device) - named).clamp_min(0)
        ids = torch.where(free, self._others(ids).gather(-1, slot), ids)
        rest = (len(self) - named).double().clamp_min(1)  # tokens that the row does not name
        share = tail[..., None] - rest.log().float()
        log_p = torch.where(free, share, log_p)
        left = ((rest - free.sum(-1, keepdim=True)) / rest).log().float()
        return SparseSignal(ids, log_p, tail + left[..., 0], len(self))

    def _others(
        self,
        ids: Tensor,  # [N, k], -1 in free slots
    ) -> Tensor:  # [N, C]
        """For each row tokens that it does not name, enough for its free slots, from the far end of
        the vocabulary, where tokenizers keep their rarest; behind them, ones that it names."""
        count = min(len(self), 2 * ids.shape[-1])
        first = len(self) - count
        at = torch.where(ids >= first, ids - first, count)
        taken = torch.zeros(len(ids), count + 1, dtype=torch.uint8, device=ids.device)
        taken.scatter_(-1, at, 1)
        return taken[:, :count].argsort(dim=-1, stable=True) + first


def check_width(kept: Kept, width: int, name: str) -> None:
    """A teacher must have rows for all kept pieces.

    Raises:
        UserError: it has fewer.
    """
    if kept.highest >= width:
        raise UserError(
            "student.vocabulary",
            f"keeps the piece of id {kept.highest:,}, and {name} has {width:,} outputs",
            action="use a teacher whose head covers its tokenizer",
        )
