"""What is checked before the first step of a library run: that student, teacher and data fit.

One row goes through both models. Knows models and rows; knows no loss.

Legend: C classes or vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.models.signals import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    SparseSignal,
    TeacherSignal,
)
from stillhouse.train.batches import Rows
from stillhouse.train.kinds import Kind, one_target_a_sample
from stillhouse.train.masking import MaskedRows
from stillhouse.train.module_rows import TensorRows
from stillhouse.train.outputs import Batch, Needs, Reader
from stillhouse.train.readers import LABELS
from stillhouse.train.teacher_forms import read_along
from stillhouse.train.teachers import BELIEFS, TeacherSource

RUN_FILE: Final = "distiller.json"


def claim(folder: Path, facts: Mapping[str, object]) -> None:
    """One folder is one run: what decides its weights is written down and compared.

    Raises:
        RunFolderError: the folder holds a run with other facts; says which.
    """
    facts = json.loads(json.dumps(facts))
    path = folder / RUN_FILE
    if not path.exists():
        write_json(path, facts)
        return
    before: Mapping[str, object] = read_json(path)
    other = sorted(key for key in facts if before.get(key) != facts[key])
    if other:
        raise RunFolderError(
            f"{folder}: holds a run with other {', '.join(other)}; give another folder, or "
            "remove this one to start anew"
        )


def check_ids(rows: Rows, student: Any, where: str) -> None:
    """Token ids are the student's.

    Raises:
        UserError: a row holds an id that is past the student's vocabulary.
    """
    known = int(student.get_input_embeddings().num_embeddings)
    for number, item in enumerate(rows.items):
        most = max(item["input_ids"], default=0)
        if most >= known:
            raise UserError(
                f"{where} row {number}",
                f"holds token id {most:,}, and the student knows {known:,}",
                action="tokenise with the student's tokenizer",
            )


def check_teacher_ids(rows: Rows, kind: Kind, source: TeacherSource, where: str) -> None:
    """Token ids, and those that masks put in their place, are known to each teacher that reads
    them; of an encoder-decoder also those it is to write.

    Raises:
        UserError: one is past a teacher's vocabulary.
    """
    read = ("input_ids", LABELS) if kind == "seq2seq" else ("input_ids",)
    most = [max((max(item[name], default=0) for name in read), default=0) for item in rows.items]
    highest = max(most, default=0)
    what = f"{where} row {most.index(highest)}" if most else where
    if isinstance(rows, MaskedRows) and rows.highest > highest:
        highest, what = rows.highest, f"{where}, once masked,"
    for model in read_along(source):
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
        known = getattr(embedding, "num_embeddings", None)
        if known is not None and highest >= known:
            raise UserError(
                "teacher",
                f"knows {known:,} token ids, and {what} holds {highest:,}",
                action="give a teacher with the student's tokenizer; one with another can only "
                "teach by its answers (alpha=0)",
            )


def check_targets(
    rows: Rows,
    collator: Callable[[Any], Batch],
    counter: Callable[[Batch], Tensor],
    where: str,
) -> None:
    """Some row has a target; rows are looked at up to the first that has.

    Raises:
        UserError: none has.
    """
    if not any(int(counter(collator([rows[number]]))[0]) for number in range(len(rows))):
        raise UserError(
            where,
            f"has no target in any of its {len(rows):,} rows",
            action=f"give labels that are not {IGNORE_INDEX}",
        )


def check_labelled(rows: Rows, has_teacher: bool, where: str) -> None:
    """There are labels, or a teacher to answer instead.

    Raises:
        UserError: neither.
    """
    if LABELS not in rows[0] and not has_teacher:
        raise UserError(
            where,
            "has no labels, and there is no teacher to answer instead",
            action="give labels, or a teacher",
        )


def check_labels(rows: Rows, kind: Kind, classes: int, where: str) -> None:
    """Labels are numbers of classes, where they can be looked at without asking for every item.

    Raises:
        UserError: a label that is no whole number, or outside [0, C).
    """
    if isinstance(rows, TensorRows):
        labels: Any = rows.columns.get(LABELS)
    elif rows.items and kind == "classifier":
        labels = torch.tensor([item[LABELS] for item in rows.items])
    else:
        labels = torch.as_tensor(rows[0][LABELS]).reshape(-1)
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise UserError(where, "labels must be whole numbers", value=str(labels.dtype))
    wrong = labels[(labels < 0) | (labels >= classes)]
    if labels.ndim > 1 or not one_target_a_sample(kind):
        wrong = wrong[wrong != IGNORE_INDEX]
    if len(wrong):
        raise UserError(
            where,
            f"labels must be within 0 and {classes - 1}, as the student has {classes} outputs",
            value=int(wrong[0]),
        )


def check_fit(
    student: Any,
    reader: Reader,
    source: TeacherSource | None,
    first: Mapping[str, Any],
    *,
    mapping: Tensor | None,
    alpha: float,
    device: torch.device,
) -> int:
    """Send one row through student and teacher; returns the number of outputs C.

    `source` is as it comes, before `mapping` (the teacher's id for each of the student's).

    Raises:
        UserError: outputs that cannot be compared, or no belief though alpha is above 0.
    """
    batch = {name: torch.as_tensor(value).to(device) for name, value in first.items()}
    was_training = student.training
    student.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        logits = reader.read(student, batch, Needs(logits=True)).class_logits()
        signal = None if source is None else source.view(batch, Needs(logits=True)).signal
    student.train(was_training)
    classes = logits.shape[-1]
    if alpha > 0 and signal is None:
        raise UserError(
            "teacher",
            "soft targets need a teacher, and there is neither one nor a belief in the data",
            action=f"give teacher=, {BELIEFS} in the data, or alpha=0",
        )
    width = _width(signal)
    if mapping is not None:
        _check_mapping(mapping, classes, width)
    elif width is not None and width != classes:
        raise UserError(
            "mapping",
            f"the student has {classes:,} outputs and the teacher {width:,}",
            action="give mapping=[teacher's id for each of the student's]; where the wider one is "
            f"only padded, narrow it to {min(width, classes):,} outputs",
        )
    if isinstance(signal, SparseSignal | SampledSignal) and int(signal.token_ids.max()) >= classes:
        raise UserError(
            "teacher", f"believes in ids past the student's {classes:,} outputs",
            value=int(signal.token_ids.max()),
        )  # fmt: skip
    return classes


def _check_mapping(mapping: Tensor, classes: int, teacher_outputs: int | None) -> None:
    """One id of the teacher's for each of the student's."""
    if mapping.shape != (classes,):
        raise UserError(
            "mapping", f"needs {classes:,} ids, one for each output of the student",
            value=list(mapping.shape),
        )  # fmt: skip
    if teacher_outputs is not None and len(mapping):
        low, high = int(mapping.min()), int(mapping.max())
        if low < 0 or high >= teacher_outputs:
            raise UserError(
                "mapping",
                f"holds ids outside the teacher's {teacher_outputs:,}",
                value=low if low < 0 else high,
            )


def _width(signal: TeacherSignal | None) -> int | None:
    match signal:
        case DenseSignal(logits):
            return logits.shape[-1]
        case HiddenSignal(_, head):
            return head.weight.shape[0]
        case _:
            return None
