"""One window against a reference: every test, corrected together, and what they say.

Pure: no clock, no file. The caller keeps `DriftReport.persistence` between windows.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.core.errors import DataError
from stillhouse.core.loop_drift import DriftSection
from stillhouse.monitor.drift_records import Canary, DriftReport, Embed, Observation, Persistence


def detect(
    reference: Sequence[Observation],
    window: Sequence[Observation],
    settings: DriftSection | None = None,
    *,
    embed: Embed | None = None,
    teacher_canaries: Sequence[Canary] = (),
    student_canaries: Sequence[Canary] = (),
    persistence: Persistence | None = None,
    seed: int = 0,
) -> DriftReport:
    """What changed between reference and window, with its cause.

    Args:
        embed: texts to unit vectors; without it, inputs are compared by length and language only.
        teacher_canaries: frozen prompts that the teacher was asked again. Empty: not asked now.
        student_canaries: likewise of the student.
        persistence: of the last report; None at the first window.
        seed: of draws and permutations.

    Raises:
        DataError: the reference is empty.
        MissingExtraError: `settings.streams` without the extra `monitor`.
    """
    settings = settings or DriftSection()
    if not reference:
        raise DataError(
            "reference", "holds no requests", action="name a run folder or an earlier window"
        )
    raise NotImplementedError
