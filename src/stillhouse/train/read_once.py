"""One pass of a teacher over rows whose inputs never change: its beliefs and its answers, kept.

For models that give one belief a sample. A run of many epochs then holds no teacher. Knows rows and
sources; knows no student.

Legend: N rows, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from stillhouse.core.errors import UserError
from stillhouse.models.signals import DenseSignal
from stillhouse.train.batches import Rows
from stillhouse.train.module_rows import ItemRows, TensorRows
from stillhouse.train.outputs import Needs
from stillhouse.train.teachers import TeacherSource


def read_once(
    source: TeacherSource,
    rows: Rows,
    collator: Callable[[Any], Any],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """The teacher's log-probabilities [N, C], float32, on the CPU.

    Raises:
        UserError: the source gives no whole belief.
    """
    found: list[Tensor] = []
    loader: DataLoader[Any] = DataLoader(rows, batch_size=batch_size, collate_fn=collator)
    for batch in loader:
        here = {name: value.to(device) for name, value in batch.items()}
        with torch.no_grad():
            signal = source.view(here, Needs(logits=True)).signal
        if not isinstance(signal, DenseSignal):
            raise UserError(
                "teacher", "gives no belief over all classes, so none can be kept",
                value=type(signal).__name__, action="use teacher_once=False, and give labels",
            )  # fmt: skip
        found.append(signal.logits.float().log_softmax(-1).cpu())
    return torch.cat(found)


def with_columns(rows: Rows, columns: Mapping[str, Tensor]) -> Rows:
    """The same rows with more columns; a column that is there already is replaced."""
    if isinstance(rows, TensorRows):
        return TensorRows({**rows.columns, **columns})
    if isinstance(rows, ItemRows):
        return ItemRows(rows.data, {**rows.more, **columns})
    return Rows(
        [
            {**item, **{name: _plain(column[n]) for name, column in columns.items()}}
            for n, item in enumerate(rows.items)
        ]
    )


def _plain(value: Tensor) -> Any:
    return value if value.ndim else int(value)
