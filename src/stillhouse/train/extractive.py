"""Whether answers are copied from their texts, so that tags can say them.

Asked of the labelled set before anything is paid, and of the teacher's answers before they are
learned. Knows texts and schemas; no tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import LabelledQuery
from stillhouse.core.tagging import TagField, tag_fields, values_of
from stillhouse.core.tasks import ExtractionTask
from stillhouse.train.alignment import Wanted, align

MOST_LOST: Final = 0.25  # of all values
MOST_LOST_OF_FIELD: Final = 0.5
FEWEST: Final = 20  # values from which on a share is judged


class Answered(NamedTuple):
    """A text and the answer to it, as JSON."""

    text: str
    answer: str


def check_extractive(task: ExtractionTask, answered: Iterable[Answered], where: str) -> None:
    """Refuse answers of which more than a quarter of the values, or half of those of a field, do
    not stand in their texts: tags would never give them.

    Args:
        task: its schema has no `tagging_problem`.
        answered: texts with answers; an answer that the task cannot read says nothing.
        where: what these are, for the message.

    Raises:
        UserError: names the field, or `student.head` where no field alone is to blame.
    """
    fields = tag_fields(task.json_schema)
    values, lost = _counted(task, fields, answered)
    for number, one in enumerate(fields):
        if values[number] >= FEWEST and lost[number] > MOST_LOST_OF_FIELD * values[number]:
            raise UserError(
                f"task.json_schema.properties.{one.name}",
                f"{lost[number]:,} of its {values[number]:,} values in {where} are not in their "
                "texts, and student.head: tags copies",
                action="use student.head: text, or leave the field out",
            )
    if values.total() >= FEWEST and lost.total() > MOST_LOST * values.total():
        raise UserError(
            "student.head",
            f"{lost.total():,} of {values.total():,} values in {where} are not in their texts, and "
            "tags copy",
            value="tags",
            action="use head: text, or have values as they stand in the text",
        )


def check_labelled(recipe: Recipe, traffic: Path) -> None:
    """`check_extractive` of the labelled set, where a recipe with a tag student has one.

    Args:
        traffic: the finished traffic stage's folder.

    Raises:
        UserError: see there.
    """
    path = traffic / "labelled.jsonl"
    task = recipe.task
    if recipe.student.head != "tags" or not isinstance(task, ExtractionTask) or not path.exists():
        return
    said = [
        Answered(task.input_text(one), one.reference) for one in read_records(path, LabelledQuery)
    ]
    check_extractive(task, said, "the labelled set")


def _counted(
    task: ExtractionTask, fields: tuple[TagField, ...], answered: Iterable[Answered]
) -> tuple[Counter[int], Counter[int]]:
    """Values of each field, and how many of them are not in their texts."""
    values, lost = Counter[int](), Counter[int]()
    for text, said in answered:
        answer = task.parse(said).value
        if not isinstance(answer, dict):
            continue
        found = values_of(fields, answer)
        places = align(text, [Wanted(one.text, fields[one.field].many) for one in found])
        for value, place in zip(found, places, strict=True):
            values[value.field] += 1
            lost[value.field] += place is None
    return values, lost
