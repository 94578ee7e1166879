"""Answers with a student that is one ONNX file; needs onnxruntime, tokenizers and numpy alone.

    python run.py model.onnx "a gripping and moving film" "dull from the first minute"
    python run.py model.onnx < texts.txt                # a text a line

Prints label, probability and text of each, tab-separated.
"""

from __future__ import annotations

import json
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer


class Answer(NamedTuple):
    """The label, and the probability of each."""

    label: str
    probabilities: dict[str, float]


class Student:
    """Tokenizer and labels are in the file's metadata."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        metadata = self._session.get_modelmeta().custom_metadata_map
        if not {"student.json", "tokenizer.json"} <= set(metadata):
            raise SystemExit(
                f"{path}: has no tokenizer inside; make it with compress.formats: [onnx-mobile]"
            )
        self._spec = json.loads(metadata["student.json"])
        self._tokenizer = Tokenizer.from_str(metadata["tokenizer.json"])
        self._tokenizer.enable_truncation(
            self._spec["max_tokens"], direction=self._spec["truncation_side"]
        )

    def classify(self, text: str) -> Answer:
        """One text a run: a batch would move the ranges of INT8."""
        found = self._tokenizer.encode(text)
        rows = {
            "input_ids": found.ids or [self._spec["pad_id"]],
            "attention_mask": found.attention_mask or [0],
            "token_type_ids": found.type_ids or [0],
        }
        feed = {name: np.array([rows[name]], dtype=np.int64) for name in self._spec["inputs"]}
        p = softmax(self._session.run(["logits"], feed)[0][0])
        labels = self._spec["labels"]
        return Answer(labels[int(p.argmax())], dict(zip(labels, p.tolist(), strict=True)))


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[C] to [C]."""
    e = np.exp(logits - logits.max())
    p: npt.NDArray[np.float32] = e / e.sum()
    return p


def main(arguments: list[str]) -> None:
    """The file, then texts."""
    if not arguments:
        raise SystemExit(__doc__)
    student = Student(arguments[0])
    for text in arguments[1:] or (line.rstrip("\n") for line in sys.stdin):
        label, probabilities = student.classify(text)
        print(f"{label}\t{probabilities[label]:.3f}\t{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
