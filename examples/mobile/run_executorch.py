"""Answers with a student that is one ExecuTorch program; needs executorch, torch and tokenizers.

    python run_executorch.py model.pte "a gripping and moving film"

Prints label, probability and text of each, tab-separated.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from executorch.runtime import Runtime
from tokenizers import Tokenizer


class Student:
    """Tokenizer and labels are constant methods of the program."""

    def __init__(self, path: str) -> None:
        self._program = Runtime.get().load_program(path)
        spec: dict[str, Any] = json.loads(self._text("student_json"))
        self._labels = spec["labels"]
        self._tokenizer = Tokenizer.from_str(self._text("tokenizer_json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(spec["max_tokens"], direction=spec["truncation_side"])
        self._forward = self._program.load_method("forward")

    def _text(self, method: str) -> str:
        return bytes(self._program.load_method(method).execute([])[0].numpy()).decode()

    def classify(self, text: str) -> dict[str, float]:
        """The probability of each label."""
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        p = self._forward.execute([ids])[0].softmax(-1)[0].tolist()
        return dict(zip(self._labels, p, strict=True))


def main(arguments: list[str]) -> None:
    """The file, then texts."""
    if len(arguments) < 2:
        raise SystemExit(__doc__)
    student = Student(arguments[0])
    for text in arguments[1:]:
        found = student.classify(text)
        label = max(found, key=lambda one: found[one])
        print(f"{label}\t{found[label]:.3f}\t{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
