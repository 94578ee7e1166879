"""A draft's tokens in the target's numbers: what lets a trimmed student draft for its teacher.

A student with fewer pieces (`student.vocabulary`) spells a text from pieces that its teacher has
too, under other ids. What the draft proposes is named in the target's ids; what the target has said
is read by the draft in its own, a piece that it lacks from shorter ones. Any draft is lossless,
since the target verifies: the mapping decides the acceptance rate only, and a target token that the
draft cannot say is one it never proposes. This is the token-level intersection of Timor et al. 2025
(arXiv:2502.05202), for tokenizers that spell alike. Knows tokenizers; knows no weights.

Shapes: V target rows, K draft rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.core.errors import UserError

LEAST_SHARED: Final = 0.5  # of the draft's pieces; below, two tokenizers have little in common
FIELD: Final = "speculate.draft"


@dataclass(frozen=True, slots=True)
class IdMap:
    """Both ways between a draft's ids and its target's.

    `spelling[target id]` is how the draft reads a target token: its own ids, at least one.
    """

    to_target: Tensor  # [K] int64, -1 where the target has no such piece
    spelling: tuple[tuple[int, ...], ...]  # V
    shared: int  # pieces that both have

    def read(self, target_ids: Sequence[int]) -> list[int]:
        """The draft's ids of a text in the target's; each token for itself, so that the reading of
        a longer text begins with that of a shorter."""
        return [draft for token in target_ids for draft in self.spelling[token]]

    def logits(self, draft_logits: Tensor, width: int) -> Tensor:
        """Draft logits [..., K] over the target's ids [..., width]; -inf where it has none."""
        known = self.to_target >= 0
        out = draft_logits.new_full((*draft_logits.shape[:-1], width), -torch.inf)
        rows = draft_logits[..., : len(known)][..., known[: draft_logits.shape[-1]]]
        out[..., self.to_target[known]] = rows
        return out


def map_ids(draft: Any, target: Any, draft_rows: int, target_rows: int) -> IdMap | None:
    """How the two tokenizers go together; `None` where they are one and need no mapping.

    Args:
        draft, target: the tokenizers.
        draft_rows, target_rows: outputs of the models' heads, which may be padded.

    Raises:
        UserError: they cut text in unlike ways, or have little in common.
    """
    ours: dict[str, int] = draft.get_vocab()
    theirs: dict[str, int] = target.get_vocab()
    if ours == theirs and draft_rows >= len(theirs):
        if draft_rows == target_rows:
            return None
        both = range(min(draft_rows, target_rows))
        spelling = tuple((i if i < draft_rows else 0,) for i in range(target_rows))
        to_target = torch.full((draft_rows,), -1)
        to_target[: len(both)] = torch.arange(len(both))
        return IdMap(to_target, spelling, len(both))
    _check_alike(draft, target)
    to_target = torch.full((draft_rows,), -1)
    shared = 0
    for piece, number in ours.items():
        other = theirs.get(piece)
        if other is not None and number < draft_rows and other < target_rows:
            to_target[number] = other
            shared += 1
    if shared < LEAST_SHARED * len(ours):
        raise UserError(
            FIELD,
            f"{shared:,} of the draft's {len(ours):,} pieces are pieces of the target "
            f"({len(theirs):,}): too few to draft in",
            action="use a draft with the target's tokenizer, or one trimmed from it",
        )
    return IdMap(to_target, _spellings(draft, ours, theirs, draft_rows, target_rows), shared)


def _spellings(
    draft: Any, ours: dict[str, int], theirs: dict[str, int], draft_rows: int, target_rows: int
) -> tuple[tuple[int, ...], ...]:
    """How the draft reads each id of the target."""
    unknown = draft.unk_token_id
    fallback = (int(draft.pad_token_id or 0) if unknown is None else int(unknown),)
    spell = draft.backend_tokenizer.model
    found: list[tuple[int, ...]] = [fallback] * target_rows
    for piece, number in theirs.items():
        if number >= target_rows:
            continue
        own = ours.get(piece)
        if own is not None and own < draft_rows:
            found[number] = (own,)
            continue
        ids = tuple(token.id for token in spell.tokenize(piece) if token.id < draft_rows)
        found[number] = ids or fallback
    return tuple(found)


def _check_alike(draft: Any, target: Any) -> None:
    """Pieces are compared by name, which means the same in tokenizers of one kind only."""
    kinds = []
    for tokenizer in (draft, target):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                FIELD,
                f"a {type(tokenizer).__name__} cannot be read piece by piece",
                action="use a draft with the target's tokenizer",
            )
        spec = json.loads(backend.to_str())
        kinds.append((spec["model"]["type"], json.dumps(spec["decoder"], sort_keys=True)))
    if kinds[0] != kinds[1]:
        raise UserError(
            FIELD,
            f"cuts text in another way than the target ({kinds[0][0]} against {kinds[1][0]}, or "
            "other spelling of spaces)",
            action="use a draft with the target's tokenizer, or one trimmed from it",
        )
