"""What training must know of each head: its class in transformers, its classes, who reads it.

The one table by which students of the three heads differ. Knows tasks and transformers' classes;
knows no source and no objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from peft import TaskType
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from stillhouse.core.heads import Head
from stillhouse.core.tagging import tag_fields, tag_names
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task
from stillhouse.models.loading import Loaded, load_causal_lm, load_classifier, load_tagger
from stillhouse.train.outputs import (
    Batch,
    CausalReader,
    LabelReader,
    Reader,
    TagReader,
    count,
    count_tags,
)


class Way(NamedTuple):
    """How students of a head are loaded, read and adapted."""

    auto: Any  # transformers' class that loads them
    trained: Callable[..., Loaded]  # opens one with its trained head
    reader: Reader
    counter: Callable[[Batch], Tensor]  # `Counts` of their batches
    adapters: TaskType


WAYS: Final[Mapping[Head, Way]] = {
    "label": Way(
        AutoModelForSequenceClassification,
        load_classifier,
        LabelReader(),
        count,
        TaskType.SEQ_CLS,
    ),
    "text": Way(AutoModelForCausalLM, load_causal_lm, CausalReader(), count, TaskType.CAUSAL_LM),
    "tags": Way(
        AutoModelForTokenClassification,
        load_tagger,
        TagReader(),
        count_tags,
        TaskType.TOKEN_CLS,
    ),
}


def classes_of(head: Head, task: Task) -> tuple[str, ...]:
    """What a student's head tells apart, in the order of its outputs; nothing of one that writes.

    A label student has the task's labels, a tag student the tags of its fields.
    """
    if head == "label":
        assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
        return task.labels
    if head == "tags":
        assert isinstance(task, ExtractionTask), "recipes pair head tags with extraction"
        return tag_names(tag_fields(task.json_schema))
    return ()
