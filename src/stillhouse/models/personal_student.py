"""One shared label student, with a last layer of its own for each owner that has an adapter.

Owners are tenants, or users by their pseudonym. All texts are read once by the shared student; an
adapter adds its own logits to the shared ones. Who has none, or none that its guard let pass, gets
the shared answer. Knows heads and the index of adapters; not how an adapter was learned.

Shapes: N texts, H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.records import Record
from stillhouse.models.head_weights import HeadStudent, HeadWeights, load_head

INDEX: Final = "adapters.json"
FOLDER: Final = "adapters"
By = Literal["tenant", "user"]


class AdapterEntry(Record):
    """An adapter that may answer."""

    owner: str = Field(description="As `owner_key` says.")
    delta: str = Field(description="SHA-256 of its numbers.")


class AdapterIndex(Record):
    """adapters.json: whose adapters there are for one shared student."""

    by: By = "tenant"
    shared: str = Field(description="SHA-256 of the shared last layer that they add to.")
    adapters: tuple[AdapterEntry, ...] = ()


class Personal(NamedTuple):
    """Answers to texts. `adapted`: whether an adapter had a part in it."""

    labels: list[str]
    log_p: npt.NDArray[np.float64]  # [N, C] nats
    adapted: list[bool]


def owner_key(tenant: str, whose: str | None, by: By) -> str | None:
    """Whose adapter answers; `None` where nobody's can. `whose`: the user's pseudonym."""
    if by == "tenant":
        return tenant
    return None if whose is None else f"{tenant}\n{whose}"


def delta_path(root: Path, digest: str) -> Path:
    """Where an adapter's numbers lie."""
    return root / FOLDER / f"{digest}.safetensors"


def write_index(root: Path, index: AdapterIndex) -> None:
    """Replace the index at once."""
    write_json(root / INDEX, index.model_dump(mode="json"))


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
        features = self._student.features(texts)
        logits = self._student.head.logits(features).astype(np.float64)
        rows: dict[str, list[int]] = {}
        for row, (tenant, user) in enumerate(zip(tenants, users, strict=True)):
            owner = owner_key(tenant, user, self._by)
            if owner is not None and owner in self._deltas:
                rows.setdefault(owner, []).append(row)
        for owner, own in rows.items():
            logits[own] += self._deltas[owner].logits(features[own])
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        adapted = {row for own in rows.values() for row in own}
        return Personal(
            [self._labels[at] for at in log_p.argmax(-1)],
            log_p,
            [row in adapted for row in range(len(texts))],
        )


def open_personal(root: Path, student: HeadStudent, labels: Sequence[str]) -> PersonalStudent:
    """The adapters of FOLDER/TASK/online beside the shared student that they were judged with;
    beside any other, none. One whose numbers are gone is not used.

    Raises:
        UserError: the index or an adapter was changed, or cannot be read.
    """
    path = root / INDEX
    if not path.exists():
        return PersonalStudent(student, labels, {})
    try:
        index = AdapterIndex.model_validate(read_json(path))
    except (RunFolderError, ValidationError) as error:
        raise UserError(
            str(path), f"is damaged: {str(error).splitlines()[0]}", action="refine again"
        ) from None
    if index.shared != student.head.digest():
        return PersonalStudent(student, labels, {}, index.by)
    deltas = {
        one.owner: load_head(delta_path(root, one.delta), one.delta)
        for one in index.adapters
        if delta_path(root, one.delta).exists()
    }
    return PersonalStudent(student, labels, deltas, index.by)
