"""What lies in a student's folder: its head and its task, without opening it.

Knows the notes that `run` and `compress` leave; loads no weights and imports no runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from stillhouse.core.artefact import ARTEFACT, is_artefact
from stillhouse.core.errors import RunFolderError, UserError
from stillhouse.core.heads import head_of_architecture
from stillhouse.core.jsonl import read_json
from stillhouse.core.tagging import tagging_problem
from stillhouse.core.tasks import ExtractionTask, Task
from stillhouse.serve.gateway_sections import StudentSection

RECIPE: Final = "recipe.json"  # that a run keeps
CONFIG: Final = "config.json"
HIGHEST: Final = 4  # folders that are looked through for the run's recipe
_TASK: Final[TypeAdapter[Task]] = TypeAdapter(Task)


class Notes(NamedTuple):
    """What a folder says of itself; `None` where it does not."""

    head: str | None
    task: Task | None


def setup_of(name: str, section: StudentSection) -> Mapping[str, Any]:
    """What a process is told to open, as JSON holds it.

    Raises:
        UserError: there is no such folder, or nothing says what head or task the student has.
    """
    where = f"upstreams.{name}"
    notes = notes_of(section.path, f"{where}.path")
    head, task = section.head or notes.head, section.task or notes.task
    if task is None:
        raise UserError(
            f"{where}.task",
            "is missing: neither the student's folder nor a run around it says what it is",
            action="copy the task section of its recipe here",
        )
    if head is None:
        raise UserError(f"{where}.head", "is missing", action="write label, text or tags")
    if head == "label" and task.kind != "classification":
        raise UserError(f"{where}.task", "of a label student is a classification", value=task.kind)
    if head == "tags":
        _check_tags(task, f"{where}.task")
    if section.adapters is not None and head != "label":
        raise UserError(
            f"{where}.adapters",
            "are of label students alone",
            action="leave adapters out",
        )
    return {
        "path": str(section.path.resolve()),
        "head": head,
        "task": task.model_dump(mode="json"),
        "model": section.model,
        "max_batch": section.max_batch,
        "max_wait_ms": section.max_wait_ms,
        "max_tokens": section.max_tokens,
        "device": section.device,
        "adapters": None if section.adapters is None else str(section.adapters.resolve()),
    }


def _check_tags(task: Task, field: str) -> None:
    if not isinstance(task, ExtractionTask):
        raise UserError(field, "of a tag student is an extraction", value=task.kind)
    problem = tagging_problem(task.json_schema)
    if problem is not None:
        raise UserError(field, f"of a tag student has strings to copy: {problem}")


def notes_of(folder: Path, field: str) -> Notes:
    """Read the notes of a student's folder and of the run that it lies in.

    Raises:
        UserError: there is no such folder, or it holds no student.
    """
    if not folder.is_dir():
        raise UserError(field, "there is no such folder", value=str(folder))
    head: str | None = None
    task: Task | None = None
    if is_artefact(folder):
        raw = _json(folder / ARTEFACT, field)
        head = str(raw.get("head"))
        task = None if raw.get("task") is None else _task(raw["task"], folder / ARTEFACT, field)
    elif (folder / CONFIG).is_file():
        names = _json(folder / CONFIG, field).get("architectures")
        first = str(names[0]) if isinstance(names, list) and names else ""
        head = head_of_architecture(first)
    else:
        raise UserError(
            field,
            f"holds no student: neither {ARTEFACT} nor {CONFIG}",
            value=str(folder),
            action="give a folder such as runs/NAME/compress/best or runs/NAME/train/student",
        )
    if task is None:
        task = _task_of_run(folder, field)
    return Notes(head, task)


def _task_of_run(folder: Path, field: str) -> Task | None:
    for place in _above(folder):
        path = place / RECIPE
        if path.is_file():
            raw = _json(path, field).get("task")
            return None if raw is None else _task(raw, path, field)
    return None


def _above(folder: Path) -> Iterator[Path]:
    """The folders that the student lies in, as it is called and as it is."""
    for start in (folder.absolute(), folder.resolve()):
        yield from list(start.parents)[:HIGHEST]


def _task(raw: object, path: Path, field: str) -> Task:
    try:
        return _TASK.validate_python(raw)
    except ValidationError as error:
        raise UserError(field, f"{path.name} is damaged: {error.errors()[0]['msg']}") from None


def _json(path: Path, field: str) -> dict[str, object]:
    try:
        return read_json(path)
    except (RunFolderError, OSError) as error:
        raise UserError(field, f"cannot be read: {error}") from None
