"""The students of a frontier as drafts of their teacher: points at the teacher's own quality.

Where the recipe has a `speculate` section, each text student's run ends with that stage; what it
found stands on the frontier beside the students, since its answers are the teacher's. Knows
finished variants and what their stages found; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stillhouse.core.money import usd_per_1k_queries
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.drafted import read_drafted
from stillhouse.evaluate.results import CandidateSpeed
from stillhouse.evaluate.studies import DraftedTeacher
from stillhouse.variants import Ran

STAGE: Final = "speculate"


def drafts_in(recipe: Recipe) -> dict[str, Any] | None:
    """The section that variants of a recipe keep: where the teacher itself is drafted for."""
    section = recipe.speculate
    if section is None or section.target != "teacher" or section.draft != "student":
        return None
    return section.model_dump(mode="json", by_alias=True)


def drafted_by(
    ran: Sequence[Ran], teacher: CandidateSpeed | None, usd_per_hour: float
) -> tuple[DraftedTeacher, ...]:
    """The teacher with each student as its draft, in the order of the students.

    Args:
        ran: finished variants.
        teacher: its speed, timed beside the students; latency is of one query at a time.
        usd_per_hour: the machine's price.

    Raises:
        RunFolderError: a stage's summary is missing or damaged.
    """
    found: list[DraftedTeacher] = []
    alone = None if teacher is None else teacher.latency_p50_ms
    for one in ran:
        if RunFolder(one.root).manifest(STAGE) is None:
            continue
        own = read_drafted(one.root / STAGE)
        speedup = None if own.speedup is None else own.speedup.estimate
        p50 = alone / speedup if alone and speedup else None
        found.append(
            DraftedTeacher(
                name=f"teacher, {one.variant.name} drafts",
                folder=f"{one.variant.name}/{STAGE}",
                runtime=own.runtime,
                length=own.length,
                acceptance=own.acceptance,
                speedup=own.speedup,
                lossless=own.lossless,
                faster=own.faster,
                latency_p50_ms=p50,
                usd_per_1k=None if p50 is None else usd_per_1k_queries(1000 / p50, usd_per_hour),
            )
        )
    return tuple(found)
