"""A label student that answers from one ExecuTorch program, text by text.

Tokenizer and labels are constant methods of the program (`compress.executorch_export` writes them).
The runtime comes with torch tensors, so torch is imported; transformers is not. ExecuTorch takes as
many threads as there are cores, whatever OMP_NUM_THREADS says. Knows a program and a task.

Shapes: T tokens, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from executorch.runtime import Runtime
from pydantic import Field, ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from stillhouse.core.artefact import REMAKE, Artefact
from stillhouse.core.errors import UserError
from stillhouse.core.records import Record
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.completer import ModelInfo
from stillhouse.models.label_completer import LabelCompleter, classification

PROGRAM: Final = "model.pte"
TOKENIZER: Final = "tokenizer_json"  # methods of the program
SPEC: Final = "student_json"
REVISION_DIGITS: Final = 32


class ExecutorchSpec(Record):
    """What `student_json` says. Texts are cut to `max_tokens`, special tokens included."""

    labels: tuple[str, ...] = Field(min_length=2)
    max_tokens: int = Field(ge=1)
    truncation_side: Literal["left", "right"] = "right"
    parameters: int = Field(ge=1)
    name: str


class ExecutorchRead(NamedTuple):
    """What texts came to."""

    log_p: Tensor  # [B, C] nats
    tokens: list[int]  # of each text, after cutting


class ExecutorchReader:
    """Texts through a program: tokenizer, ExecuTorch, log-softmax.

    Raises:
        UserError: no program with a tokenizer inside, or one that this runtime cannot load.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._program: Any = Runtime.get().load_program(path)
            self.spec = ExecutorchSpec.model_validate(json.loads(self._text(SPEC)))
            tokenizer = self._text(TOKENIZER)
            self._forward: Any = self._program.load_method("forward")
        except (RuntimeError, ValueError, ValidationError) as error:
            raise UserError(
                str(path),
                f"is no program with a tokenizer inside that ExecuTorch can load: {error}",
                action=REMAKE,
            ) from None
        self._tokenizer, self._measuring = Tokenizer.from_str(tokenizer), _plain(tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.spec.max_tokens, direction=self.spec.truncation_side)

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return len(self._measuring.encode(text).ids)

    def read(self, texts: Sequence[str]) -> ExecutorchRead:
        """One run of the program for each text: it takes no padding."""
        encoded = [one.ids for one in self._tokenizer.encode_batch(list(texts))]
        # The runtime owns its outputs, and writes over them.
        rows = [self._forward.execute([torch.tensor([ids])])[0].clone() for ids in encoded]
        return ExecutorchRead(torch.cat(rows).log_softmax(-1), [len(ids) for ids in encoded])

    def _text(self, method: str) -> str:
        (found,) = self._program.load_method(method).execute([])
        return bytes(found.numpy()).decode()


class ExecutorchStudent(LabelCompleter):
    """A sequence classifier as a program, which reads `task.input_text(query)`.

    Raises:
        UserError: its labels are not the task's, in order.
    """

    def __init__(
        self,
        reader: ExecutorchReader,
        task: ClassificationTask,
        batch_size: int,
        artefact: Artefact,
    ) -> None:
        spec = reader.spec
        if spec.labels != task.labels:
            raise UserError(
                f"{spec.name} labels",
                f"are {list(spec.labels)}, the task's labels are {list(task.labels)}",
                action="compress a student of this task",
            )
        info = ModelInfo(
            name=spec.name,
            revision=artefact.files[PROGRAM][:REVISION_DIGITS],
            parameters=spec.parameters,
            size_bytes=artefact.size_bytes,
            gives_label_logprobs=True,
            local=True,
            takes_seed=False,
            notes={
                "head": "label",
                "device": "cpu",
                "dtype": artefact.precision,
                "runtime": "executorch",
            },
        )
        super().__init__(reader, task, info, batch_size)


def open_executorch_student(
    folder: Path,
    artefact: Artefact,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    batch_size: int,
) -> ExecutorchStudent:
    """Open an artefact of kind `executorch` that was read, and so verified, before.

    Raises:
        UserError: not a classification task, other labels, or a file that cannot be read.
    """
    own = classification(task)
    return ExecutorchStudent(ExecutorchReader(folder / PROGRAM), own, batch_size, artefact=artefact)


def _plain(spec: str) -> Tokenizer:
    found: Tokenizer = Tokenizer.from_str(spec)
    found.no_padding()
    found.no_truncation()
    return found
