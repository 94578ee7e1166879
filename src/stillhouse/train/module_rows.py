"""Rows for any torch module: tensors held whole, or a dataset asked item by item.

Accepts a tensor of inputs, (inputs, labels), a mapping of named tensors, and any sequence or torch
dataset of such items. Knows tensors and names; knows no loss.

Legend: N rows, B batch, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from stillhouse.core.errors import UserError
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.batches import Item, Rows
from stillhouse.train.readers import INPUTS, LABELS
from stillhouse.train.teachers import BELIEFS

_OURS: Final = (INPUTS, LABELS, BELIEFS)


class TensorRows(Rows):
    """Named tensors whose first dimension is the row. Batches are cut from them at once."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        super().__init__([])
        self.columns = dict(columns)
        self._count = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Item:
        return {name: column[0] for name, column in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Item:
        """A whole batch; torch's loader asks for it where a dataset has this."""
        asked = torch.as_tensor(indices)
        fills = asked < 0  # see `Rows`
        chosen = torch.where(fills, -1 - asked, asked)
        batch = {name: column[chosen] for name, column in self.columns.items()}
        if bool(fills.any()):
            batch[LABELS][fills] = IGNORE_INDEX
        return batch

    @property
    def lengths(self) -> list[int]:
        """All rows are equally long."""
        return [1] * self._count


class ItemRows(Rows):
    """A dataset of the user's, asked for each item when it is needed; `more` are columns added to
    it."""

    def __init__(self, data: Any, more: Mapping[str, Tensor] | None = None) -> None:
        super().__init__([])
        self.data, self.more = data, dict(more or {})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        real = index if index >= 0 else -1 - index  # see `Rows`
        item = named(self.data[real]) | {name: col[real] for name, col in self.more.items()}
        if index < 0:
            item[LABELS] = torch.full_like(torch.as_tensor(item[LABELS]), IGNORE_INDEX)
        return item

    @property
    def lengths(self) -> list[int]:
        """All rows are equally long."""
        return [1] * len(self.data)


class ModuleCollator:
    """Stacks items; a batch that was cut whole stays as it is."""

    def __call__(self, items: Item | Sequence[Item]) -> Item:
        if isinstance(items, Mapping):
            return items
        try:
            batch: Item = default_collate([dict(item) for item in items])
        except RuntimeError as error:
            raise UserError(
                "data",
                f"items of unequal shapes do not make a batch ({error})",
                action="bring all to one shape",
            ) from None
        return batch


def named(item: Any) -> dict[str, Any]:
    """An item with names: a tensor is `inputs`, a pair is `inputs` and `labels`."""
    if isinstance(item, Mapping):
        return dict(item)
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise UserError(
                "data",
                f"an item of {len(item)} parts has no names",
                action="give (inputs, labels), or a mapping from names to tensors",
            )
        return dict(zip((INPUTS, LABELS), item, strict=True))
    return {INPUTS: item}


def module_rows(data: Any, model: nn.Module, where: str) -> Rows:
    """Rows of what the user gave.

    Args:
        data: see the module.
        model: the student; its forward pass says which names it takes.
        where: how the data is called in errors.

    Raises:
        UserError: no rows, columns of unequal lengths, or a name that the model does not take.
    """
    whole = isinstance(data, Tensor) or (
        isinstance(data, tuple | list) and len(data) == 2 and _are_tensors(data)
    )
    if whole or (isinstance(data, Mapping) and _are_tensors(data.values())):
        columns = named(data)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(where, "holds columns of unequal lengths", value=lengths)
        rows: Rows = TensorRows(columns)
    else:
        rows = ItemRows(data)
    if not len(rows):
        raise UserError(where, "is empty", action="give at least one row")
    _check_names(rows[0], model, where)
    return rows


def _check_names(item: Item, model: nn.Module, where: str) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [name for name in item if name not in (LABELS, BELIEFS)]
    unknown = [] if free else [name for name in names if name not in (*takes, INPUTS)]
    if unknown or not names:
        raise UserError(
            where,
            f"holds keys that a {type(model).__name__} does not take"
            if unknown
            else "holds no inputs",
            value=unknown or list(item),
            action=f"keys are {', '.join(_OURS)}, or instead of inputs {', '.join(takes)}",
        )


def _are_tensors(values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)
