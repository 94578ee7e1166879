"""Which layer of the student is compared with which of the teacher. Knows two depths and a rule.

Layers count from 0, as `student.layers` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_features import LayeredTerm, LayerRule, SampleTerm, TermSection


class LayerPair(NamedTuple):
    """A student's layer and the teacher's that it is compared with."""

    student: int
    teacher: int


EMBEDDINGS: Final = LayerPair(-1, -1)  # what enters the first layers


def layer_pairs(
    layers: LayerRule | Sequence[tuple[int, int]],
    count: int | None,
    students: int,
    teachers: int,
    field: str = "train.terms",
) -> tuple[LayerPair, ...]:
    """The pairs of a rule, by the student's layer.

    Args:
        layers: `skip`: student layer i of n with the teacher's round((i + 1) * m / n) - 1 of m, so
            that the last meets the last (TinyBERT's uniform map for any two depths); `first` and
            `last`: `count` pairs from that end; else the pairs themselves.
        count: of `first` and `last`; `None`: as many as the shallower of the two has.
        students: the student's layers.
        teachers: the teacher's layers.
        field: named in errors.

    Raises:
        UserError: a layer that the student or the teacher does not have.
    """
    if not isinstance(layers, str):
        for pair in layers:
            if pair[0] >= students or pair[1] >= teachers or min(pair) < 0:
                raise UserError(
                    f"{field}.layers",
                    f"the student has layers 0 to {students - 1}, the teacher 0 to {teachers - 1}",
                    value=list(pair),
                    action="give [student, teacher] pairs in that range",
                )
        return tuple(LayerPair(*pair) for pair in sorted(layers))
    if layers == "skip":
        return tuple(
            LayerPair(i, max(0, (2 * (i + 1) * teachers + students) // (2 * students) - 1))
            for i in range(students)
        )
    most = min(students, teachers)
    count = most if count is None else count
    if count > most:
        raise UserError(
            f"{field}.count",
            f"the student has {students} layers, the teacher {teachers}",
            value=count,
            action=f"use at most {most}",
        )
    if layers == "first":
        return tuple(LayerPair(i, i) for i in range(count))
    return tuple(LayerPair(students - i, teachers - i) for i in range(count, 0, -1))


def check_layers(sections: Sequence[TermSection], students: int, teachers: int) -> None:
    """Refuse terms over layers that are not there.

    Args:
        sections: `train.terms`.
        students: the student's layers.
        teachers: the teacher's layers.

    Raises:
        UserError: as `layer_pairs`.
    """
    for number, section in enumerate(sections):
        field = f"train.terms.{number}"
        if isinstance(section, LayeredTerm):
            layer_pairs(section.layers, section.count, students, teachers, field)
        elif isinstance(section, SampleTerm) and section.layers is not None:
            layer_pairs((section.layers,), None, students, teachers, field)
