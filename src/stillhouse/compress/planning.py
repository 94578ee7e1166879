"""What a compress stage will do, and what is refused before anything is paid for.

Knows the recipe and which packages are installed; makes nothing.
"""

from __future__ import annotations

from pathlib import Path

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.optional import pip_line, require
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_compress import (
    CALIBRATED,
    INT8,
    CompressSection,
    extra_of,
    fitting,
    installed,
)


def section_of(recipe: Recipe) -> CompressSection:
    """The recipe's section, else the defaults."""
    return recipe.compress or CompressSection()


def learns_grid(recipe: Recipe) -> bool:
    """Whether the student is distilled further where an INT8 form falls below its gate."""
    section = section_of(recipe)
    wanted = set(section.wanted(recipe.student.head))
    return section.quantization_aware == "auto" and bool(wanted & set(INT8))


def check_compress(recipe: Recipe) -> None:
    """Refuse, before anything is paid, what cannot be made on this machine.

    Raises:
        MissingExtraError: a format's extra is not installed, or, where none is named, that of none.
        UserError: the file of calibration texts is not there, cannot be read or is empty.
    """
    section = section_of(recipe)
    head = recipe.student.head
    if section.formats is None and not section.wanted(head):
        extra = extra_of(fitting(head)[0])
        raise MissingExtraError(
            f"the {extra} extra",
            f"is not installed and compressing a {head} student needs it",
            action=pip_line(extra),
        )
    for name in section.formats or ():
        if not installed(name):
            raise MissingExtraError(
                f"the {extra_of(name)} extra",
                f"is not installed and compress.formats: {name} needs it",
                action=pip_line(extra_of(name)),
            )
    if section.calibration is None:
        return
    if not Path(section.calibration).is_file():
        raise UserError("compress.calibration", "there is no such file", value=section.calibration)
    if CALIBRATED & set(section.wanted(head)):
        reading = require("stillhouse.compress.calibration", "train", "compress.calibration")
        reading.texts_of_file(recipe.task, Path(section.calibration))


def compress_notes(recipe: Recipe) -> list[str]:
    """What a plan says of the stage: it asks no teacher and costs no answer."""
    section = recipe.compress
    if section is None:
        return []
    head = recipe.student.head
    wanted = ", ".join(section.wanted(head)) or "nothing: its extra is not installed"
    missing = [one for one in fitting(head) if not installed(one)]
    lines = [
        f"compress makes {wanted} of the student after it is evaluated, and gates each again: "
        f"within {100 * section.margin_student:g} points of the float student, at least "
        f"{section.min_speedup:g}x its speed; no teacher is asked"
    ]
    if learns_grid(recipe):
        lines.append(
            "where INT8 falls below its gate, the student is distilled further, one epoch with "
            "rounded weights, and gated again"
        )
    if missing:
        lines.append(f"{', '.join(missing)} cannot be made here; {pip_line(extra_of(missing[0]))}")
    return lines
