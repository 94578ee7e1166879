"""Who reads along while a text student trains: `train.teachers` opened, and the rows they need.

Knows the recipe's section, model folders and servers; knows no loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.optional import late
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_readers import OWN, ReaderSection, ReadersSection
from stillhouse.core.records import Example
from stillhouse.models.loading import Loaded, load_causal_lm, locate
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.batches import DOMAIN, Rows
from stillhouse.train.cached_teacher import CachedSignals
from stillhouse.train.ensemble import EnsembleSource, Member
from stillhouse.train.features_wiring import Learned
from stillhouse.train.kept import believe_kept
from stillhouse.train.other_tokenizer import with_other_tokens
from stillhouse.train.outputs import CausalReader
from stillhouse.train.packing import check_packing
from stillhouse.train.students import Student
from stillhouse.train.teachers import LiveTeacher, TeacherSource


class Reading(NamedTuple):
    """How the teacher is read: alpha of this student, its weights as `models.loading` reads
    sources, and on what."""

    alpha: float
    teacher: str
    device: torch.device
    bf16: bool
    learned: Learned
    signals: CachedSignals | None = None  # in the teacher's place
    held_out: Rows | None = None
    # hears of each live teacher of a trimmed student how much of its belief is on the kept pieces
    told: Callable[[str, float], None] | None = None
    reference: str | None = None  # of a selection of tokens, as `models.loading` reads sources

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the teacher's weights."""
        return torch.bfloat16 if self.bf16 else torch.float32


def open_reader(member: ReaderSection, reading: Reading) -> Loaded:
    """A local teacher, ready to read along.

    Raises:
        UserError: as `load_causal_lm`.
    """
    source = reading.teacher if member.model == OWN else member.model
    return load_causal_lm(
        source,
        device=str(reading.device),
        dtype=reading.dtype,
    )


def open_reference(reading: Reading, student: Student) -> Loaded:
    """The model of the student's size that says which tokens can be learnt.

    Raises:
        UserError: it cannot be loaded, or reads other tokens than the student.
    """
    assert reading.reference is not None
    loaded = load_causal_lm(reading.reference, device=str(reading.device), dtype=reading.dtype)
    if loaded.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise UserError(
            "train.selective.reference",
            f"has {len(loaded.tokenizer):,} tokens that are not the student's "
            f"{len(student.tokenizer):,}",
            value=reading.reference,
            action="use distil, or a student trained in the same way",
        )
    return loaded


class Opened(NamedTuple):
    """The teachers as one source, the model that writes where one must, and how many ids, from 0,
    the tokenizer has and the student and all teachers whose weights are here read."""

    source: TeacherSource
    writer: Any
    ids: int


def open_readers(
    readers: ReadersSection, student: Student, reading: Reading, *, packing: bool = False
) -> Opened:
    """All members over the student's tokenizer, as one source; over its pieces alone where they
    were trimmed.

    Raises:
        UserError: weights, tokenizer or key that do not fit or are not there.
    """
    numbers = _numbers(readers)
    members: list[Member] = []
    writer: Any = None
    ids = min(1 + max(student.tokenizer.get_vocab().values()), _rows_read(student.model))
    for section in readers.members:
        if section.local:
            loaded = open_reader(section, reading)
            mass = believe_kept(student, loaded, reading.learned.rows, reading.held_out)
            if mass is not None and reading.told is not None:
                reading.told(section.model, mass)
            if packing:
                pad = int(student.tokenizer.pad_token_id)
                check_packing(loaded.model, reading.learned.rows, pad)
            source: TeacherSource = LiveTeacher(loaded.model, CausalReader())
            writer = loaded.model if writer is None else writer
            ids = min(ids, _rows_read(loaded.model))
        else:
            source = _server(section, student.tokenizer, int(student.model.config.vocab_size))
        own = None
        if section.domains is not None:
            own = frozenset(numbers[name] for name in section.domains)
        members.append(Member(source, section.weight, own))
    if len(members) == 1 and members[0].domains is None:
        return Opened(members[0].source, writer, ids)
    width = int(student.model.config.vocab_size)
    return Opened(EnsembleSource(members, readers.combine, width), writer, ids)


def _rows_read(model: Any) -> int:
    """Ids that a model has an embedding of."""
    return int(model.get_input_embeddings().weight.shape[0])


def _server(
    section: ReaderSection, tokenizer: PreTrainedTokenizerBase, width: int
) -> TeacherSource:
    variable = section.api_key_env
    key = os.environ.get(variable, "").strip() if variable else "none"
    if not key:
        raise UserError(
            str(variable),
            f"is not set in the environment and {section.model} needs a key",
            action=f"run: export {variable}=YOUR_KEY",
        )
    source: TeacherSource = late("stillhouse.train.remote_teacher").open_server(
        section, key, width, tokenizer
    )
    return source


def rows_for_readers(
    recipe: Recipe, student: Student, teacher: str, rows: Rows, examples: Sequence[Example]
) -> Rows:
    """The rows with what `train.teachers` needs of them; as they are without it.

    Raises:
        UserError: an example that no teacher reads.
    """
    readers = recipe.train.teachers
    if readers is None:
        return rows
    if readers.tokenizers == "universal":
        model = readers.members[0].model
        folder = str(locate(teacher if model == OWN else model).folder)
        with quiet_transformers():
            other = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return with_other_tokens(rows, examples, student.tokenizer, other, student.plan.max_tokens)
    numbers = _numbers(readers)
    if not numbers:
        return rows
    anybody = any(member.domains is None for member in readers.members)
    for example in examples:
        if example.task not in numbers and not anybody:
            raise UserError(
                "train.teachers",
                f"no teacher reads examples of task {example.task!r} ({example.id})",
                action="name the task in a member's domains, or leave one member without domains",
            )
    return Rows(
        [
            {**row, DOMAIN: numbers.get(example.task, -1)}
            for row, example in zip(rows.items, examples, strict=True)
        ]
    )


def _numbers(readers: ReadersSection) -> dict[str, int]:
    """A number for each domain that is named."""
    names = {name for member in readers.members for name in member.domains or ()}
    return {name: number for number, name in enumerate(sorted(names))}
