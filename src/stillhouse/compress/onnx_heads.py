"""What exporting to ONNX must know of a student's head: who loads it, reads it, and answers.

The one table by which the ONNX files of label and tag students differ. Knows readers of torch and
of onnxruntime; no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stillhouse.core.errors import UserError
from stillhouse.core.heads import Head
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, Task
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import Loaded, load_classifier, load_tagger
from stillhouse.models.tag_student import Tagger

EXTRA: Final = "onnx"
NEEDED_FOR: Final = "a student in ONNX"


class TorchReader(Protocol):
    """Reads texts with the weights that are exported; see `ClassifierReader`."""

    longest: int
    takes: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits."""

    def read(self, texts: Sequence[str]) -> Any:
        """One forward pass."""


class Found(NamedTuple):
    """What texts came to: `tokens` must be equal whoever reads, `log_p` (nats) nearly so."""

    tokens: Any
    log_p: npt.NDArray[np.float32]


class Way(NamedTuple):
    """How students of a head are exported."""

    head: Head
    load: Callable[..., Loaded]
    reader: Callable[[Loaded], TorchReader]
    runtime: tuple[str, str]  # module and class that read the file
    axes: Mapping[int, str]  # of the logits, those that are left open
    found: Callable[[Any], Found]  # of what either reader reads
    more: Callable[[Any], dict[str, Any]]  # that student.json says of the torch reader

    def opened(self, folder: Any) -> Any:
        """The reader of a file that was written: `OnnxReader` or `OnnxTagger`."""
        module, name = self.runtime
        return getattr(require(module, EXTRA, NEEDED_FOR), name)(folder)


def way_of(task: Task) -> Way:
    """The way of the students that answer a task without writing.

    Raises:
        UserError: no such student answers it.
    """
    if isinstance(task, ClassificationTask):
        return _LABEL
    if isinstance(task, ExtractionTask):
        return _TAGS
    raise UserError(
        "compress.formats", "onnx needs a label student or a tag student", value=task.kind
    )


def _labels_found(read: Any) -> Found:
    return Found(list(read.tokens), np.asarray(read.log_p))


def _tags_found(read: Any) -> Found:
    where = [(one.tokens, one.offsets) for one in read]
    return Found(where, np.concatenate([one.log_p for one in read]))


_LABEL: Final = Way(
    "label",
    load_classifier,
    ClassifierReader,
    ("stillhouse.models.onnx_student", "OnnxReader"),
    {0: "batch"},
    _labels_found,
    lambda _: {},
)
_TAGS: Final = Way(
    "tags",
    load_tagger,
    Tagger,
    ("stillhouse.models.onnx_tags", "OnnxTagger"),
    {0: "batch", 1: "length"},
    _tags_found,
    lambda reader: {"words": reader.words},
)
