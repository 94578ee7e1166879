"""A label student that answers from an ONNX file by onnxruntime, without torch and transformers.

Its folder holds `model.onnx`, `tokenizer.json` and `student.json` (labels, inputs, how texts are
cut and padded), or `model.onnx` alone with the other two in its metadata under their names. Gives
what `LabelStudent` gives of the float weights: the same cutting, the same batches,
log-probabilities over the task's labels. Tag students (`onnx_tags`) are read from the same files.
Knows files and a task; does not know how the graph was written or with how many bits.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime
from pydantic import Field, ValidationError
from tokenizers import Tokenizer

from stillhouse.core.artefact import Artefact
from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.jsonl import read_json
from stillhouse.core.machine import cores
from stillhouse.core.records import Record
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.models.completer import ModelInfo
from stillhouse.models.label_completer import LabelCompleter, classification

MODEL: Final = "model.onnx"
TOKENIZER: Final = "tokenizer.json"
SPEC: Final = "student.json"
OUTPUT: Final = "logits"
THREADS: Final = "OMP_NUM_THREADS"
PIECE: Final = 8  # texts a run at most: what they write between layers stays near the core
REVISION_DIGITS: Final = 32

Side = Literal["left", "right"]
T = TypeVar("T")
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class OnnxSpec(Record):
    """What `student.json` says: all that answering needs beside graph and tokenizer.

    `labels` are in the order of the logits, of a tag student its tags; `inputs` name the graph's
    inputs; texts are cut to `max_tokens` at `truncation_side`, special tokens included. `words` is
    the rule by which a tag student was taught where words are (`core.words`); absent: the first.
    """

    labels: tuple[str, ...] = Field(min_length=2)
    inputs: tuple[Literal["input_ids", "attention_mask", "token_type_ids"], ...]
    max_tokens: int = Field(ge=1)
    pad_id: int = Field(ge=0)
    padding_side: Side = "right"
    truncation_side: Side = "right"
    parameters: int = Field(ge=1)
    name: str
    words: int | None = None


class OnnxRead(NamedTuple):
    """What a batch of texts came to."""

    log_p: Floats  # [B, C] nats
    tokens: list[int]  # of each text, after cutting


class OnnxFed(NamedTuple):
    """A batch of texts as the graph reads it."""

    feed: dict[str, Ids]  # [B, T] each
    tokens: list[int]  # of each text, after cutting


class OnnxReader:
    """Texts through a graph: tokenizer, padding, onnxruntime, log-softmax.

    A text alone is computed by all threads together. Several are read in pieces, a thread each:
    products as small as a student's gain little from being split.

    Args:
        folder: with the three files, or the one; nothing is verified here (`core.artefact`).
        threads: how many compute; 0: `OMP_NUM_THREADS` where it is set, else one a core.
        session: of the folder's graph, where it is open already.

    Raises:
        UserError: a file that cannot be read as what it should be.
    """

    def __init__(self, folder: Path, threads: int = 0, session: Any = None) -> None:
        many = threads or _given_threads() or cores()
        self._session = open_session(folder / MODEL, many) if session is None else session
        # Both of the file that was verified: it may be another one later.
        self._alone, self._pool = self._session, None
        if many > 1 and session is None:
            self._alone = open_session(folder / MODEL, 1)
            self._pool = ThreadPoolExecutor(many, "onnx")
        self._threads = 1 if self._pool is None else many
        inside = {} if (folder / SPEC).is_file() else metadata(self._session)
        self.spec = _spec(folder / SPEC, inside.get(SPEC))
        self._tokenizer = _tokenizer(folder / TOKENIZER, inside.get(TOKENIZER))
        self._tokenizer.enable_truncation(self.spec.max_tokens, direction=self.spec.truncation_side)
        # Of its own, and not cut: measures while another thread reads.
        self._measuring = _tokenizer(folder / TOKENIZER, inside.get(TOKENIZER))

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return len(self._measuring.encode(text).ids)

    def inputs(self, texts: Sequence[str]) -> dict[str, Ids]:
        """The graph's inputs by name, [B, T] each, padded to the longest."""
        return self.fed(texts).feed

    def fed(self, texts: Sequence[str]) -> OnnxFed:
        """The same, with each text's tokens."""
        encoded = self.encode(texts)
        return OnnxFed(self.feed(encoded), [len(one.ids) for one in encoded])

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """What the tokenizer makes of each text, cut and not padded: `tokenizers.Encoding`."""
        found: list[Any] = self._tokenizer.encode_batch(list(texts))
        return found

    def place(self, tokens: int) -> slice:
        """Where a text of so many tokens stands in its row, beside the padding."""
        return slice(0, tokens) if self.spec.padding_side == "right" else slice(-tokens, None)

    def feed(self, encoded: Sequence[Any]) -> dict[str, Ids]:
        """The graph's inputs of texts that were encoded."""
        longest = max(1, *(len(one.ids) for one in encoded))
        feed = {
            "input_ids": np.full((len(encoded), longest), self.spec.pad_id, dtype=np.int64),
            "attention_mask": np.zeros((len(encoded), longest), dtype=np.int64),
            "token_type_ids": np.zeros((len(encoded), longest), dtype=np.int64),
        }
        for row, one in enumerate(encoded):
            at = self.place(len(one.ids))
            if one.ids:
                feed["input_ids"][row, at] = one.ids
                feed["attention_mask"][row, at] = 1
                feed["token_type_ids"][row, at] = one.type_ids
        return {name: feed[name] for name in self.spec.inputs}

    def log_p(self, feed: Mapping[str, Ids], session: Any = None) -> Floats:
        """Nats, of the graph's inputs by name: [B, C], of a token classifier [B, T, C].

        Args:
            session: one that `side_by_side` gave.
        """
        return log_softmax((session or self._session).run([OUTPUT], dict(feed))[0])

    def side_by_side(
        self, texts: Sequence[str], read: Callable[[Sequence[str], Any], T]
    ) -> list[T]:
        """What `read` makes of each piece of a batch, and of the session that runs it, in order.

        Pieces are of neighbours: texts of about one length had best be neighbours.
        """
        if len(texts) == 1:
            return [read(texts, self._session)]
        size = min(PIECE, -(-len(texts) // self._threads))
        pieces = [texts[at : at + size] for at in range(0, len(texts), size)]
        alone = repeat(self._alone)
        return list((map if self._pool is None else self._pool.map)(read, pieces, alone))

    def read(self, texts: Sequence[str]) -> OnnxRead:
        """A batch, side by side."""

        def one(piece: Sequence[str], session: Any) -> OnnxRead:
            feed, tokens = self.fed(piece)
            return OnnxRead(self.log_p(feed, session), tokens)

        found = self.side_by_side(texts, one)
        return OnnxRead(
            np.concatenate([read.log_p for read in found]),
            [count for read in found for count in read.tokens],
        )


class OnnxStudent(LabelCompleter):
    """A sequence classifier in ONNX that reads `task.input_text(query)`.

    Raises:
        UserError: its labels are not the task's, in order.
    """

    def __init__(
        self,
        reader: OnnxReader,
        task: ClassificationTask,
        batch_size: int,
        info: ModelInfo,
    ) -> None:
        spec = reader.spec
        if spec.labels != task.labels:
            raise UserError(
                f"{spec.name} labels",
                f"are {list(spec.labels)}, the task's labels are {list(task.labels)}",
                action="compress a student of this task",
            )
        super().__init__(reader, task, info, batch_size)


def open_onnx_student(
    folder: Path,
    artefact: Artefact,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    batch_size: int,
    threads: int = 0,
) -> OnnxStudent:
    """Open an artefact of kind `onnx` that was read, and so verified, before.

    Args:
        folder: the artefact's.
        artefact: what `read_artefact` gave of it.
        task: must have the student's labels, in their order.
        batch_size: queries a run at most.
        threads: as `OnnxReader`.

    Raises:
        UserError: not a classification task, other labels, or a file that cannot be read.
    """
    own, reader = classification(task), OnnxReader(folder, threads)
    return OnnxStudent(reader, own, batch_size, onnx_info(folder, artefact, reader.spec))


def onnx_info(folder: Path, artefact: Artefact, spec: OnnxSpec) -> ModelInfo:
    """What is known of the student in an artefact of kind `onnx`."""
    return ModelInfo(
        name=spec.name,
        revision=artefact.files[MODEL][:REVISION_DIGITS],
        parameters=spec.parameters,
        size_bytes=(folder / MODEL).stat().st_size,
        gives_label_logprobs=artefact.head == "label",
        gives_logprobs=artefact.head != "label",
        local=True,
        takes_seed=False,
        notes={
            "head": artefact.head,
            "device": "cpu",
            "dtype": artefact.precision,
            "runtime": "onnxruntime",
        },
    )


def open_session(path: Path, threads: int = 0, graph: bytes | None = None) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        graph: what to run in the file's stead.

    Raises:
        UserError: the file is no graph that this onnxruntime can run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads or _given_threads()
    try:
        source = str(path) if graph is None else graph
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base
        raise UserError(
            str(path),
            f"onnxruntime {onnxruntime.__version__} cannot run it: {error}",
            action="make it again with: stillhouse compress",
        ) from None


def metadata(session: Any) -> dict[str, str]:
    """The file's own notes (ONNX metadata_props)."""
    return dict(session.get_modelmeta().custom_metadata_map)


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis, nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _given_threads() -> int:
    """torch obeys this variable and onnxruntime does not; runs side by side should not differ."""
    given = os.environ.get(THREADS, "")
    return int(given) if given.isdecimal() else 0


def _spec(path: Path, inside: str | None) -> OnnxSpec:
    try:
        if inside is not None:
            return OnnxSpec.model_validate_json(inside)
        return OnnxSpec.model_validate(read_json(path))
    except (RunFolderError, OSError, ValidationError) as error:
        raise UserError(str(path), f"cannot be read: {error}") from None


def _tokenizer(path: Path, inside: str | None) -> Tokenizer:
    try:
        found: Tokenizer = (
            Tokenizer.from_file(str(path)) if inside is None else Tokenizer.from_str(inside)
        )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(str(path), f"is no tokenizer: {error}") from None
    found.no_padding()
    found.no_truncation()
    return found
