"""A teacher for a text student of a trimmed vocabulary: its belief over the kept pieces alone.

A live teacher loses the rows of all other pieces, in memory; a cache, which is over the source's
whole tokenizer, is read by the ids that the pieces have there. Knows students, teachers and how
both cut texts; knows no loss.

Legend: V' kept pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.models.loading import Loaded
from stillhouse.models.restricted import Kept, check_width
from stillhouse.models.signals import accepts
from stillhouse.train.batches import Collator, Item, Rows, encode_chats
from stillhouse.train.embeddings import keep_rows
from stillhouse.train.objectives import check_one_tokenizer
from stillhouse.train.outputs import Batch, CausalReader, Needs
from stillhouse.train.pieces import cut_otherwise, ids_in, renumbered
from stillhouse.train.students import Reads, Student, reads_plain, student_reads, student_source
from stillhouse.train.teachers import LiveTeacher, TeacherSource

SAMPLE: Final = 64  # held-out examples whose mass is taken
BATCH: Final = 8
CHUNK: Final = 128  # targets whose whole vocabulary is held at a time
PROBE: Final = 32  # tokens that a teacher is asked before and after it lost rows
CLOSE: Final = 2**-5  # of the largest logit; what half precision leaves of equal numbers


class Whole(NamedTuple):
    """How a trimmed student's source cuts text, and its ids of the student's pieces."""

    reads: Reads
    kept: Kept

    def rows(self, examples: Sequence[Example]) -> Rows:
        """The examples as the source cuts them."""
        return encode_chats(examples, self.reads.tokenizer, self.reads.max_tokens).rows

    def renumbered(self, rows: Rows) -> Rows:
        """The student's rows under the source's ids."""
        return Rows(renumbered(rows.items, self.kept.ids))

    def differing(self, rows: Rows, examples: Sequence[Example]) -> list[int]:
        """Which examples the student cuts into other pieces than the source."""
        own, other = (
            [item["input_ids"] for item in part.items] for part in (rows, self.rows(examples))
        )
        return cut_otherwise(own, other, self.kept.ids)


def whole_of(recipe: Recipe, student: Student, teacher: str) -> Whole | None:
    """The tokenizer that a text student's was trimmed from; `None` where nothing was trimmed.

    Args:
        recipe: its `student`.
        student: as it was built.
        teacher: its weights, as `models.loading` reads sources.
    """
    if student.head != "text" or not student.plan.trimmed:
        return None
    source = student_source(recipe, teacher)
    reads = student_reads(recipe.student, source, plain=reads_plain(recipe))
    ids = ids_in(student.tokenizer, reads.tokenizer)
    assert ids is not None, "a trimmed tokenizer has pieces of its source alone"
    return Whole(reads, Kept(ids))


@torch.no_grad()
def mean_mass(
    source: TeacherSource,
    rows: Rows,
    kept: Kept,
    device: torch.device | str = "cpu",
    collate: Callable[[Sequence[Item]], Batch] | None = None,
) -> float:
    """Mean probability that a teacher gives to the kept pieces together, over the targets of some
    rows: of the first 64, which is enough for two digits.

    Args:
        source: over the whole vocabulary.
        rows: as `source` reads them.
        kept: the pieces.
        device: of the source.
        collate: makes a batch of rows; `None`: as chats are.
    """
    found: list[Tensor] = []
    collate = collate or Collator(0)
    for start in range(0, min(len(rows), SAMPLE), BATCH):
        items = [rows[n] for n in range(start, min(start + BATCH, len(rows), SAMPLE))]
        batch = {name: value.to(device) for name, value in collate(items).items()}
        signal = source.view(batch, Needs(last_hidden=True)).signal
        assert signal is not None
        for at in torch.split(torch.arange(signal.positions[0]), CHUNK):
            found.append(kept.mass(signal.select(at)).cpu())
    return float(torch.cat(found).mean())


def believe_kept(
    student: Student, loaded: Loaded, rows: Rows, held_out: Rows | None = None
) -> float | None:
    """Make a teacher read the student's ids and believe in the student's pieces alone, in place.

    What its head then says is softmax over the kept columns: p(v | v is kept). It is asked one text
    before and after, since a family may read token ids elsewhere than in its embedding.

    Args:
        student: text, with soft targets.
        loaded: the teacher, this caller's own.
        rows: what the student learns from.
        held_out: what it is watched on.

    Returns:
        `mean_mass` on what is held out; `None` without it, or where nothing was trimmed.

    Raises:
        UserError: other tokenizers, or a teacher that cannot be restricted.
    """
    if not student.plan.trimmed:
        check_one_tokenizer(student.tokenizer, loaded.tokenizer)
        return None
    ids = ids_in(student.tokenizer, loaded.tokenizer)
    if ids is None:
        own, other = student.tokenizer.get_vocab(), loaded.tokenizer.get_vocab()
        raise UserError(
            "train.alpha",
            f"soft targets for text need a student of its teacher's pieces, and {loaded.name} does "
            f"not have {len(own.keys() - other.keys()):,} of {len(own):,}",
            action="set train.alpha: 0, train.teachers with tokenizers: universal, or "
            "student.from: teacher",
        )
    kept = Kept(ids)
    model: Any = loaded.model
    check_width(kept, int(model.get_input_embeddings().weight.shape[0]), loaded.name)
    mass = None
    if held_out:
        whole = LiveTeacher(model, CausalReader())
        mass = mean_mass(whole, Rows(renumbered(held_out.items, ids)), kept, model.device)
    restrict(model, ids, rows[0]["input_ids"] if rows else (), loaded.name)
    return mass


def restrict(
    model: Any,
    ids: Tensor,  # [V']
    probe: Sequence[int],
    name: str,
) -> None:
    """Take from a language model, in place, all rows but `ids`.

    Args:
        model: on any device; it is asked without dropout.
        ids: of the rows that stay, in their new order.
        probe: a text under the new numbers, which is asked before and after; empty: it is not.
        name: of the model, for people.

    Raises:
        UserError: it says something else afterwards.
    """
    training = model.training
    model.eval()
    asked = torch.tensor(probe[:PROBE], device=model.device)[None] if len(probe) else None
    before = None if asked is None else _said(model, ids.to(asked.device)[asked], name)
    keep_rows(model, ids.tolist())
    if before is not None and asked is not None:
        _check_same(before[..., ids.to(before.device)], _said(model, asked, name), name)
    model.train(training)


@torch.no_grad()
def _said(model: Any, ids: Tensor, name: str) -> Tensor:
    """Logits [1, T, V] of one text."""
    extra = {"use_cache": False} if "use_cache" in accepts(model) else {}
    try:
        said: Tensor = model(input_ids=ids, **extra).logits
    except (RuntimeError, IndexError):  # a table of the vocabulary that kept all of its rows
        raise _elsewhere(name) from None
    return said.float()


def _check_same(before: Tensor, after: Tensor, name: str) -> None:
    if after.shape == before.shape:
        limit = CLOSE * float(before.abs().max())
        if bool(((after - before).abs() <= limit).all()):
            return
    raise _elsewhere(name)


def _elsewhere(name: str) -> UserError:
    return UserError(
        "student.vocabulary",
        f"{name} reads token ids elsewhere than in its embedding, so pieces cannot be left out",
        action="set vocabulary: full, or take another teacher",
    )
