"""A tag student that answers from an ONNX file by onnxruntime, without torch and transformers.

Its folder holds the files that a label student's does (`onnx_student`); the labels of
`student.json` are its tags. Gives what `TagStudent` gives of the float weights. Knows files and a
task; does not know how the graph was written or with how many bits.

Shapes: B batch, T tokens, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse.core.artefact import Artefact
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask
from stillhouse.core.words import FIRST
from stillhouse.models.onnx_student import SPEC, Ids, OnnxReader, onnx_info
from stillhouse.models.tag_completer import TagCompleter, TagsRead, extraction, tags_read
from stillhouse.models.tag_path import Floats


class OnnxTagger:
    """Texts through a token classifier's graph.

    Args:
        folder, threads: as `OnnxReader`.

    Raises:
        UserError: as `OnnxReader`.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._reader = OnnxReader(folder, threads)
        self.spec = self._reader.spec
        self.classes, self.words = self.spec.labels, self.spec.words or FIRST

    def measure(self, text: str) -> int:
        """Tokens of a text, not cut. May be called while another thread reads."""
        return self._reader.measure(text)

    def inputs(self, texts: Sequence[str]) -> dict[str, Ids]:
        """The graph's inputs by name, [B, T] each, padded to the longest."""
        return self._reader.inputs(texts)

    def log_p(self, feed: dict[str, Ids]) -> Floats:
        """[B, T, C] nats, of the graph's inputs by name."""
        return self._reader.log_p(feed)

    def read(self, texts: Sequence[str]) -> list[TagsRead]:
        """A batch, side by side (`OnnxReader`)."""
        return [one for piece in self._reader.side_by_side(texts, self._piece) for one in piece]

    def _piece(self, texts: Sequence[str], session: Any) -> list[TagsRead]:
        encoded = self._reader.encode(texts)
        log_p = self._reader.log_p(self._reader.feed(encoded), session)
        return [
            tags_read(
                log_p[row][self._reader.place(len(one.ids))], one.offsets, one.special_tokens_mask
            )
            for row, one in enumerate(encoded)
        ]


def open_onnx_tags(
    folder: Path,
    artefact: Artefact,
    task: ClassificationTask | ExtractionTask | GenerationTask,
    batch_size: int,
    threads: int = 0,
) -> TagCompleter:
    """Open an artefact of kind `onnx` and head `tags` that was read, and so verified, before.

    Args:
        folder, artefact, batch_size, threads: as `onnx_student.open_onnx_student`.
        task: must have the student's fields, in their order.

    Raises:
        UserError: not an extraction task, other fields, or a file that cannot be read.
    """
    own, reader = extraction(task), OnnxTagger(folder, threads)
    info = onnx_info(folder, artefact, reader.spec)
    return TagCompleter(reader, own, info, batch_size, f"{folder / SPEC} labels")
