"""A trained student as a completer: a classifier, a language model, or a token classifier.

Its answers come with its belief over the labels, so that fidelity and calibration are measured as
for any white-box model. Knows model folders and tasks; does not know how the student was trained.
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.artefact import is_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.artefact_student import open_artefact
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.completer import Completer
from stillhouse.models.hf_completer import HfCompleter
from stillhouse.models.label_completer import LabelCompleter, classification
from stillhouse.models.loading import Loaded, load_causal_lm, load_classifier, load_tagger
from stillhouse.models.tag_completer import extraction
from stillhouse.models.tag_student import TagStudent


def open_student(
    folder: Path,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    head: str,
    batch_size: int,
    device: str = "auto",
) -> Completer:
    """Open a student folder: head `label` is a sequence classifier, `text` a language model, `tags`
    a token classifier.

    A folder with an `artefact.json` (`core.artefact`) is opened by its own runtime.

    Raises:
        UserError: the folder cannot be loaded, or its labels are not the task's, in order.
        MissingExtraError: an artefact's runtime is not installed.
    """
    if is_artefact(folder):
        return open_artefact(folder, task, head, batch_size, device)
    return open_weights(folder, task, head, batch_size, device)


def open_weights(
    folder: Path,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    head: str,
    batch_size: int,
    device: str = "auto",
) -> Completer:
    """Open a folder of transformers' own weights, whatever else lies in it.

    Raises:
        UserError: as `open_student`.
    """
    if head == "text":
        return HfCompleter(load_causal_lm(str(folder), device=device), batch_size, cuts=True)
    if head == "tags":
        own = extraction(task)
        return TagStudent(load_tagger(str(folder), device=device), own, batch_size)
    own_labels = classification(task)
    return LabelStudent(load_classifier(str(folder), device=device), own_labels, batch_size)


class LabelStudent(LabelCompleter):
    """A sequence classifier that reads `task.input_text(query)`.

    Inputs longer than the tokenizer's `model_max_length` or the model's positions are cut, as they
    were in training.

    Raises:
        UserError: `id2label` of the model is not the task's labels in the task's order.
    """

    def __init__(self, loaded: Loaded, task: ClassificationTask, batch_size: int) -> None:
        reader = ClassifierReader(loaded)
        super().__init__(reader, task, loaded.info("label"), batch_size)
        if reader.classes != task.labels:
            raise UserError(
                f"{loaded.name} id2label",
                f"holds {list(reader.classes)}, the task's labels are {list(task.labels)}",
                action="train the student again for this task",
            )
