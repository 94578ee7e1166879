"""One shared label student, with a last layer of its own for each owner that has an adapter.

Owners are tenants, or users by their pseudonym. All texts are read once by the shared student; an
adapter adds its own logits to the shared ones. Who has none, or none that its guard let pass, gets
the shared answer. Knows heads and the index of adapters; not how an adapter was learned.

Shapes: N texts, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stillhouse.core.errors import UserError
from stillhouse.models.adapter_files import (
    By,
    delta_path,
    forgotten_users,
    owner_key,
    read_index,
)
from stillhouse.models.head_weights import Floats, HeadStudent, HeadWeights, load_head


class Personal(NamedTuple):
    """Answers to texts. `adapted`: whether an adapter had a part in it."""

    labels: list[str]
    log_p: npt.NDArray[np.float64]  # [N, C] nats
    adapted: list[bool]


def personal_log_p(
    shared: Floats, features: Floats, deltas: Sequence[HeadWeights | None]
) -> npt.NDArray[np.float64]:
    """Log-probabilities with each text's own adapter. [N, C] nats

    softmax(x + c) = softmax(x), so what an adapter adds to the logits may be added to shared
    log-probabilities as well. A text without an adapter keeps its shared row as it is.

    Args:
        shared: logits or log-probabilities of the shared student. [N, C]
        features: what its last layer reads. [N, H]
        deltas: N adapters; `None`: the text has none.
    """
    found = np.asarray(shared, dtype=np.float64).copy()
    rows: dict[int, list[int]] = {}
    for row, delta in enumerate(deltas):
        if delta is not None:
            rows.setdefault(id(delta), []).append(row)
    for own in rows.values():
        delta = deltas[own[0]]
        assert delta is not None
        added = found[own] + delta.logits(features[own])
        shifted = added - added.max(-1, keepdims=True)
        found[own] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


class PersonalStudent:
    """See the module.

    Args:
        student: the shared one.
        labels: in the order of its classes.
        deltas: what each owner's adapter adds to its last layer.

    Raises:
        UserError: an adapter of another shape.
    """

    def __init__(
        self,
        student: HeadStudent,
        labels: Sequence[str],
        deltas: Mapping[str, HeadWeights],
        by: By = "tenant",
    ) -> None:
        self._student, self._labels, self._by = student, tuple(labels), by
        for owner, delta in deltas.items():
            if delta.weight.shape != student.head.weight.shape:
                raise UserError(
                    "adapter",
                    f"is of the shape {delta.weight.shape}, the student's last layer of "
                    f"{student.head.weight.shape}",
                    value=owner.partition("\n")[0],
                    action="refine again: stillhouse online",
                )
        self._deltas = dict(deltas)

    def answer(
        self, texts: Sequence[str], tenants: Sequence[str], users: Sequence[str | None]
    ) -> Personal:
        """The likeliest label of each text, with the belief over all.

        Args:
            users: pseudonyms; `None`: not known.
        """
        if not texts:
            return Personal([], np.zeros((0, len(self._labels))), [])
        read = self._student.read(texts)
        owners = [owner_key(*one, self._by) for one in zip(tenants, users, strict=True)]
        deltas = [None if one is None else self._deltas.get(one) for one in owners]
        log_p = personal_log_p(read.log_p, read.features, deltas)
        return Personal(
            [self._labels[at] for at in log_p.argmax(-1)],
            log_p,
            [one is not None for one in deltas],
        )


def open_personal(root: Path, student: HeadStudent, labels: Sequence[str]) -> PersonalStudent:
    """The adapters of FOLDER/TASK/online beside the shared student that they were judged with;
    beside any other, none. One whose numbers are gone is not used.

    Raises:
        UserError: the index or an adapter was changed, or cannot be read.
    """
    index = read_index(root)
    if index is None:
        return PersonalStudent(student, labels, {})
    entries = index.of(student.head.digest())
    if entries is None:
        return PersonalStudent(student, labels, {}, index.by)
    gone = {owner_key(one.user.tenant, one.user.whose, index.by) for one in forgotten_users(root)}
    deltas = {
        one.owner: load_head(delta_path(root, one.delta), one.delta)
        for one in entries
        if one.owner not in gone and delta_path(root, one.delta).exists()
    }
    return PersonalStudent(student, labels, deltas, index.by)
