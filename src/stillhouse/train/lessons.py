"""What a student of each head reads of the examples, and what it is to answer.

Knows recipes, examples and students; knows no objective.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.tasks import ClassificationTask, ExtractionTask
from stillhouse.train.batches import Encoded, encode_chats, encode_labels
from stillhouse.train.reading import rows_for_readers
from stillhouse.train.students import Student
from stillhouse.train.tag_rows import encode_tags


def texts_of(recipe: Recipe, examples: Sequence[Example]) -> list[str]:
    """What the student reads (and writes), to trim a vocabulary by."""
    if recipe.student.head != "text":
        return [recipe.task.input_text(example.to_query()) for example in examples]
    return [message.content for example in examples for message in example.messages]


def encoded(
    recipe: Recipe, student: Student, examples: Sequence[Example], alpha: float, teacher: str
) -> Encoded:
    """Examples as token ids and targets.

    Args:
        recipe: its task, and who reads along.
        student: its tokenizer cuts the texts.
        examples: with the answers that are learned.
        alpha: above 0, a text student's rows are prepared for its teachers too.
        teacher: the recipe's teacher, as `models.loading` reads sources.

    Raises:
        UserError: an example without a label of the task, or answers that no tags can say.
    """
    task, tokenizer, most = recipe.task, student.tokenizer, student.plan.max_tokens
    if student.head == "label":
        assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
        return encode_labels(examples, task, tokenizer, most)
    if student.head == "tags":
        assert isinstance(task, ExtractionTask), "recipes pair head tags with extraction"
        return encode_tags(examples, task, tokenizer, most)
    found = encode_chats(examples, tokenizer, most)
    if alpha == 0:
        return found
    rows = rows_for_readers(recipe, student, teacher, found.rows, examples)
    return found._replace(rows=rows)
