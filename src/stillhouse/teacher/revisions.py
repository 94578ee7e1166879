"""Which revisions of the teacher answered, and when the provider changed it.

A revision is what the answers themselves name: OpenAI's model and fingerprint of the backend, or
Anthropic's dated model. Fingerprints come and go between two requests; a change of the model is
what splits a data set. Knows revisions; does not know what an answer says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

from stillhouse.core.errors import TeacherError

_FINGERPRINT: Final = re.compile(r"@fp_[^@]*$")


def model_part(revision: str) -> str:
    """A revision without OpenAI's fingerprint of the backend."""
    return _FINGERPRINT.sub("", revision)


class Revisions:
    """Counts answers by revision.

    Args:
        model: the teacher's name, for what is said.
        stop: whether answers of two models are an error.
    """

    def __init__(self, model: str, *, stop: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.models: Counter[str] = Counter()  # without fingerprints
        self._model = model
        self._stop = stop

    def add(self, revisions: Iterable[str]) -> str | None:
        """Count answers; the line to say where one is of a model that was not seen before."""
        said: str | None = None
        for revision in revisions:
            model = model_part(revision)
            if self.models and model not in self.models:
                said = f"{self._model} now answers as {model}; before, as {self._so_far()}"
            self.counts[revision] += 1
            self.models[model] += 1
        return said

    def problem(self) -> TeacherError | None:
        """The error of answers of two models, where the recipe asks for one."""
        if not self._stop or len(self.models) < 2:
            return None
        return TeacherError(
            f"teacher.on_revision_change: {self._model} has answered as more than one model "
            f"({self._so_far()}); every answer is kept: name one dated model in teacher.model, or "
            "set teacher.on_revision_change: split and run the same command again"
        )

    def _so_far(self) -> str:
        return ", ".join(f"{model} ({count} answers)" for model, count in self.models.most_common())
