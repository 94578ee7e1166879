"""loop.yaml: reading it. Paths in it are seen from its own folder. Knows no gateway."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stillhouse.core.errors import RecipeError
from stillhouse.core.loop_sections import LoopTask
from stillhouse.core.recipe_file import parse_as, read_raw
from stillhouse.core.recipe_section import Section


class LoopFile(Section):
    """The whole file."""

    gateway: str = Field(description="The gateway.yaml whose log is read.")
    registry: str = Field(default="registry", description="Folder of the students.")
    folder: str = Field(default="loop", description="Folder of what watching and retraining keep.")
    tasks: dict[str, LoopTask] = Field(min_length=1, description="By the gateway's task names.")


def load_loop(path: Path) -> LoopFile:
    """Read it; relative paths become relative to its folder.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value that does not fit.
    """
    if not path.exists():
        raise RecipeError(str(path), "there is no such loop.yaml", action="see docs/monitor.md")
    found = parse_as(LoopFile, read_raw(path, ()), str(path))
    base = path.parent
    tasks = {
        name: task.model_copy(
            update={
                "recipe": str(base / task.recipe),
                "run": None if task.run is None else str(base / task.run),
            }
        )
        for name, task in found.tasks.items()
    }
    return found.model_copy(
        update={
            "gateway": str(base / found.gateway),
            "registry": str(base / found.registry),
            "folder": str(base / found.folder),
            "tasks": tasks,
        }
    )
