"""A label student that answers each tenant or user with their own adapter, where there is one.

A batch is read once by the shared student; each request's own adapter is added to its own row, so
that who else is in the batch changes nothing. Knows requests and adapters' files; not how adapters
are learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.completer import ModelInfo
from stillhouse.models.head_weights import HeadStudent, open_head_student
from stillhouse.models.label_completer import label_completion
from stillhouse.models.live_adapters import BROKEN, SHARED, LiveAdapters
from stillhouse.models.personal_student import personal_log_p
from stillhouse.serve.student_answers import Voice, label_answer
from stillhouse.serve.student_frames import ADAPTER, TROUBLE, Frame, framed
from stillhouse.serve.student_labels import Around, LabelReading, Opening
from stillhouse.serve.student_requests import Asked


class PersonalBrain(LabelReading):
    """See the module.

    Args:
        student: the shared one.
        root: FOLDER/TASK/online.
    """

    def __init__(
        self,
        opening: Opening,
        task: ClassificationTask,
        voice: Voice,
        student: HeadStudent,
        root: Path,
    ) -> None:
        super().__init__(opening, voice)
        self._student, self._labels = student, task
        self._adapters = LiveAdapters(root, student.head)
        self._info = ModelInfo(name=opening.model, revision=SHARED, gives_label_logprobs=True)

    def answer(self, jobs: Sequence[Frame], around: Around) -> None:
        """See `Brain`."""
        self._adapters.refresh()
        super().answer(jobs, around)
        for text in self._adapters.troubles():
            around.send(framed(TROUBLE, 0, text.encode("utf-8", "replace")))

    def _said(self, asked: Sequence[Asked]) -> Sequence[Completion]:
        task = self._labels
        read = self._student.read([task.input_text(one.query) for one in asked])
        found = [self._adapters.find(one.asker) for one in asked]
        log_p = personal_log_p(read.log_p, read.features, [one.delta for one in found])
        return [
            label_completion(
                one.query,
                task.labels,
                log_p[row].tolist(),
                read.tokens[row],
                replace(self._info, revision=found[row].name),
            )
            for row, one in enumerate(asked)
        ]

    def _frames(self, number: int, asked: Asked, said: Completion) -> bytes:
        voice, name = self.voice, said.revision or SHARED
        if name not in (SHARED, BROKEN):
            voice = voice._replace(fingerprint=f"{voice.fingerprint}.{name}")
        note = framed(ADAPTER, number, name.encode("ascii"))
        return note + label_answer(number, asked, said, voice)


def open_personal_brain(opening: Opening, voice: Voice) -> PersonalBrain:
    """Open a label student with its adapters.

    Raises:
        UserError: it writes texts, is of a form whose last layer cannot be taken out, or not of
            this task.
        MissingExtraError: its runtime is not installed.
    """
    task, root = opening.task, opening.adapters
    assert root is not None
    if opening.head != "label" or not isinstance(task, ClassificationTask):
        raise UserError("adapters", "are of label students alone", action="leave adapters out")
    student = open_head_student(opening.folder, task, opening.max_batch, opening.device)
    return PersonalBrain(opening, task, voice, student, root)
