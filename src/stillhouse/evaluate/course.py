"""How a training went, as the train stage judged it: convergence.json, read and drawn.

Knows that file and plots; judges nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.evaluate.plots import Series, line_chart

CONVERGENCE: Final = "convergence.json"
TITLES: Final = {
    "rate_too_high": "Learning rate too high",
    "copies_mistakes": "Copies the teacher's mistakes",
    "divergence_growth": "Divergence grew",
    "too_little_data": "Too little data",
    "not_finished": "Still improving at the end",
    "capacity_ceiling": "Student too small",
    "soft_targets": "Temperature does not fit",
}


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CourseVerdict(_Read):
    """What explains the course best, and what to do next."""

    state: str
    sentence: str
    actions: tuple[str, ...] = ()


class CourseFinding(_Read):
    """One known cause; `found` is null where it cannot be told."""

    name: str
    found: bool | None
    seen: str

    @property
    def title(self) -> str:
        """The cause in words."""
        return TITLES.get(self.name, self.name)

    @property
    def answer(self) -> str:
        """Yes, no, or not known."""
        return "not known" if self.found is None else "yes" if self.found else "no"


class CourseLook(_Read):
    """One look at the held-out set; null where it was not measured."""

    step: int
    agreement: float
    accuracy: float | None = None
    agreement_on_mistakes: float | None = None


class Course(_Read):
    """convergence.json."""

    verdict: CourseVerdict
    findings: tuple[CourseFinding, ...]
    looks: tuple[CourseLook, ...] = ()


class Chart(NamedTuple):
    """A drawing and its caption."""

    title: str
    svg: Markup


def read_course(folder: Path) -> Course | None:
    """The train stage's judgement; `None` where there is none.

    Raises:
        RunFolderError: it is damaged.
    """
    path = folder / CONVERGENCE
    if not path.exists():
        return None
    try:
        return Course.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None


def course_charts(course: Course | None) -> list[Chart]:
    """Accuracy beside agreement, where the truth of examples not trained on is known."""
    if course is None:
        return []
    known = [look for look in course.looks if look.accuracy is not None]
    if not known:
        return []
    title = "Accuracy on examples of known truth, and the teacher's mistakes that are copied"
    lines = (
        Series("accuracy", "student", [(look.step, look.accuracy or 0.0) for look in known]),
        Series("held-out agreement", "teacher", [(look.step, look.agreement) for look in known]),
        Series(
            "agreement where the teacher is wrong",
            "other",
            [
                (look.step, look.agreement_on_mistakes)
                for look in known
                if look.agreement_on_mistakes is not None
            ],
        ),
    )
    drawn = [line for line in lines if line.points]
    return [Chart(title, line_chart(title, drawn, "optimizer step", "share"))]
