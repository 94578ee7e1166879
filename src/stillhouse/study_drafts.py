"""The students of a frontier as drafts of their teacher: points at the teacher's own quality.

Where the recipe has a `speculate` section, each text student's run ends with that stage; what it
found stands on the frontier beside the students, since its answers are the teacher's. Knows
finished variants and their speculate.json; measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from stillhouse.core.errors import RunFolderError
from stillhouse.core.jsonl import read_json
from stillhouse.core.money import usd_per_1k_queries
from stillhouse.core.optional import require
from stillhouse.core.recipe import Recipe
from stillhouse.core.runfolder import RunFolder
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
        RunFolderError: a speculate.json is missing or damaged.
    """
    found: list[DraftedTeacher] = []
    alone = None if teacher is None else teacher.latency_p50_ms
    for one in ran:
        if RunFolder(one.root).manifest(STAGE) is None:
            continue
        report = _report(one)
        best = report.best
        way = best.ways["draft"]
        speedup = None if way.speedup is None else way.speedup.estimate
        p50 = alone / speedup if alone and speedup else None
        acceptance = report.drafts["draft"].acceptance
        found.append(
            DraftedTeacher(
                name=f"teacher, {one.variant.name} drafts",
                folder=f"{one.variant.name}/{STAGE}",
                runtime=best.runtime,
                length=way.length,
                acceptance=None if acceptance is None else acceptance.rate,
                speedup=way.speedup,
                lossless=report.lossless,
                faster=report.faster,
                latency_p50_ms=p50,
                usd_per_1k=None if p50 is None else usd_per_1k_queries(1000 / p50, usd_per_hour),
            )
        )
    return tuple(found)


def _report(one: Ran) -> Any:
    module = require("stillhouse.compress.speculate_report", "train", "reading drafts' results")
    path = one.root / STAGE / "speculate.json"
    try:
        return module.SpeculateReport.model_validate(read_json(path))
    except ValidationError as error:
        raise RunFolderError(f"{path}: is damaged ({error.errors()[0]['msg']})") from None
